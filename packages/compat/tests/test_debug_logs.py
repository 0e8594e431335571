"""The variables that switch native logs on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from s3torchconnector._startup import native_level

ASK = """
from s3torchconnector import S3ClientConfig
from s3torchconnector._s3client import S3Client
config = S3ClientConfig(unsigned=True, max_attempts=1, transport="crt")
client = S3Client("us-east-1", endpoint="http://127.0.0.1:9", s3client_config=config)
try:
    client.get_object("bucket", "key").read()
except Exception as exc:
    assert "refused" in str(exc), exc
"""


def run(**environment):
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize(
    ("filters", "level"),
    [
        ("debug", "debug"),
        ("TRACE", "trace"),
        ("off", "off"),
        ("", "off"),
        ("debug,awscrt=off", "off"),
        ("awscrt=debug", "debug"),
        ("info, mountpoint_s3_client=trace", "info"),
        ("mountpoint_s3_client=trace", "off"),
    ],
)
def test_the_level_of_awscrt(filters, level):
    assert native_level(filters) == level


@pytest.mark.parametrize("filters", ["loud", "debug,awscrt=", "awscrt"])
def test_what_is_no_filter(filters):
    with pytest.raises(ValueError, match="has none of the levels"):
        native_level(filters)


def test_logs_go_to_stderr_and_not_to_stdout():
    assert "[DEBUG]" in run(S3_TORCH_CONNECTOR_DEBUG_LOGS="debug")
    assert "[DEBUG]" not in run(S3_TORCH_CONNECTOR_DEBUG_LOGS="debug,awscrt=off")


def test_logs_go_to_files(tmp_path):
    folder = tmp_path / "logs"
    assert run(S3_TORCH_CONNECTOR_DEBUG_LOGS="debug", S3_TORCH_CONNECTOR_LOGS_DIR_PATH=str(folder)) == ""
    (path,) = folder.iterdir()
    assert "[DEBUG]" in path.read_text()


def test_a_bad_filter_is_a_warning():
    told = run(S3_TORCH_CONNECTOR_DEBUG_LOGS="loud")
    assert "S3_TORCH_CONNECTOR_DEBUG_LOGS='loud' is ignored" in told
    assert "[DEBUG]" not in told

"""The native log, in processes of its own, because there is one per process."""

from __future__ import annotations

import pytest

ASK = """
import multiprocessing, os, sys
from s3torch.core import S3Client, S3ClientConfig, S3ConnectionError

config = S3ClientConfig(transport="crt", max_attempts=1, unsigned=True)
client = S3Client("us-east-1", endpoint="http://127.0.0.1:9", s3client_config=config)

def ask():
    try:
        client.get_object("bucket", "key").read()
    except S3ConnectionError:
        return
    raise AssertionError

def in_worker():
    worker = multiprocessing.get_context("fork").Process(target=ask)
    worker.start()
    worker.join(20)
    assert worker.exitcode == 0, worker.exitcode
    return worker.pid
"""


@pytest.fixture
def ask(python):
    def run(code, **environment):
        return python(ASK + "\n" + code, environment=environment)

    return run


def test_nothing_is_logged_by_default(ask):
    done = ask("ask()")
    assert (done.stdout, done.stderr) == ("", "")


def test_the_log_goes_to_stderr(ask):
    done = ask("ask()", S3TORCH_CRT_LOG="Debug")
    assert done.stdout == ""
    assert "[DEBUG]" in done.stderr


def test_every_process_has_a_file_of_its_own(ask, tmp_path):
    code = """
client._handle.get()
pids = [in_worker(), in_worker()]
ask()
print(os.getpid(), *pids)
"""
    folder = tmp_path / "logs"
    done = ask(code, S3TORCH_CRT_LOG="debug", S3TORCH_CRT_LOG_DIR=str(folder))
    assert done.stderr == ""
    files = {path.name.split(".")[-2]: path.read_text() for path in folder.iterdir()}
    assert set(files) == set(done.stdout.split())
    for pid, log in files.items():
        assert "connection refused" in log.lower()
        assert f"process {pid} ends" in log
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.log")} == {0o600}


def test_a_child_of_a_process_with_a_log_goes_on_without(ask, tmp_path):
    done = ask("ask()\nin_worker()\nask()", S3TORCH_CRT_LOG="trace", S3TORCH_CRT_LOG_DIR=str(tmp_path))
    assert done.stderr == ""
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_no_level_is_a_warning(ask):
    done = ask("ask()", S3TORCH_CRT_LOG="loud")
    assert "S3TORCH_CRT_LOG='loud' is not a level" in done.stderr
    assert "[" not in done.stderr.replace("['", "")


def test_a_folder_that_cannot_be_made_is_a_warning(ask, tmp_path):
    (tmp_path / "file").touch()
    done = ask("ask()", S3TORCH_CRT_LOG="debug", S3TORCH_CRT_LOG_DIR=str(tmp_path / "file"))
    assert "there is no native log" in done.stderr


def test_a_log_of_the_program_stays_as_it_is(ask, tmp_path):
    code = f"""
from awscrt.io import LogLevel, init_logging
init_logging(LogLevel.Debug, {str(tmp_path / "mine")!r})
ask()
"""
    done = ask(code, S3TORCH_CRT_LOG="debug")
    assert done.stderr == ""
    assert "connection refused" in (tmp_path / "mine").read_text().lower()

"""The clients that file systems with the same settings share.

Users make a new storage writer for each checkpoint. With a client of its own each of them would resolve
addresses again, open all connections again, and make another boto3 client, which takes longer than to write a
small checkpoint.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from s3torch.core import S3Client, UserAgent

if TYPE_CHECKING:
    from s3torch.core import S3ClientConfig

__all__ = ["shared_client"]

_KEPT = 8
# Where AWS's settings are, unless a variable tells another place.
_FILES = (("AWS_CONFIG_FILE", "~/.aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))


def shared_client(
    region: str | None, endpoint: str | None, config: S3ClientConfig | None, *, reader_kind: str
) -> S3Client:
    """Returns the client of this process with these settings, as long as the environment is the same.

    The last few are kept, with their idle connections.

    Args:
        region: The region of the bucket; ``None`` takes it from the environment.
        endpoint: The URL of a store that speaks S3.
        config: All other settings.
        reader_kind: The kind of readers, which requests tell.
    """
    try:
        hash(config)
    except TypeError:  # A function among the settings cannot be hashed.
        return _make(region, endpoint, config, reader_kind)
    return _kept(region, endpoint, config, reader_kind, frozenset(os.environ.items()), _settings_files())


@lru_cache(maxsize=_KEPT)
def _kept(
    region: str | None,
    endpoint: str | None,
    config: S3ClientConfig | None,
    reader_kind: str,
    _environment: frozenset[tuple[str, str]],
    _files: tuple[tuple[int, int] | None, ...],
) -> S3Client:
    return _make(region, endpoint, config, reader_kind)


def _make(
    region: str | None, endpoint: str | None, config: S3ClientConfig | None, reader_kind: str
) -> S3Client:
    agent = UserAgent(["dcp", torch.__version__, f"md/reader_type#{reader_kind}"])
    return S3Client(region, endpoint=endpoint, user_agent=agent, s3client_config=config)


def _settings_files() -> tuple[tuple[int, int] | None, ...]:
    """Tells the files with settings from what they were before."""
    return tuple(_state(Path(os.environ.get(name) or place).expanduser()) for name, place in _FILES)


def _state(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except (OSError, RuntimeError):  # There is none, or no home to have it in.
        return None
    return status.st_mtime_ns, status.st_size

"""A bucket on a real server that plugin and fsspec find in the environment, as a trainer needs it."""

from __future__ import annotations

from uuid import uuid4

import pytest

from s3torch.fsspec import S3FileSystem


@pytest.fixture(scope="session")
def session_bucket(seaweedfs):
    return seaweedfs.create_bucket()


@pytest.fixture
def folder(seaweedfs, session_bucket, monkeypatch):
    """The URI of an empty folder."""
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    yield f"s3://{session_bucket}/{uuid4().hex}"
    # Its instances have found this server in the environment.
    S3FileSystem.clear_instance_cache()

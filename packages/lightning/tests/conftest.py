"""A bucket on a real server that plugin and fsspec find in the environment, as a trainer needs it."""

from __future__ import annotations

from uuid import uuid4

import pytest

from s3torch.fsspec import S3FileSystem
from s3torch.testing import FaultProxy


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


@pytest.fixture(scope="session")
def running_proxy(seaweedfs):
    with FaultProxy(seaweedfs.endpoint) as proxy:
        yield proxy


@pytest.fixture
def proxy(running_proxy):
    running_proxy.heal()
    running_proxy.clear()
    return running_proxy

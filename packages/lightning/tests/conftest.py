"""A bucket on a real server that plugin and fsspec find in the environment, as a trainer needs it."""

from __future__ import annotations

from uuid import uuid4

import pytest

from s3torch.core import S3Client
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


@pytest.fixture
def client(seaweedfs, folder):
    with S3Client(seaweedfs.region) as client:
        yield client


@pytest.fixture
def put(client, folder):
    """A function that stores an object in the folder."""
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")

    def put(name, body):
        with client.put_object(bucket, f"{prefix}/{name}") as writer:
            writer.write(body)

    return put


@pytest.fixture
def names(client, folder):
    """A function that returns the names of all objects in the folder."""
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")

    def names():
        pages = client.list_objects(bucket, f"{prefix}/")
        return sorted(info.key.removeprefix(f"{prefix}/") for page in pages for info in page.object_info)

    return names


@pytest.fixture(scope="session")
def running_proxy(seaweedfs):
    with FaultProxy(seaweedfs.endpoint) as proxy:
        yield proxy


@pytest.fixture
def proxy(running_proxy):
    running_proxy.heal()
    running_proxy.clear()
    return running_proxy

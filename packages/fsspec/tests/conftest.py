"""The filesystem under test, on the memory transport and on a real server."""

from __future__ import annotations

from uuid import uuid4

import fsspec
import pytest

from s3torch.core import S3ClientConfig
from s3torch.core.transports.memory import MemoryStore
from s3torch.fsspec import S3FileSystem


def pytest_collection_modifyitems(config, items):
    """Leaves the many patterns of fsspec's suites to the faster stores: they are about names alone."""
    dropped = [item for item in items if "glob_edge_cases" in item.nodeid and "seaweedfs" in item.nodeid]
    items[:] = [item for item in items if item not in dropped]
    config.hook.pytest_deselected(items=dropped)


@pytest.fixture(params=["memory", "seaweedfs"])
def options(request):
    """Storage options that lead to a store; also to moto, where a test is parametrized with it."""
    if request.param != "memory":
        server = request.getfixturevalue(request.param)
        yield {
            "region": server.region,
            "endpoint_url": server.endpoint,
            "key": server.access_key,
            "secret": server.secret_key,
        }
        return
    endpoint = f"http://{uuid4().hex}"
    MemoryStore.at(endpoint).create_bucket("test-bucket")
    yield {
        "region": "us-east-1",
        "s3client_config": S3ClientConfig(transport="memory", endpoint=endpoint),
    }
    MemoryStore.forget(endpoint)


@pytest.fixture
def fs(options):
    """The filesystem of these options; no other test has it."""
    yield fsspec.filesystem("s3", **options)
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def buckets(request):
    """The bucket of a server, by its endpoint."""
    servers = [request.getfixturevalue(name) for name in ("seaweedfs", "moto")]
    return {server.endpoint: server.create_bucket() for server in servers}


@pytest.fixture
def root(request, options):
    """An empty folder, ``bucket/prefix``."""
    bucket = "test-bucket"
    if "endpoint_url" in options:
        bucket = request.getfixturevalue("buckets")[options["endpoint_url"]]
    return f"{bucket}/{uuid4().hex}"

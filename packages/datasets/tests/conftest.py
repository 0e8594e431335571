"""A bucket in memory for what needs no server."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass

import pytest

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.transports.memory import MemoryStore


@pytest.fixture
def memory(request):
    """The settings of a client to a store in memory that has the empty bucket ``data``."""
    endpoint = f"http://{abs(hash(request.node.nodeid))}.memory"
    MemoryStore.at(endpoint).create_bucket("data")
    return S3ClientConfig(transport="memory", endpoint=endpoint)


@pytest.fixture
def fill(memory):
    """Puts objects into the bucket in memory; each has its own key as content."""
    with S3Client(s3client_config=memory) as client:

        def put(*keys):
            for key in keys:
                with client.put_object("data", key) as writer:
                    writer.write(key.encode())

        yield put


@pytest.fixture
def store(memory):
    """The store in memory behind ``memory``."""
    return MemoryStore.at(memory.endpoint)


@pytest.fixture(scope="session")
def make_tar():
    """A function that packs names and bytes into a tar archive."""

    def make(files, *, mode="w", **options):
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode=mode, **options) as tar:
            for name, data in files:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return archive.getvalue()

    return make


@pytest.fixture
def listings(caplog):
    """Counts the listings that clients of this process have begun."""
    caplog.set_level("DEBUG", logger="s3torch")
    begins = ("ListObjects", "walk", "glob")
    return lambda: sum(record.getMessage().startswith(begins) for record in caplog.records)


@dataclass(frozen=True)
class Server:
    """A bucket on a real server with the objects ``train/00`` to ``train/10``, and how to reach it."""

    bucket: str
    options: dict[str, str]

    def uri(self, key: str) -> str:
        """Returns the URI of a key."""
        return f"s3://{self.bucket}/{key}"


@pytest.fixture(scope="session")
def filled_bucket(seaweedfs):
    bucket = seaweedfs.create_bucket()
    client = seaweedfs.client()
    for number in range(11):
        key = f"train/{number:02}"
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    client.close()
    return bucket


@pytest.fixture
def server(seaweedfs, filled_bucket, monkeypatch):
    """The bucket on the server; who may use it is in the environment, also in that of spawned workers."""
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    return Server(filled_bucket, {"region": seaweedfs.region, "endpoint": seaweedfs.endpoint})


@pytest.fixture
def proxy(server):
    """A proxy in front of the server, which counts requests and makes faults."""
    from s3torch.testing.faults import FaultProxy

    with FaultProxy(server.options["endpoint"]) as running:
        yield running


class Started:
    """Records what happens to a reader."""

    def __init__(self, number, log):
        self.number = number
        self.log = log
        self.closed = False

    def prefetch(self):
        self.log.append(self.number)

    def close(self):
        self.closed = True


@pytest.fixture(scope="session")
def readers_of():
    """Makes so many readers, and the list of those that are started."""

    def make(count):
        log = []
        return [Started(number, log) for number in range(count)], log

    return make

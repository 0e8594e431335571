"""What the tests of core share: other processes, and stores in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import uuid

import pytest

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.transports.memory import MemoryStore
from s3torch.testing.scripted import ScriptedServer

PATIENCE = 20


@pytest.fixture
def python():
    """Starts a Python of its own on some code."""

    def run(code, *arguments, environment=None, check=True):
        command = [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code), *map(str, arguments)]
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def store():
    """A store in memory with an empty ``bucket``, at ``store.endpoint``."""
    endpoint = f"http://{uuid.uuid4().hex}.invalid"
    store = MemoryStore.at(endpoint)
    store.endpoint = endpoint
    store.create_bucket("bucket")
    yield store
    MemoryStore.forget(endpoint)


@pytest.fixture
def client(store):
    """A client of the store."""
    config = S3ClientConfig(transport="memory", endpoint=store.endpoint, part_size=5 * 2**20)
    with S3Client("us-east-1", s3client_config=config) as client:
        yield client


@pytest.fixture
def scripted_server():
    """A server that answers as a test says."""
    with ScriptedServer() as server:
        yield server
        server.release()


_buckets = {}
_stock = {}


class Wire:
    """A real server behind a proxy that counts, and clients of one transport."""

    def __init__(self, server, proxy, transport):
        self.server = server
        self.proxy = proxy
        self.transport = transport
        # One for all tests, because SeaweedFS gives every bucket volumes of its own and runs out of them.
        self.bucket = _buckets.get(server.endpoint) or _buckets.setdefault(
            server.endpoint, server.create_bucket()
        )
        self.direct = server.client()
        self._clients = []

    def client(self, **settings):
        """A client that reaches the server through the proxy."""
        settings = {"transport": self.transport, "part_size": 5 * 2**20, "max_attempts": 3, **settings}
        client = S3Client(
            self.server.region, endpoint=self.proxy.endpoint, s3client_config=S3ClientConfig(**settings)
        )
        self._clients.append(client)
        return client

    def stock(self, size):
        """Bucket and key of an object with ``content(size)`` that is stored once for all tests."""
        kept = _stock.setdefault(self.server.endpoint, {})
        if size not in kept:
            bucket = next(iter(kept.values()))[0] if kept else self.server.create_bucket()
            kept[size] = bucket, f"of-{size}-bytes"
            self.direct.put_object(Bucket=bucket, Key=kept[size][1], Body=self.content(size))
        return kept[size]

    @staticmethod
    def content(size):
        """Some bytes that differ from part to part."""
        return (bytes(range(251)) * (size // 251 + 1))[:size]

    def put(self, key, data=b"data", **how):
        """Stores an object past the proxy."""
        return self.direct.put_object(Bucket=self.bucket, Key=key, Body=data, **how)

    def get(self, key):
        """Reads an object past the proxy; ``None`` if there is none."""
        try:
            return self.direct.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        except self.direct.exceptions.NoSuchKey:
            return None

    def uploads(self):
        """The multipart uploads in progress."""
        return self.direct.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])

    def asked(self, parts, *, whole=True):
        """The methods that a whole read of an object of so many parts sends, in the order of names.

        A store tells the checksum of an object with an answer to a request without a range, as for an object
        of one part. Such a request needs the size beforehand, or a transport that can end the answer: else a
        HEAD asks for it.

        Args:
            parts: How many parts.
            whole: Whether the first answer is to a request without a range.
        """
        return ["GET"] * parts + ["HEAD"] * (parts > 0 and not whole)

    @property
    def methods(self):
        """The methods of the requests so far, and forgets them."""
        methods = [request.method for request in self.proxy.requests()]
        self.proxy.clear()
        return methods

    def close(self):
        for client in self._clients:
            client.close()
        for entry in self.direct.list_objects_v2(Bucket=self.bucket).get("Contents", []):
            self.direct.delete_object(Bucket=self.bucket, Key=entry["Key"])
        for upload in self.uploads():
            self.direct.abort_multipart_upload(
                Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        self.direct.close()


@pytest.fixture(params=["crt", "http"])
def wire(request, seaweedfs, fault_proxy, monkeypatch):
    """Both transports to a real server, each behind a proxy of its own."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key)
    wire = Wire(seaweedfs, fault_proxy(seaweedfs), request.param)
    yield wire
    wire.close()

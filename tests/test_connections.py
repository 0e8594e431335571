"""Connections follow need: how many are opened over TLS, counted at a relay between client and server."""

from __future__ import annotations

import select
import socket
import socketserver
import threading
import time
from contextlib import suppress

import pytest

from s3torch.core import S3Client, S3ClientConfig
from s3torch.datasets import S3IterableDataset
from s3torch.testing import start_seaweedfs

OBJECTS = 500


class TcpRelay(socketserver.ThreadingTCPServer):
    """Passes bytes on and counts connections; with a latency, each answer begins that much later."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, port, latency=0.0):
        super().__init__(("127.0.0.1", 0), self.relay)
        self.opened = 0
        self._upstream = port
        self._latency = latency

    @property
    def port(self):
        return self.server_address[1]

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def relay(self, client, *_):
        self.opened += 1
        with socket.create_connection(("127.0.0.1", self._upstream)) as server, suppress(OSError):
            others = {client: server, server: client}
            while True:
                for source in select.select(others, [], [])[0]:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    time.sleep(self._latency if source is server else 0)
                    others[source].sendall(data)


@pytest.fixture(scope="module")
def server():
    """A server with TLS, and a bucket with small objects in it."""
    with start_seaweedfs(tls=True) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        bucket = server.create_bucket()
        client = S3Client(server.region, endpoint=server.endpoint)
        for number in range(OBJECTS):
            with client.put_object(bucket, f"small/{number:04}") as writer:
                writer.write(b"x" * 100)
        client.close()
        yield server, bucket


@pytest.fixture(autouse=True)
def environment(server, monkeypatch):
    for name, value in server[0].environment().items():
        monkeypatch.setenv(name, value)


def read_all(server, relay, transport, **settings):
    server, bucket = server
    dataset = S3IterableDataset.from_prefix(
        f"s3://{bucket}/small/",
        region=server.region,
        endpoint=f"https://127.0.0.1:{relay.port}",
        s3client_config=S3ClientConfig(transport=transport, **settings),
        transform=lambda reader: len(reader.read()),
    )
    assert list(dataset) == [100] * OBJECTS


def port_of(server):
    return int(server[0].endpoint.rpartition(":")[2])


every_transport = pytest.mark.parametrize("transport", ["crt", "http"])


@every_transport
def test_few_connections_serve_a_store_that_answers_at_once(server, transport):
    with TcpRelay(port_of(server)) as relay:
        read_all(server, relay, transport)
        assert relay.opened <= 32
        for _ in range(3):
            read_all(server, relay, transport)
        assert relay.opened <= 40


@every_transport
def test_latency_is_worth_connections(server, transport):
    with TcpRelay(port_of(server), latency=0.15) as relay:
        read_all(server, relay, transport)
    assert relay.opened > 16

from __future__ import annotations

import os
import socket

import pytest

from s3torch.core.transports.crt._watch import moved_bytes

pytestmark = pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="only Linux tells")


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def pair(request):
    """Both ends of a connection, and the port of the server."""
    host = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}[request.param]
    try:
        listener = socket.create_server((host, 0), family=request.param)
    except OSError:
        pytest.skip("this machine has no such addresses")
    with listener:
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
        with client, server:
            yield client, server, listener.getsockname()[1]


def test_bytes_count_when_they_arrive_before_they_are_read(pair):
    client, server, port = pair
    before = moved_bytes({port})
    server.sendall(b"x" * 1000)
    client.recv(1000, socket.MSG_PEEK | socket.MSG_WAITALL)
    assert moved_bytes({port}) == before + 1000


def test_bytes_that_were_sent_count(pair):
    client, server, port = pair
    before = moved_bytes({port})
    client.sendall(b"x" * 500)
    server.recv(500, socket.MSG_WAITALL)
    server.sendall(b"y")
    client.recv(1)
    assert moved_bytes({port}) == before + 501


def test_other_ports_do_not_count(pair):
    client, _, port = pair
    client.sendall(b"x")
    assert moved_bytes({port + 1, 1}) == 0
    assert moved_bytes(()) > 0


def test_no_connections():
    reading, writing = os.pipe()
    try:
        assert moved_bytes({1}) == 0
    finally:
        os.close(reading)
        os.close(writing)

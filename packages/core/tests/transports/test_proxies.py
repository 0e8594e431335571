"""Requests through an HTTP proxy that the environment names, by all transports."""

from __future__ import annotations

import base64
import socket
import socketserver
import ssl
import threading
from contextlib import closing, suppress

import pytest

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.errors import CertificateError, S3ConnectionError
from s3torch.core.transports.http import HttpTransport
from s3torch.testing._seaweedfs import CERTIFICATE, PRIVATE_KEY
from s3torch.testing.scripted import ScriptedServer


@pytest.fixture(params=["crt", "http"])
def read(request, monkeypatch):
    """Reads an object of a store at an endpoint, as a new client does."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    def read(endpoint):
        config = S3ClientConfig(transport=request.param, max_attempts=1, connect_timeout=5)
        with S3Client("us-east-1", endpoint=endpoint, s3client_config=config) as client:
            return client.get_object("bucket", "key").read()

    return read


def set_proxy(monkeypatch, url):
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, url)


def test_requests_take_the_proxy(read, stub, answer, monkeypatch):
    set_proxy(monkeypatch, stub.endpoint)
    stub.will(answer(206, b"data", {"Content-Range": "bytes 0-3/4", "ETag": '"e"'}))
    assert read("http://storage.invalid:9000") == b"data"
    assert stub.requests[0].path == "http://storage.invalid:9000/bucket/key"


def test_tls_goes_through_a_tunnel(read, stub, answer, monkeypatch):
    set_proxy(monkeypatch, stub.endpoint)
    stub.will(answer(403))
    with pytest.raises(S3ConnectionError):
        read("https://storage.invalid:9000")
    assert (stub.requests[0].method, stub.requests[0].path) == ("CONNECT", "storage.invalid:9000")


class Tunnel(socketserver.StreamRequestHandler):
    """A proxy that connects to whom it is told."""

    def handle(self):
        name, _, port = self.rfile.readline().split()[1].decode().partition(":")
        while self.rfile.readline().strip():
            """The head ends with an empty line."""
        with socket.create_connection((name, int(port))) as far, suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            threading.Thread(target=self.forward, args=(far, self.connection), daemon=True).start()
            self.forward(self.connection, far)

    @staticmethod
    def forward(source, target):
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)


def test_who_is_not_trusted_behind_a_tunnel_is_told_at_once(read, certificates, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / CERTIFICATE, certificates / PRIVATE_KEY)
    proxy = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tunnel)
    proxy.daemon_threads, proxy.block_on_close = True, False
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    with closing(ScriptedServer(tls=context)) as server:
        set_proxy(monkeypatch, f"http://127.0.0.1:{proxy.server_address[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(CertificateError):
            read(server.endpoint)
    proxy.shutdown()
    proxy.server_close()


def test_hosts_that_need_none_are_asked_directly(read, stub, answer, monkeypatch):
    set_proxy(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "elsewhere.example,127.0.0.1")
    monkeypatch.setenv("no_proxy", "elsewhere.example,127.0.0.1")
    stub.will(answer(206, b"data", {"Content-Range": "bytes 0-3/4", "ETag": '"e"'}))
    assert read(stub.endpoint) == b"data"
    assert stub.requests[0].path == "/bucket/key"


def test_a_proxy_may_want_a_password(stub, answer, connect_with, monkeypatch):
    set_proxy(monkeypatch, stub.endpoint.replace("//", "//user:p%40ss@"))
    stub.will(answer(200, b"data"), answer(200, b"data"))
    transport = connect_with(HttpTransport, "http://storage.invalid:9000")
    for _ in range(2):
        assert transport.get("bucket", "key").result(20).data == b"data"
    expected = "Basic " + base64.b64encode(b"user:p@ss").decode()
    assert [request.headers["proxy-authorization"] for request in stub.requests] == [expected] * 2
    assert stub.connections == 1

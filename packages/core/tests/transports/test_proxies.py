"""Requests through an HTTP proxy that the environment names, by all transports."""

from __future__ import annotations

import base64

import pytest

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.errors import S3ConnectionError
from s3torch.core.transports.http import HttpTransport


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

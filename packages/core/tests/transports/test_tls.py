"""Certificates that only a bundle of the environment vouches for, by all transports."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress

import awscrt.exceptions
import pytest

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.errors import CertificateError, S3ConnectionError, TransportError
from s3torch.core.observers import TransferCounters, observe
from s3torch.core.transports._retries import may_succeed_now
from s3torch.testing.servers import start_seaweedfs


@pytest.fixture(scope="module")
def server():
    with start_seaweedfs(tls=True) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(server):
    return server.create_bucket()


@pytest.fixture(params=["crt", "http"])
def connect(request, server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)

    def connect(**settings):
        config = S3ClientConfig(transport=request.param, max_attempts=1, **settings)
        return S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)

    return connect


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_bundle_of_the_environment(connect, server, bucket, monkeypatch, variable):
    monkeypatch.setenv(variable, str(server.ca_file))
    with connect() as client:
        with client.put_object(bucket, "key") as writer:
            writer.write(b"sealed")
        assert client.get_object(bucket, "key").read() == b"sealed"
        assert client.head_object(bucket, "key").size == 6


@pytest.mark.parametrize("where", ["config", "profile", "credentials file"])
def test_a_bundle_of_the_client_or_its_profile(connect, server, bucket, monkeypatch, tmp_path, where):
    settings = {}
    if where == "config":
        settings = {"ca_bundle": str(server.ca_file)}
    else:
        file = tmp_path / "file"
        file.write_text(f"[{'profile ' if where == 'profile' else ''}sealed]\nca_bundle = {server.ca_file}\n")
        variable = "AWS_CONFIG_FILE" if where == "profile" else "AWS_SHARED_CREDENTIALS_FILE"
        monkeypatch.setenv(variable, str(file))
        monkeypatch.setenv("AWS_PROFILE", "sealed")
    with connect(**settings) as client:
        assert not client.exists(bucket, "nothing")


@pytest.mark.parametrize("transport", ["crt", "http"])
def test_a_certificate_that_is_not_trusted_is_told_and_not_asked_for_again(server, bucket, transport):
    config = S3ClientConfig(transport=transport, unsigned=True, max_attempts=5)
    with (
        S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config) as client,
        observe(TransferCounters()) as counters,
        pytest.raises(CertificateError, match=r"127\.0\.0\.1.*ca_bundle=.*AWS_CA_BUNDLE"),
    ):
        client.get_object(bucket, "key").read()
    assert counters.snapshot().retries == 0


@pytest.mark.parametrize("transport", ["crt", "http"])
def test_a_server_that_does_not_speak_tls(transport):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            with suppress(OSError):
                while True:
                    connected, _ = listener.accept()
                    kept.append(connected)
                    connected.recv(10_000)
                    connected.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        kept = []
        threading.Thread(target=answer, daemon=True).start()
        endpoint = f"https://127.0.0.1:{listener.getsockname()[1]}"
        config = S3ClientConfig(transport=transport, unsigned=True, max_attempts=1)
        with (
            S3Client("us-east-1", endpoint=endpoint, s3client_config=config) as client,
            pytest.raises(S3ConnectionError, match="WRONG_VERSION_NUMBER"),
        ):
            client.head_object("bucket", "key")
        for connected in kept:
            connected.close()


def test_what_the_crt_says_of_such_a_certificate_is_not_tried_again():
    error = S3ConnectionError("TLS (SSL) negotiation failed")
    assert may_succeed_now(error)
    error.__cause__ = awscrt.exceptions.from_code(1029)
    assert not may_succeed_now(error)


@pytest.mark.parametrize("connect", ["crt"], indirect=True)
def test_a_forked_child_trusts_nobody_it_was_not_told_to(connect, server, bucket, monkeypatch, in_child):
    """Native clients outlive their transports there, and are used again for the same settings only."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(server.ca_file))
    with connect() as client, client.put_object(bucket, "key") as writer:
        writer.write(b"sealed")

    def child():
        with connect() as client:
            assert client.get_object(bucket, "key").read() == b"sealed"
        os.environ["AWS_CA_BUNDLE"] = "/no/such/bundle.pem"
        with connect() as client:
            client.get_object(bucket, "key").read()

    with pytest.raises(TransportError, match="/no/such/bundle.pem"):
        in_child(child)


@pytest.mark.promise(8)
def test_a_bundle_that_is_not_there_is_named(server, bucket, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/bundle.pem")
    config = S3ClientConfig(unsigned=True, max_attempts=1)
    with (
        S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config) as client,
        pytest.raises(TransportError, match="/no/such/bundle.pem"),
    ):
        client.get_object(bucket, "key").read()

"""Certificates that only a bundle of the environment vouches for, by all transports and planes."""

from __future__ import annotations

import pytest

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.errors import TransportError
from s3torch.core.testing.servers import start_seaweedfs


@pytest.fixture(scope="module")
def server():
    with start_seaweedfs(tls=True) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(server):
    return server.create_bucket()


@pytest.fixture(params=["crt", "boto", "http"])
def connect(request, server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    config = S3ClientConfig(transport=request.param, max_attempts=1)
    return lambda: S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_bundle_of_the_environment(connect, server, bucket, monkeypatch, variable):
    monkeypatch.setenv(variable, str(server.ca_file))
    with connect() as client:
        with client.put_object(bucket, "key") as writer:
            writer.write(b"sealed")
        assert client.get_object(bucket, "key").read() == b"sealed"
        assert client.head_object(bucket, "key").size == 6


def test_a_bundle_that_is_not_there_is_named(server, bucket, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/bundle.pem")
    config = S3ClientConfig(unsigned=True, max_attempts=1)
    with (
        S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config) as client,
        pytest.raises(TransportError, match="/no/such/bundle.pem"),
    ):
        client.get_object(bucket, "key").read()

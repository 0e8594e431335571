"""What a client holds in one process."""

from __future__ import annotations

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.testing.memory import MemoryStore


def test_a_transport_knows_the_endpoint_of_the_client():
    endpoint = "http://store-of-this-test"
    MemoryStore.at(endpoint).create_bucket("here")
    config = S3ClientConfig(transport="memory")
    with S3Client("us-east-1", endpoint=endpoint, s3client_config=config) as client:
        with client.put_object("here", "key") as writer:
            writer.write(b"value")
        assert client.get_object("here", "key").read() == b"value"
    assert client.s3client_config is config

"""What a client holds in one process."""

from __future__ import annotations

import base64
import pickle

from s3torch.core import S3Client, S3ClientConfig
from s3torch.testing import MemoryStore


def test_a_transport_knows_the_endpoint_of_the_client():
    endpoint = "http://store-of-this-test"
    MemoryStore.at(endpoint).create_bucket("here")
    config = S3ClientConfig(transport="memory")
    with S3Client("us-east-1", endpoint=endpoint, s3client_config=config) as client:
        with client.put_object("here", "key") as writer:
            writer.write(b"value")
        assert client.get_object("here", "key").read() == b"value"
    assert client.s3client_config is config


def test_a_process_that_only_moves_bytes_loads_no_boto(seaweedfs, python, monkeypatch):
    """Its addresses have come with the pickle, its keys are in the environment."""
    bucket = seaweedfs.create_bucket()
    boto = seaweedfs.client()
    boto.put_object(Bucket=bucket, Key="key", Body=b"data")
    boto.close()
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    with S3Client(seaweedfs.region, s3client_config=S3ClientConfig(transport="crt")) as client:
        assert client.get_object(bucket, "key").read() == b"data"
        code = """
            import base64, pickle, sys
            client = pickle.loads(base64.b64decode(sys.argv[1]))
            assert client.get_object(sys.argv[2], "key").read() == b"data"
            print(sorted({"boto3", "botocore"} & set(sys.modules)))
        """
        done = python(code, base64.b64encode(pickle.dumps(client)).decode(), bucket)
    assert done.stdout.strip() == "[]"


def test_addresses_of_aws_travel(python, monkeypatch):
    client = S3Client("us-west-2")
    expected = client._handle.get()._session.endpoint("data")
    code = """
        import base64, pickle, sys
        client = pickle.loads(base64.b64decode(sys.argv[1]))
        print(client._handle.get()._session.endpoint("data"))
        assert "botocore" not in sys.modules
    """
    done = python(code, base64.b64encode(pickle.dumps(client)).decode())
    assert done.stdout.strip() == str(expected)
    client.close()

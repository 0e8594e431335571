"""The http transport on a machine that has no awscrt."""

from __future__ import annotations

CODE = """
import sys

sys.modules["awscrt"] = None
from datetime import timedelta

from s3torch.core import PutOptions, S3Client, S3ClientConfig, TransportError

config = S3ClientConfig(transport="http", checksum_algorithm="off", part_size=5 * 2**20)
bucket, endpoint = sys.argv[1:]
large = bytes(range(256)) * 2**15 + b"end"
with S3Client("us-east-1", endpoint=endpoint, s3client_config=config) as client:
    for key, data in (("small", b"data"), ("large", large)):
        with client.put_object(bucket, key, options=PutOptions(metadata={"a": "1"})) as writer:
            writer.write(data)
        assert client.get_object(bucket, key).read() == data
        assert client.head_object(bucket, key).size == len(data)
    assert sorted(info.key for info in client.walk(bucket)) == ["large", "small"]
    assert len([one for page in client.list_object_versions(bucket) for one in page.versions]) == 2
    client.copy_object(bucket, "small", bucket, "copy")
    assert client.abort_stale_uploads(bucket, older_than=timedelta(days=1)) == []
    client.delete_object(bucket, "small")
    assert client.delete_objects(bucket, ["large", "copy"]) == []
    assert list(client.walk(bucket)) == []
config = S3ClientConfig(transport="crt")
with S3Client("us-east-1", endpoint=endpoint, s3client_config=config) as client:
    try:
        client.exists(bucket, "small")
    except TransportError as error:
        assert "transport='http'" in str(error)
    else:
        raise AssertionError("crt without awscrt")
print(sorted(name for name in sys.modules if name.startswith("awscrt")))
"""


def test_everything_but_checksums(seaweedfs, python):
    bucket = seaweedfs.create_bucket()
    environment = {"AWS_ACCESS_KEY_ID": seaweedfs.access_key, "AWS_SECRET_ACCESS_KEY": seaweedfs.secret_key}
    done = python(CODE, bucket, seaweedfs.endpoint, environment=environment)
    assert done.stdout == "['awscrt']\n"

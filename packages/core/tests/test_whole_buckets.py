"""What a client asks besides objects and listings: buckets, tags, joined objects, signed URLs."""

from __future__ import annotations

import urllib.error
import urllib.request

import boto3
import pytest

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.errors import ConfigurationError, NoCredentialsError, NotFoundError, PreconditionFailedError
from s3torch.core.models import PutOptions
from s3torch.core.ranges import MIB
from s3torch.testing.faults import Fault

SMALL = 5 * MIB
KEY = "a ü+/b"


def test_buckets_are_listed(wire):
    found = {bucket.name: bucket for bucket in wire.client().list_buckets()}
    assert found[wire.bucket].created > 1_500_000_000
    assert wire.methods == ["GET"]


def test_buckets_and_tags_in_memory(client, store):
    store.create_bucket("another")
    assert {"another", "bucket"} <= {bucket.name for bucket in client.list_buckets()}
    store.put("bucket", KEY, b"", options=PutOptions(tags={"a": "1"}))
    client.put_object_tags("bucket", KEY, {"b": "2"})
    assert client.get_object_tags("bucket", KEY) == {"b": "2"}
    with pytest.raises(NotFoundError):
        client.put_object_tags("bucket", "none", {})


@pytest.mark.parametrize("kind", ["standard", "directory"])
def test_where_buckets_are_listed_is_asked_of_botocore(kind):
    settings = {"standard": {}, "directory": {"addressing_style": "virtual"}}[kind]
    client = S3Client("eu-west-1", s3client_config=S3ClientConfig(unsigned=True, **settings))
    address = client._handle.get()._session.endpoint("")
    assert (address.host, address.base_path) == ("s3.eu-west-1.amazonaws.com", "/")
    client.close()


def test_tags_are_replaced(wire):
    client = wire.client()
    wire.put(KEY)
    tags = {"a b": "c+d=e/f@g", "c": ""}
    client.put_object_tags(wire.bucket, KEY, tags)
    assert client.get_object_tags(wire.bucket, KEY) == tags
    client.put_object_tags(wire.bucket, KEY, {})
    assert client.get_object_tags(wire.bucket, KEY) == {}
    assert wire.methods == ["PUT", "GET", "PUT", "GET"]
    with pytest.raises(ConfigurationError, match="at most 10 tags"):
        client.put_object_tags(wire.bucket, KEY, {str(number): "" for number in range(11)})


def test_objects_are_joined_within_the_store(wire):
    client = wire.client()
    for name, size in (("1", SMALL), ("2", 0), ("3", SMALL + 7), ("4", 9)):
        wire.put(name, wire.content(size))
    sources = [(wire.bucket, name) for name in "1234"]
    client.join_objects(sources, wire.bucket, "to", options=PutOptions(content_type="text/x-test"))
    assert sorted(wire.methods) == ["HEAD"] * 4 + ["POST"] * 2 + ["PUT"] * 3
    assert wire.get("to") == wire.content(SMALL) + wire.content(SMALL + 7) + wire.content(9)
    assert client.head_object(wire.bucket, "to").content_type == "text/x-test"


def test_a_source_that_is_replaced_meanwhile_joins_nothing(wire):
    client = wire.client()
    wire.put("1", wire.content(SMALL))
    wire.put("2", b"2")
    wire.proxy.add(Fault.error(412, "PreconditionFailed"), method="PUT", times=1)
    with pytest.raises(PreconditionFailedError):
        client.join_objects([(wire.bucket, "1"), (wire.bucket, "2")], wire.bucket, "to")
    assert wire.get("to") is None
    assert wire.uploads() == []


def test_what_cannot_be_joined(client, store):
    store.put("bucket", "small", b"1")
    store.put("bucket", "empty", b"")
    with pytest.raises(ConfigurationError, match="need 5242880 bytes"):
        client.join_objects([("bucket", "small")] * 2, "bucket", "to")
    with pytest.raises(ConfigurationError, match="nothing to join"):
        client.join_objects([("bucket", "empty")], "bucket", "to")


def test_signed_urls_read_and_store(wire):
    client = wire.client()
    stored = client.presign(wire.bucket, KEY, method="PUT", expires=60)
    request = urllib.request.Request(stored, b"data", method="PUT")
    with urllib.request.urlopen(request, timeout=60):
        assert wire.get(KEY) == b"data"
    url = client.presign(wire.bucket, KEY, expires=60)
    assert "X-Amz-Expires=60" in url
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert answer.read() == b"data"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(url.replace("Signature=", "Signature=0"), timeout=60)
    assert wire.methods == ["PUT", "GET", "GET"]


def test_signed_urls_are_of_the_region(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SK")
    with S3Client("eu-west-1") as client:
        url = client.presign("bucket", "k", version_id="v")
        assert url.startswith("https://bucket.s3.eu-west-1.amazonaws.com/k?")
        assert "versionId=v" in url
        assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
    with S3Client("eu-west-1", s3client_config=S3ClientConfig(unsigned=True)) as client:
        assert client.presign("bucket", "k") == "https://bucket.s3.eu-west-1.amazonaws.com/k"


def test_many_signed_urls_need_one_client(monkeypatch):
    made = []
    make = boto3.session.Session.client

    def counted(self, *args, **options):
        made.append(args)
        return make(self, *args, **options)

    monkeypatch.setattr(boto3.session.Session, "client", counted)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SK")
    with S3Client("eu-west-1") as client:
        urls = {client.presign("bucket", f"k{number}") for number in range(1000)}
        client.close()
        assert client.presign("bucket", "k").startswith("https://bucket.s3.eu-west-1.amazonaws.com/k?")
    assert len(urls) == 1000
    # One says where the bucket is. What was closed begins anew.
    assert len(made) <= 4


def test_a_url_needs_keys(monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    with S3Client("eu-west-1") as client, pytest.raises(NoCredentialsError):
        client.presign("bucket", "k")


@pytest.mark.parametrize(
    "wrong", [{"method": "POST"}, {"expires": 0}, {"expires": 10**6}, {"method": "PUT", "version_id": "v"}]
)
def test_wrong_urls_are_refused(client, wrong):
    with pytest.raises(ConfigurationError):
        client.presign("bucket", "k", **wrong)

"""Bad input gets a clear error of our own type, soon, and loses nothing."""

from __future__ import annotations

import io
import pickle
import socket
import time

import pytest

from s3torch.core import S3Checkpoint, S3Client, S3ClientConfig
from s3torch.core.errors import (
    AccessDeniedError,
    ConfigurationError,
    NoCredentialsError,
    NotFoundError,
    S3ConnectionError,
    S3Error,
    ThrottledError,
    TransportError,
    WrongRegionError,
)
from s3torch.testing.faults import Fault


def every_operation(client, bucket):
    """All that asks S3, by the name of its operation."""
    return {
        "GetObject": lambda: client.get_object(bucket, "k").read(),
        "PutObject": lambda: client.put_object(bucket, "k").close(),
        "HeadObject": lambda: client.head_object(bucket, "k"),
        "ListObjectsV2": lambda: list(client.list_objects(bucket)),
        "DeleteObject": lambda: client.delete_object(bucket, "k"),
        "DeleteObjects": lambda: client.delete_objects(bucket, ["k"]),
        "CopyObject": lambda: client.copy_object(bucket, "k", bucket, "k2"),
        "ListObjectVersions": lambda: list(client.list_object_versions(bucket)),
        "ListMultipartUploads": lambda: list(client.list_multipart_uploads(bucket)),
    }


@pytest.mark.parametrize("uri", ["bucket/key", "http://bucket/key", "s3:/b/k", "s3://", "s3:///k", "", None])
def test_a_malformed_uri(uri):
    checkpoint = S3Checkpoint("us-east-1")
    for call in (checkpoint.reader, checkpoint.writer, checkpoint.exists, checkpoint.delete):
        with pytest.raises(ConfigurationError):
            call(uri)


@pytest.mark.parametrize("bucket", ["No Bucket!", "bu\ncket", "bücket", "", None, 5])
def test_what_cannot_be_a_bucket(bucket):
    client = S3Client("us-east-1")
    for call in (client.get_object, client.put_object, client.head_object, client.delete_object):
        with pytest.raises(ConfigurationError, match="[Bb]ucket"):
            call(bucket, "key")


def test_a_key_that_no_url_can_have():
    client = S3Client("us-east-1")
    for call in (client.get_object, client.put_object, client.head_object, client.delete_object):
        with pytest.raises(ConfigurationError, match="key must be valid Unicode"):
            call("bucket", "\udcff")


class Told:
    """What a listing of somebody's own tells of an object."""

    def __init__(self, size):
        self.size = size


@pytest.mark.parametrize(
    "info", [5, "12", Told(-1), Told("3"), Told(2.5)], ids=["number", "text", "negative", "string", "float"]
)
def test_facts_that_have_no_size(client, info):
    """A wrong size would be taken for the end of the object."""
    for call in (client.get_object, client.open_ranges):
        with pytest.raises(ConfigurationError, match="object_info must have the size"):
            call("bucket", "key", object_info=info)
    with pytest.raises(ConfigurationError, match="object_info"):
        client.copy_object("bucket", "key", "bucket", "copy", object_info=info)


@pytest.mark.parametrize("version", [5, "", b"v1"])
def test_what_cannot_be_a_version(client, version):
    for call in (client.get_object, client.open_ranges, client.head_object, client.delete_object):
        with pytest.raises(ConfigurationError, match="version_id"):
            call("bucket", "key", version_id=version)


@pytest.mark.parametrize("text", [None, 5, b"a/", "\udcff"])
def test_what_cannot_be_a_prefix(client, text):
    calls = (
        client.list_objects,
        client.list_object_versions,
        client.walk,
        client.glob,
        client.list_multipart_uploads,
        client.delete_prefix,
    )
    for call in calls:
        with pytest.raises(ConfigurationError, match="prefix|pattern"):
            call("bucket", text)


@pytest.mark.parametrize(
    "options", [{"delimiter": 5}, {"max_keys": "5"}, {"max_keys": 0}, {"start_after": 5}]
)
def test_what_no_listing_can_do(client, options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        client.list_objects("bucket", **options)


def test_arguments_of_another_kind(client):
    calls = {
        "s3client_config": lambda: S3Client("us-east-1", s3client_config={"part_size": 1}),
        "user_agent": lambda: S3Client("us-east-1", user_agent="me/1"),
        "reader_constructor": lambda: client.get_object("bucket", "key", reader_constructor="ranged"),
        "options": lambda: client.put_object("bucket", "key", options={"acl": "private"}),
        "storage_class": lambda: client.put_object("bucket", "key", 5),
    }
    for name, call in calls.items():
        with pytest.raises(ConfigurationError, match=name):
            call()
    with pytest.raises(ConfigurationError, match="options"):
        client.copy_object("bucket", "key", "bucket", "copy", options={})


def test_the_largest_part_size(wire):
    with wire.client(part_size=5 * 1024**3) as client:
        with client.put_object(wire.bucket, "large-parts") as writer:
            writer.write(b"few bytes")
        assert client.get_object(wire.bucket, "large-parts").read() == b"few bytes"


@pytest.mark.promise(6)
def test_a_missing_key(wire):
    client = wire.client()
    for call in (client.get_object(wire.bucket, "no").read, client.get_object(wire.bucket, "no").readline):
        with pytest.raises(NotFoundError) as caught:
            call()
        error = caught.value
        assert (error.operation, error.bucket, error.key) == ("GetObject", wire.bucket, "no")
        assert (error.code, error.status) == ("NoSuchKey", 404)
        assert error.request_id
        assert error.request_id in str(error)
    with pytest.raises(FileNotFoundError) as caught:
        client.head_object(wire.bucket, "no")
    assert (caught.value.operation, caught.value.status) == ("HeadObject", 404)
    with pytest.raises(FileNotFoundError):
        client.get_object(wire.bucket, "no").seek(0, io.SEEK_END)
    with pytest.raises(FileNotFoundError):
        client.copy_object(wire.bucket, "no", wire.bucket, "k")
    client.delete_object(wire.bucket, "no")


def test_a_missing_bucket(wire):
    client = wire.client()
    for operation, call in every_operation(client, "s3torch-no-such-bucket").items():
        with pytest.raises(NotFoundError, match="s3torch-no-such-bucket") as caught:
            call()
        error = caught.value
        assert error.status == 404
        assert error.operation == operation
        if operation not in {"HeadObject", "CopyObject"}:
            assert error.code == "NoSuchBucket"


def test_a_store_that_asks_to_slow_down(wire):
    client = wire.client(max_attempts=2)
    wire.proxy.add(Fault.slow_down())
    for operation, call in every_operation(client, wire.bucket).items():
        wire.proxy.clear()
        with pytest.raises(ThrottledError, match="2 attempts") as caught:
            call()
        error = caught.value
        assert (error.operation, error.bucket) == (operation, wire.bucket)
        assert (error.status, error.attempts, len(wire.methods)) == (503, 2, 2)
        if operation != "HeadObject":
            assert error.code == "SlowDown"
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.attempts) == (str(error), 2)


@pytest.mark.parametrize(
    ("status", "code"), [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")], ids=str
)
def test_a_bucket_in_another_region(wire, status, code):
    client = wire.client(max_attempts=1)
    wire.proxy.add(Fault.error(status, code) | Fault.header("x-amz-bucket-region", "eu-west-3"))
    for operation, call in every_operation(client, wire.bucket).items():
        with pytest.raises(WrongRegionError, match="eu-west-3") as caught:
            call()
        error = caught.value
        assert (error.operation, error.bucket, error.status) == (operation, wire.bucket, status)
        assert error.expected_region == "eu-west-3"


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_keys(wire, monkeypatch, variable):
    wire.put("k", b"old")
    monkeypatch.setenv(variable, "wr0ngwr0ng")
    client = wire.client()
    for operation, call in every_operation(client, wire.bucket).items():
        with pytest.raises(AccessDeniedError) as caught:
            call()
        error = caught.value
        assert (error.operation, error.status) == (operation, 403)
        told = f"{error} {error!r} {error.__cause__!r}"
        assert wire.server.secret_key not in told
        assert variable == "AWS_ACCESS_KEY_ID" or "wr0ngwr0ng" not in told
    assert wire.get("k") == b"old"


def test_no_permission_to_write(wire, monkeypatch):
    wire.put("k", b"old")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", wire.server.reader.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", wire.server.reader.secret_key)
    client = wire.client()
    assert client.get_object(wire.bucket, "k").read() == b"old"
    for size in (5, 6 * 2**20):
        with pytest.raises(PermissionError), client.put_object(wire.bucket, "k") as writer:
            writer.write(bytes(size))
    assert wire.get("k") == b"old"


def test_no_credentials(wire, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for operation, call in every_operation(wire.client(), wire.bucket).items():
        with pytest.raises(NoCredentialsError, match="no credentials found") as caught:
            call()
        assert (caught.value.operation, caught.value.bucket) == (operation, wire.bucket)
    assert wire.methods == []


def test_anonymous_requests(wire, monkeypatch):
    wire.put("k", b"data")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    client = wire.client(unsigned=True)
    with pytest.raises(AccessDeniedError):
        client.get_object(wire.bucket, "k").read()
    assert all("authorization" not in request.headers for request in wire.proxy.requests())


@pytest.mark.promise(6)
@pytest.mark.parametrize("transport", ["crt", "http"])
def test_an_endpoint_that_is_down(monkeypatch, transport):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    with socket.socket() as taken:
        # A port that nobody listens on, and that nobody else can take meanwhile.
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        config = S3ClientConfig(transport=transport, max_attempts=1, connect_timeout=2)
        began = time.monotonic()
        with S3Client("us-east-1", endpoint=endpoint, s3client_config=config) as client:
            for operation, call in every_operation(client, "bucket").items():
                with pytest.raises(S3ConnectionError) as caught:
                    call()
                assert isinstance(caught.value, ConnectionError)
                assert caught.value.attempts == 1
                assert (caught.value.operation, caught.value.bucket) == (operation, "bucket")
        assert time.monotonic() - began < 20


@pytest.mark.parametrize("transport", ["crt", "http"])
def test_no_region(monkeypatch, transport):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    with S3Client(s3client_config=S3ClientConfig(transport=transport)) as client:
        for call in every_operation(client, "bucket").values():
            with pytest.raises(ConfigurationError, match="region"):
                call()


@pytest.mark.parametrize("transport", ["crt", "http"])
def test_a_bucket_that_cannot_be(monkeypatch, transport):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    with S3Client("us-east-1", s3client_config=S3ClientConfig(transport=transport)) as client:
        for call in every_operation(client, "no bucket").values():
            with pytest.raises(ConfigurationError, match="no bucket"):
                call()


@pytest.mark.parametrize("transport", ["crt", "http"])
def test_an_unknown_profile(transport):
    config = S3ClientConfig(transport=transport, profile="nope")
    with S3Client("us-east-1", endpoint="http://127.0.0.1:1", s3client_config=config) as client:
        for call in every_operation(client, "bucket").values():
            with pytest.raises(ConfigurationError, match="nope"):
                call()


@pytest.mark.promise(8)
def test_an_unknown_transport():
    client = S3Client("us-east-1", s3client_config=S3ClientConfig(transport="tpae"))
    for call in every_operation(client, "bucket").values():
        with pytest.raises(TransportError, match=r"'tpae'.*crt, http, memory"):
            call()


@pytest.mark.parametrize("size", [0, 5 * 2**20 - 1, 5 * 2**30 + 1])
def test_a_part_size_out_of_range(size):
    with pytest.raises(ConfigurationError, match="part_size"):
        S3ClientConfig(part_size=size)


def test_a_file_in_the_wrong_mode(client, store):
    store.put("bucket", "k", b"data")
    reader = client.get_object("bucket", "k")
    writer = client.put_object("bucket", "k")
    for call in (
        lambda: reader.write(b"x"),
        writer.read,
        writer.readline,
        lambda: writer.readinto(bytearray(1)),
    ):
        with pytest.raises(io.UnsupportedOperation):
            call()
    with pytest.raises(TypeError):
        writer.write("text")
    writer.abort()
    assert reader.read() == b"data"
    assert store.get("bucket", "k").data == b"data"


def test_a_key_that_s3_refuses(wire):
    client = wire.client()
    with pytest.raises(S3Error) as caught, client.put_object(wire.bucket, "k" * 1025) as writer:
        writer.write(b"x")
    assert caught.value.operation == "PutObject"
    assert caught.value.status == 400

"""What settings and options become on the wire, in every operation of every way to S3."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime

import pytest

from s3torch.core import Credentials, S3Client, S3ClientConfig, requests
from s3torch.core.errors import AccessDeniedError, ConfigurationError, S3Error
from s3torch.core.models import CompletedPart, MultipartUpload, PutOptions
from s3torch.core.ranges import ByteRange
from s3torch.testing.scripted import ScriptedAnswer

PATIENCE = 30
UPLOAD = MultipartUpload("bucket", "key", "upload")
PART = CompletedPart(1, "e")
OPTIONS = PutOptions(
    storage_class="STANDARD_IA",
    content_type="text/x-test",
    metadata={"one": "1"},
    tags={"a b": "c&d=é", "plus": "+"},
    cache_control="max-age=5",
    content_disposition='attachment; filename="x y"',
    content_encoding="gzip",
    content_language="en",
    expires=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
    acl="bucket-owner-full-control",
    server_side_encryption="aws:kms",
    kms_key_id="alias/mine",
    kms_encryption_context={"team": "ü"},
    bucket_key=True,
)
STORED = {
    "content-type": "text/x-test",
    "x-amz-meta-one": "1",
    "x-amz-storage-class": "STANDARD_IA",
    "x-amz-tagging": "a%20b=c%26d%3D%C3%A9&plus=%2B",
    "cache-control": "max-age=5",
    "content-disposition": 'attachment; filename="x y"',
    "content-encoding": "gzip",
    "content-language": "en",
    "expires": "Wed, 02 Jan 2030 03:04:05 GMT",
    "x-amz-acl": "bucket-owner-full-control",
    "x-amz-server-side-encryption": "aws:kms",
    "x-amz-server-side-encryption-aws-kms-key-id": "alias/mine",
    "x-amz-server-side-encryption-context": base64.b64encode(b'{"team": "\\u00fc"}').decode(),
    "x-amz-server-side-encryption-bucket-key-enabled": "true",
}
KEY = bytes(range(32))
KEY_HEADERS = {
    "server-side-encryption-customer-algorithm": "AES256",
    "server-side-encryption-customer-key": base64.b64encode(KEY).decode(),
    "server-side-encryption-customer-key-md5": base64.b64encode(hashlib.md5(KEY).digest()).decode(),
}
COPIES = {"CopyObject", "UploadPartCopy"}
COPIED = b"<CopyObjectResult><ETag>e</ETag></CopyObjectResult>"
PART_COPIED = b"<CopyPartResult><ETag>e</ETag></CopyPartResult>"
KEYLESS = {
    "AbortMultipartUpload",
    "DeleteObject",
    "DeleteObjects",
    "GetObjectTagging",
    "ListMultipartUploads",
    "ListObjectVersions",
    "ListObjectsV2",
}
STARTED = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"


def the_key():
    return KEY


@pytest.fixture
def sent(stub, answer):
    """Answers a request, and returns its headers."""

    def send(start, body=b""):
        stub.will(answer(200, body))
        result = start()
        if hasattr(result, "result"):
            result.result(PATIENCE)
        return stub.requests.pop().headers

    return send


def data_requests(transport, options=OPTIONS):
    body = memoryview(b"body")
    return {
        "GetObject": (lambda: transport.get("bucket", "key"), b""),
        "PutObject": (lambda: transport.put("bucket", "key", body, options=options), b""),
        "CreateMultipartUpload": (
            lambda: transport.create_multipart_upload("bucket", "key", options=options),
            STARTED,
        ),
        "UploadPart": (lambda: transport.upload_part(UPLOAD, 1, body), b""),
        "CompleteMultipartUpload": (
            lambda: transport.complete_multipart_upload(UPLOAD, [PART], options=options),
            b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>",
        ),
        "AbortMultipartUpload": (lambda: transport.abort_multipart_upload(UPLOAD), b""),
    }


def other_requests(transport):
    """Those that move no bytes of objects."""
    source = ("source", "key")
    how = {"byte_range": ByteRange(0, 5)}
    return {
        "HeadObject": (lambda: transport.head_object("bucket", "key"), b""),
        "DeleteObject": (lambda: transport.delete_object("bucket", "key"), b""),
        "DeleteObjects": (lambda: transport.delete_objects("bucket", ["key"]), b"<DeleteResult/>"),
        "CopyObject": (lambda: transport.copy_object(*source, "bucket", "key"), COPIED),
        "UploadPartCopy": (lambda: transport.upload_part_copy(UPLOAD, 1, *source, **how), PART_COPIED),
        "GetObjectTagging": (lambda: transport.object_tags("bucket", "key"), b"<Tagging/>"),
        "ListObjectsV2": (lambda: transport.list_objects("bucket"), b"<ListBucketResult/>"),
        "ListObjectVersions": (
            lambda: transport.list_object_versions("bucket"),
            b"<ListVersionsResult/>",
        ),
        "ListMultipartUploads": (
            lambda: transport.list_multipart_uploads("bucket"),
            b"<ListMultipartUploadsResult/>",
        ),
        "ListParts": (lambda: transport.call(requests.list_parts(UPLOAD)), b"<ListPartsResult/>"),
    }


def every_request(transport, options=OPTIONS):
    return data_requests(transport, options) | other_requests(transport)


def test_options_are_sent_where_the_object_begins(connect, stub, sent):
    for operation, (start, body) in data_requests(connect(stub.endpoint)).items():
        headers = sent(start, body)
        for name, value in STORED.items():
            if operation in {"PutObject", "CreateMultipartUpload"}:
                assert (operation, name, headers.get(name)) == (operation, name, value)
            elif name != "content-type":
                assert name not in headers, operation


@pytest.mark.parametrize("options", [PutOptions(if_none_match="*"), PutOptions(if_match='"e"')], ids=repr)
def test_conditions_are_sent_where_the_object_appears(connect, stub, sent, options):
    name, value = ("if-none-match", "*") if options.if_none_match else ("if-match", '"e"')
    for operation, (start, body) in data_requests(connect(stub.endpoint), options).items():
        expected = value if operation in {"PutObject", "CompleteMultipartUpload"} else None
        assert sent(start, body).get(name) == expected, operation


def test_owner_and_payer_are_in_every_request(connect, stub, sent):
    settings = {"expected_bucket_owner": "012345678901", "requester_pays": True}
    for operation, (start, body) in every_request(connect(stub.endpoint, **settings)).items():
        headers = sent(start, body)
        assert headers["x-amz-expected-bucket-owner"] == "012345678901", operation
        assert headers["x-amz-request-payer"] == "requester"
        source_owner = "012345678901" if operation in COPIES else None
        assert headers.get("x-amz-source-expected-bucket-owner") == source_owner, operation


def test_the_customer_key_is_where_s3_asks_for_it(connect, stub, sent):
    transport = connect(stub.endpoint, sse_customer_key=the_key)
    for operation, (start, body) in every_request(transport, PutOptions()).items():
        headers = sent(start, body)
        for name, value in KEY_HEADERS.items():
            assert headers.get(f"x-amz-{name}") == (None if operation in KEYLESS else value), operation
            of_source = value if operation in COPIES else None
            assert headers.get(f"x-amz-copy-source-{name}") == of_source, operation


def test_a_customer_key_that_cannot_be_had_fails_the_transfer(connect, stub):
    transport = connect(stub.endpoint, sse_customer_key=lambda: b"too short")
    transfer = transport.get("bucket", "key")
    with pytest.raises(ConfigurationError, match="32 bytes, not 9") as caught:
        transfer.result(PATIENCE)
    assert (caught.value.operation, caught.value.bucket, caught.value.key) == ("GetObject", "bucket", "key")
    assert stub.requests == []


def test_a_customer_key_is_not_sent_in_the_open(connect, make_context):
    settings = {"sse_customer_key": the_key}
    transport = connect("http://store.invalid", **settings)
    with pytest.raises(ConfigurationError, match="https"):
        transport.get("bucket", "key").result(PATIENCE)
    with pytest.raises(ConfigurationError, match="https"):
        transport.head_object("bucket", "key")
    # Resolving is enough here; nobody answers at that address.
    session = make_context("https://store.invalid", **settings).session
    assert session.endpoint("bucket").scheme == "https"


# A real server encrypts.


def test_objects_are_read_with_the_key_they_were_written_with(wire):
    client = wire.client(sse_customer_key=the_key)
    for size in (10, 11 * 2**20):
        data = wire.content(size)
        with client.put_object(wire.bucket, "k") as writer:
            writer.write(data)
        assert client.get_object(wire.bucket, "k").read() == data
        assert client.head_object(wire.bucket, "k").size == size
        with pytest.raises(S3Error):
            wire.client().get_object(wire.bucket, "k").read()
        with pytest.raises(AccessDeniedError):
            wire.client(sse_customer_key=lambda: bytes(32)).get_object(wire.bucket, "k").read()


def test_uploads_are_stored_as_client_and_call_say(wire):
    defaults = PutOptions(
        content_type="text/x-test",
        metadata={"a": "1"},
        tags={"t": "x y"},
        server_side_encryption="AES256",
    )
    client = wire.client(put_options=defaults)
    for size in (10, 6 * 2**20):
        with client.put_object(wire.bucket, "k", options=PutOptions(metadata={"b": "2"})) as writer:
            writer.write(bytes(size))
        head = client.head_object(wire.bucket, "k")
        assert (head.content_type, head.metadata) == ("text/x-test", {"a": "1", "b": "2"})
        assert head.server_side_encryption == "AES256"
        tags = wire.direct.get_object_tagging(Bucket=wire.bucket, Key="k")["TagSet"]
        assert tags == [{"Key": "t", "Value": "x y"}]


def test_objects_are_encrypted_with_a_key_of_kms(wire):
    options = PutOptions(
        server_side_encryption="aws:kms", kms_key_id="test-key", kms_encryption_context={"team": "ü"}
    )
    client = wire.client(put_options=options)
    for size in (10, 6 * 2**20):
        with client.put_object(wire.bucket, "k") as writer:
            writer.write(wire.content(size))
        head = client.head_object(wire.bucket, "k")
        assert (head.server_side_encryption, head.kms_key_id) == ("aws:kms", "test-key")
        assert client.get_object(wire.bucket, "k").read() == wire.content(size)


LISTING = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
OBJECT = ScriptedAnswer(206, b"data", {"Content-Range": "bytes 0-3/4", "x-amz-checksum-crc32": "rfPzYw=="})
REQUIRED = {
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


def checksum_headers(stub, client):
    """Names of all headers about checksums that all kinds of requests have."""
    part = client.s3client_config.part_size
    stub.will(OBJECT, ScriptedAnswer(), ScriptedAnswer())
    assert client.get_object("bucket", "key").read() == b"data"
    client.head_object("bucket", "key")
    with client.put_object("bucket", "key") as writer:
        writer.write(b"data")
    begun = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
    done = ScriptedAnswer(
        body=b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
    )
    stub.will(ScriptedAnswer(body=begun), ScriptedAnswer(), ScriptedAnswer(), done)
    with client.put_object("bucket", "key") as writer:
        writer.write(bytes(part + 1))
    stub.will(ScriptedAnswer(body=LISTING), ScriptedAnswer(204), ScriptedAnswer(body=b"<DeleteResult/>"))
    assert [page.object_info for page in client.list_objects("bucket")] == [[]]
    client.delete_object("bucket", "key")
    client.delete_objects("bucket", ["key"])
    stub.will(ScriptedAnswer(body=COPIED))
    client.copy_object("bucket", "key", "bucket", "copy")
    names = {name for request in stub.requests for name in request.headers}
    return {name for name in names if "checksum" in name or "trailer" in name}


@pytest.mark.parametrize("transport", ["crt", "http"])
@pytest.mark.parametrize(
    ("settings", "variables", "uploads", "reads"),
    [
        ({}, {}, True, True),
        ({"checksum_algorithm": "off"}, {}, False, False),
        ({}, REQUIRED, False, False),
        ({"verify": "off"}, {}, True, False),
        ({"checksum_algorithm": "CRC32", "verify": "on"}, REQUIRED, True, True),
    ],
)
def test_checksums_are_sent_and_asked_for_as_settings_say(
    stub, monkeypatch, transport, settings, variables, uploads, reads
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = S3ClientConfig(transport=transport, part_size=5 * 2**20, credentials=_keys, **settings)
    with S3Client("us-east-1", endpoint=stub.endpoint, s3client_config=config) as client:
        found = checksum_headers(stub, client)
        assert client.s3client_config is config
    assert ("x-amz-checksum-mode" in found) == reads
    assert bool(found - {"x-amz-checksum-mode"}) == uploads


def _keys():
    return Credentials("AKID", "SECRET")


@pytest.mark.parametrize("transport", ["crt", "http"])
def test_the_bucket_may_come_before_the_host(stub, monkeypatch, transport):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, stub.endpoint)
    stub.will(OBJECT)
    config = S3ClientConfig(transport=transport, credentials=_keys, addressing_style="virtual")
    with S3Client("us-east-1", endpoint="http://storage.invalid:9000", s3client_config=config) as client:
        assert client.get_object("bucket", "key").read() == b"data"
    (request,) = stub.requests
    assert request.path == "http://bucket.storage.invalid:9000/key"
    assert request.headers["host"] == "bucket.storage.invalid:9000"

"""Requests that move no bytes of objects, by every transport that speaks HTTP."""

from __future__ import annotations

import socket

import pytest

from s3torch.core import S3Client, S3ClientConfig, requests
from s3torch.core.errors import (
    AccessDeniedError,
    NoCredentialsError,
    NotFoundError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    ServerError,
    ThrottledError,
    TransportError,
    TruncatedError,
    WrongRegionError,
)
from s3torch.core.models import (
    Credentials,
    DeleteFailure,
    MultipartUpload,
    ObjectInfo,
    ObjectVersion,
    RestoreStatus,
    UploadInfo,
)
from s3torch.core.ranges import ByteRange
from s3torch.testing.servers import start_seaweedfs

LISTING = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
  <Name>bucket</Name><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
  <NextContinuationToken>next token</NextContinuationToken>
  <Contents>
    <Key>a%20b%2Bc+d%0A%25</Key><LastModified>2024-01-02T03:04:05.678Z</LastModified>
    <ETag>&quot;e1&quot;</ETag><Size>3</Size><StorageClass>GLACIER</StorageClass>
    <RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress>
      <RestoreExpiryDate>2024-02-02T00:00:00Z</RestoreExpiryDate></RestoreStatus>
  </Contents>
  <Contents>
    <Key>b</Key><LastModified>2024-01-02T03:04:05.000Z</LastModified>
    <ETag>&quot;e2&quot;</ETag><Size>0</Size><StorageClass>DEEP_ARCHIVE</StorageClass>
    <RestoreStatus><IsRestoreInProgress>true</IsRestoreInProgress></RestoreStatus>
  </Contents>
  <CommonPrefixes><Prefix>c%20d/</Prefix></CommonPrefixes>
</ListBucketResult>"""

VERSIONS = b"""<ListVersionsResult><EncodingType>url</EncodingType>
  <Version><Key>k%20</Key><VersionId>v1</VersionId><IsLatest>true</IsLatest>
    <LastModified>2024-01-02T03:04:05Z</LastModified><ETag>"e"</ETag><Size>3</Size></Version>
</ListVersionsResult>"""

UPLOADS = b"""<ListMultipartUploadsResult><EncodingType>url</EncodingType>
  <Upload><Key>k%20</Key><UploadId>u1</UploadId><Initiated>2024-01-02T03:04:05Z</Initiated></Upload>
</ListMultipartUploadsResult>"""

FAILURES = b"""<?xml version="1.0" encoding="UTF-8"?>
<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
  <Error><Key>a</Key><Code>AccessDenied</Code><Message>no</Message></Error>
</DeleteResult>"""

UPLOAD = MultipartUpload("bucket", "key", "u1")
COPIED = b"<CopyObjectResult><ETag>e</ETag></CopyObjectResult>"
PART_COPIED = b"<CopyPartResult><ETag>e</ETag></CopyPartResult>"
RESULTS = {
    "ListObjectsV2": LISTING.encode(),
    "ListObjectVersions": VERSIONS,
    "ListMultipartUploads": UPLOADS,
    "ListParts": b"<ListPartsResult/>",
    "DeleteObjects": b"<DeleteResult/>",
    "CopyObject": COPIED,
    "UploadPartCopy": PART_COPIED,
    "GetObjectTagging": b"<Tagging><TagSet/></Tagging>",
}


def every_call(transport):
    """All operations but GET and PUT of bytes, by the name of each."""
    part = {"byte_range": ByteRange(0, 5)}
    return {
        "HeadObject": lambda: transport.head_object("bucket", "key"),
        "ListObjectsV2": lambda: transport.list_objects("bucket"),
        "ListObjectVersions": lambda: transport.list_object_versions("bucket"),
        "ListMultipartUploads": lambda: transport.list_multipart_uploads("bucket"),
        "ListParts": lambda: transport.call(requests.list_parts(UPLOAD)),
        "DeleteObject": lambda: transport.delete_object("bucket", "key"),
        "DeleteObjects": lambda: transport.delete_objects("bucket", ["key"]),
        "CopyObject": lambda: transport.copy_object("from", "key", "bucket", "key"),
        "UploadPartCopy": lambda: transport.upload_part_copy(UPLOAD, 1, "from", "key", **part),
        "GetObjectTagging": lambda: transport.object_tags("bucket", "key"),
    }


@pytest.fixture
def transport(connect, stub):
    return connect(stub.endpoint)


def test_listing(transport, stub, answer):
    stub.will(answer(200, LISTING.encode()))
    page = transport.list_objects("bucket", prefix="p q", delimiter="/", max_keys=3, start_after="a+b")
    assert page.object_info == [
        ObjectInfo("a b+c d\n%", '"e1"', 3, 1704164645, "GLACIER", RestoreStatus(False, 1706832000)),
        ObjectInfo("b", '"e2"', 0, 1704164645, "DEEP_ARCHIVE", RestoreStatus(True)),
    ]
    assert page.common_prefixes == ["c d/"]
    assert page.continuation_token == "next token"
    (request,) = stub.requests
    assert request.headers["x-amz-optional-object-attributes"] == "RestoreStatus"
    for parameter in (
        "prefix=p%20q",
        "delimiter=%2F",
        "max-keys=3",
        "start-after=a%2Bb",
        "encoding-type=url",
    ):
        assert parameter in request.path


@pytest.mark.parametrize("body", [b"", b"no XML", b"<Other/>", LISTING.encode()[:-30]], ids=len)
def test_an_answer_that_is_no_listing(transport, stub, answer, body):
    stub.will(*[answer(200, body)] * 5)
    with pytest.raises(S3Error) as caught:
        transport.list_objects("bucket")
    assert (caught.value.operation, caught.value.bucket) == ("ListObjectsV2", "bucket")


def test_a_listing_of_a_store_with_habits_of_its_own(transport, stub, answer):
    body = LISTING.replace(' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', "").replace("000Z", "000")
    stub.will(answer(200, body.replace("<EncodingType>url</EncodingType>", "").encode()))
    page = transport.list_objects("bucket")
    assert [info.key for info in page.object_info] == ["a%20b%2Bc+d%0A%25", "b"]
    assert [info.last_modified for info in page.object_info] == [1704164645] * 2


def test_a_long_listing_is_read_to_its_end(transport, stub, answer):
    entry = (
        "<Contents><Key>{}</Key><LastModified>2024-01-02T03:04:05Z</LastModified><Size>1</Size></Contents>"
    )
    keys = [f"{number:04}-{'n' * 1000}" for number in range(1000)]
    body = (
        "<ListBucketResult><IsTruncated>false</IsTruncated>"
        + "".join(map(entry.format, keys))
        + "</ListBucketResult>"
    )
    stub.will(answer(200, body.encode()))
    assert [info.key for info in transport.list_objects("bucket").object_info] == keys


def test_versions_and_uploads(transport, stub, answer):
    stub.will(answer(200, VERSIONS), answer(200, UPLOADS))
    (version,) = transport.list_object_versions("bucket", marker=("a b", "v0")).versions
    assert version == ObjectVersion(
        key="k ", version_id="v1", is_latest=True, last_modified=1704164645, etag='"e"', size=3
    )
    (upload,) = transport.list_multipart_uploads("bucket", marker=("a b", "u0")).uploads
    assert upload == UploadInfo("k ", "u1", 1704164645)
    for request, second in zip(stub.requests, ("version-id-marker=v0", "upload-id-marker=u0"), strict=True):
        assert request.method == "GET"
        assert "key-marker=a%20b" in request.path
        assert second in request.path


def test_head(transport, stub, answer):
    stub.will(
        answer(
            200,
            b"",
            {
                "Content-Length": "12345",
                "Last-Modified": "Tue, 02 Jan 2024 03:04:05 GMT",
                "x-amz-storage-class": "GLACIER",
                "x-amz-restore": 'ongoing-request="false", expiry-date="Fri, 02 Feb 2024 00:00:00 GMT"',
                "x-amz-version-id": "v1",
                "x-amz-meta-Colour": "blue",
                "x-amz-checksum-crc64nvme": "AAAAAAAAAAA=",
                "x-amz-checksum-type": "FULL_OBJECT",
            },
        )
    )
    head = transport.head_object("bucket", "key", version_id="v1")
    assert (head.size, head.last_modified, head.version_id) == (12345, 1704164645, "v1")
    assert head.restore_status == RestoreStatus(False, 1706832000)
    assert (head.metadata, head.checksums) == ({"colour": "blue"}, {"CRC64NVME": "AAAAAAAAAAA="})
    assert stub.requests[0].method == "HEAD"
    assert "versionId=v1" in stub.requests[0].path


def test_a_head_that_finds_nothing(transport, stub, answer):
    stub.will(answer(404, b"", {"x-amz-request-id": "R1"}))
    with pytest.raises(NotFoundError) as caught:
        transport.head_object("bucket", "key")
    assert (caught.value.operation, caught.value.key, caught.value.request_id) == ("HeadObject", "key", "R1")
    assert len(stub.requests) == 1


def test_a_head_in_another_region(transport, stub, answer):
    stub.will(answer(400, b"", {"x-amz-bucket-region": "eu-west-1"}))
    with pytest.raises(WrongRegionError) as caught:
        transport.head_object("bucket", "key")
    assert caught.value.expected_region == "eu-west-1"


def test_keys_that_could_not_be_deleted(transport, stub, answer):
    stub.will(answer(200, FAILURES))
    assert transport.delete_objects("bucket", ["a", "b<&>"]) == [DeleteFailure("a", "AccessDenied", "no")]
    (request,) = stub.requests
    assert (request.method, request.path) == ("POST", "/bucket/?delete=")
    assert b"<Quiet>true</Quiet>" in request.body
    assert b"<Key>b&lt;&amp;&gt;</Key>" in request.body


def test_copy_is_one_request(transport, stub, answer):
    stub.will(answer(200, b"<CopyObjectResult><ETag>e</ETag></CopyObjectResult>"))
    transport.copy_object("from", "a b+ü", "to", "key")
    (request,) = stub.requests
    assert request.headers["x-amz-copy-source"] == "from/a%20b%2B%C3%BC"


def test_a_copy_that_fails_late_is_an_error(transport, stub, answer, refusal):
    late = answer(200, b"\n" + refusal(0, "InternalError").body)
    stub.will(late, answer(200, COPIED))
    transport.copy_object("from", "key", "to", "key")
    stub.will(*[late] * 2)
    with pytest.raises(ServerError) as caught:
        transport.copy_object("from", "key", "to", "key")
    assert (caught.value.code, caught.value.operation) == ("InternalError", "CopyObject")
    assert caught.value.attempts == 2


def test_busy_store_is_asked_again(transport, stub, answer, refusal):
    stub.will(refusal(503, "SlowDown"), answer(200, LISTING.encode()))
    assert len(transport.list_objects("bucket").object_info) == 2
    stub.will(*[refusal(503, "SlowDown")] * 2)
    with pytest.raises(ThrottledError) as caught:
        transport.list_objects("bucket")
    assert (caught.value.operation, caught.value.bucket, caught.value.status) == (
        "ListObjectsV2",
        "bucket",
        503,
    )


def test_every_operation_is_tried_again_and_told(connect, stub, answer, refusal):
    told = []
    transport = connect(stub.endpoint, max_attempts=2, on_retry=lambda **facts: told.append(facts))
    for operation, call in every_call(transport).items():
        stub.will(refusal(503, "SlowDown"), answer(200, RESULTS.get(operation, b"")))
        call()
    assert [facts["operation"] for facts in told] == list(every_call(transport))
    assert {facts["attempt"] for facts in told} == {1}
    assert {type(facts["error"]) for facts in told} == {ThrottledError}
    assert len(stub.requests) == 2 * len(told)


def test_a_body_that_was_sent_is_sent_again(transport, stub, answer, refusal):
    stub.will(refusal(503, "SlowDown"), answer(200, b"<DeleteResult/>"))
    assert transport.delete_objects("bucket", ["a"]) == []
    first, second = stub.requests
    assert first.body == second.body != b""


def test_expired_credentials_are_renewed(connect, stub, answer, refusal):
    asked = []

    def credentials():
        asked.append(None)
        return Credentials(f"AKID{len(asked)}", "SECRET", f"token{len(asked)}")

    transport = connect(stub.endpoint, credentials=credentials)
    for operation, call in every_call(transport).items():
        before = len(asked)
        stub.will(refusal(400, "ExpiredToken"), answer(200, RESULTS.get(operation, b"")))
        # The answer to a HEAD has no body to tell it.
        if operation == "HeadObject":
            stub.answers.popleft()
        call()
        assert len(asked) > before or operation == "HeadObject"
        tokens = [request.headers["x-amz-security-token"] for request in stub.requests]
        assert len(set(tokens)) == len(tokens), operation
        stub.requests.clear()
    assert not stub.answers


def test_an_answer_that_breaks_off_is_asked_for_again(transport, stub, answer):
    stub.will(answer(200, LISTING.encode(), cut=100), answer(200, LISTING.encode()))
    assert len(transport.list_objects("bucket").object_info) == 2
    stub.will(*[answer(200, LISTING.encode(), cut=100)] * 2)
    with pytest.raises((TruncatedError, S3ConnectionError)):
        transport.list_objects("bucket")
    assert len(stub.requests) == 4


def test_nobody_listens(connect):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        transport = connect(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(S3ConnectionError) as caught:
            transport.head_object("bucket", "key")
    assert caught.value.attempts == 2


def test_errors_tell_how_often_it_was_tried(connect, stub, answer, refusal):
    transport = connect(stub.endpoint, max_attempts=3, read_timeout=0.3)
    stub.will(refusal(503, "SlowDown"), *[answer(stall=-1)] * 2)
    with pytest.raises(S3TimeoutError) as caught:
        transport.head_object("bucket", "key")
    assert caught.value.attempts == len(stub.requests) == 3
    stub.will(refusal(500, "InternalError"), refusal(403, "AccessDenied"))
    with pytest.raises(AccessDeniedError) as caught:
        transport.delete_object("bucket", "key")
    assert caught.value.attempts == 2


def test_without_credentials_nothing_is_sent(connect, stub):
    for call in every_call(connect(stub.endpoint, keys=None)).values():
        with pytest.raises(NoCredentialsError) as caught:
            call()
        assert caught.value.attempts is None
    assert stub.requests == []


def test_reader_may_not_write(connect, seaweedfs):
    bucket = seaweedfs.create_bucket()
    reader = connect(seaweedfs.endpoint, keys=(seaweedfs.reader.access_key, seaweedfs.reader.secret_key))
    assert reader.list_objects(bucket).object_info == []
    with pytest.raises(AccessDeniedError) as caught:
        reader.delete_object(bucket, "key")
    assert (caught.value.code, caught.value.status) == ("AccessDenied", 403)


@pytest.fixture(params=["crt", "http"])
def make_client(request, monkeypatch):
    """Makes clients of a store, as users do."""
    clients = []
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    def make(endpoint):
        config = S3ClientConfig(transport=request.param, max_attempts=1, connect_timeout=5)
        clients.append(S3Client("us-east-1", endpoint=endpoint, s3client_config=config))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_a_client_goes_on_after_close(make_client, stub, answer):
    client = make_client(stub.endpoint)
    body = LISTING.replace("<IsTruncated>true", "<IsTruncated>false").encode()
    stub.will(*[answer(200, body)] * 2)
    for _ in range(2):
        assert list(client.list_objects("bucket"))
        client.close()


def test_they_take_the_proxy(make_client, stub, answer, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, stub.endpoint)
    stub.will(answer(200, b"", {"Content-Length": "4"}), answer(204))
    client = make_client("http://storage.invalid:9000")
    assert client.head_object("bucket", "key").size == 4
    client.delete_object("bucket", "key")
    assert [(request.method, request.path) for request in stub.requests] == [
        ("HEAD", "http://storage.invalid:9000/bucket/key"),
        ("DELETE", "http://storage.invalid:9000/bucket/key"),
    ]


def test_they_check_certificates(make_client, monkeypatch):
    with start_seaweedfs(tls=True) as server:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(server.ca_file))
        bucket = server.create_bucket()
        client = make_client(server.endpoint)
        assert client.delete_objects(bucket, ["a"]) == []
        assert not client.exists(bucket, "a")
        monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/bundle.pem")
        with pytest.raises(TransportError, match="/no/such/bundle.pem"):
            make_client(server.endpoint).head_object(bucket, "a")

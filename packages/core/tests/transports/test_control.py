from __future__ import annotations

import socket

import pytest
from s3torch.core.control import BotoControl

from s3torch.core.errors import (
    AccessDeniedError,
    ConfigurationError,
    NoCredentialsError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    ThrottledError,
)
from s3torch.core.models import DeleteFailure, ObjectInfo, RestoreStatus

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

FAILURES = """<?xml version="1.0" encoding="UTF-8"?>
<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
  <Error><Key>a</Key><Code>AccessDenied</Code><Message>no</Message></Error>
</DeleteResult>"""


@pytest.fixture
def connect(make_context):
    controls = []

    def make(endpoint, **settings):
        controls.append(BotoControl(make_context(endpoint, **settings).session))
        return controls[-1]

    yield make
    for control in controls:
        control.close()


@pytest.fixture
def control(connect, stub):
    return connect(stub.endpoint)


def test_listing(control, stub, answer):
    stub.will(answer(200, LISTING.encode()))
    page = control.list_objects("bucket", prefix="p q", delimiter="/", max_keys=3, start_after="a+b")
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
def test_an_answer_that_is_no_listing(control, stub, answer, body):
    stub.will(*[answer(200, body)] * 5)
    with pytest.raises(S3Error) as caught:
        control.list_objects("bucket")
    assert (caught.value.operation, caught.value.bucket) == ("ListObjectsV2", "bucket")


def test_a_listing_of_a_store_with_habits_of_its_own(control, stub, answer):
    body = LISTING.replace(' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', "").replace("000Z", "000")
    stub.will(answer(200, body.replace("<EncodingType>url</EncodingType>", "").encode()))
    page = control.list_objects("bucket")
    assert [info.key for info in page.object_info] == ["a%20b%2Bc+d%0A%25", "b"]
    assert [info.last_modified for info in page.object_info] == [1704164645] * 2


def test_head(control, stub, answer):
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
    head = control.head_object("bucket", "key", version_id="v1")
    assert (head.size, head.last_modified, head.version_id) == (12345, 1704164645, "v1")
    assert head.restore_status == RestoreStatus(False, 1706832000)
    assert (head.metadata, head.checksums) == ({"colour": "blue"}, {"CRC64NVME": "AAAAAAAAAAA="})
    assert stub.requests[0].method == "HEAD"
    assert "versionId=v1" in stub.requests[0].path


def test_keys_that_could_not_be_deleted(control, stub, answer):
    stub.will(answer(200, FAILURES.encode()))
    assert control.delete_objects("bucket", ["a", "b<&>"]) == [DeleteFailure("a", "AccessDenied", "no")]
    (request,) = stub.requests
    assert b"<Quiet>true</Quiet>" in request.body
    assert b"<Key>b&lt;&amp;&gt;</Key>" in request.body


def test_copy_is_one_request(control, stub, answer):
    stub.will(answer(200, b"<CopyObjectResult><ETag>e</ETag></CopyObjectResult>"))
    control.copy_object("from", "a b+ü", "to", "key")
    (request,) = stub.requests
    assert request.headers["x-amz-copy-source"] == "from/a%20b%2B%C3%BC"


def test_busy_store_is_asked_again(control, stub, answer, refusal):
    stub.will(refusal(503, "SlowDown"), answer(200, LISTING.encode()))
    assert len(control.list_objects("bucket").object_info) == 2
    stub.will(*[refusal(503, "SlowDown")] * 2)
    with pytest.raises(ThrottledError) as caught:
        control.list_objects("bucket")
    assert (caught.value.operation, caught.value.bucket, caught.value.status) == (
        "ListObjectsV2",
        "bucket",
        503,
    )


def test_nobody_listens(connect):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        control = connect(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(S3ConnectionError) as caught:
            control.head_object("bucket", "key")
    assert caught.value.attempts == 2


def test_errors_tell_how_often_it_was_tried(connect, stub, answer, refusal):
    control = connect(stub.endpoint, max_attempts=3, read_timeout=0.2)
    stub.will(refusal(503, "SlowDown"), *[answer(stall=-1)] * 2)
    with pytest.raises(S3TimeoutError) as caught:
        control.head_object("bucket", "key")
    assert caught.value.attempts == len(stub.requests) == 3
    stub.will(refusal(500, "InternalError"), refusal(403, "AccessDenied"))
    with pytest.raises(AccessDeniedError) as caught:
        control.delete_object("bucket", "key")
    assert caught.value.attempts == 2


def test_what_is_wrong_before_anything_is_sent(connect, stub):
    with pytest.raises(ConfigurationError):
        connect(stub.endpoint).list_objects("no bucket/name")
    with pytest.raises(NoCredentialsError) as caught:
        connect(stub.endpoint, keys=None).delete_object("bucket", "key")
    assert caught.value.attempts is None
    assert stub.requests == []


def test_reader_may_not_write(connect, seaweedfs):
    bucket = seaweedfs.create_bucket()
    reader = connect(seaweedfs.endpoint, keys=(seaweedfs.reader.access_key, seaweedfs.reader.secret_key))
    assert reader.list_objects(bucket).object_info == []
    with pytest.raises(AccessDeniedError) as caught:
        reader.delete_object(bucket, "key")
    assert (caught.value.code, caught.value.status) == ("AccessDenied", 403)


def test_it_goes_on_after_close(control, stub, answer):
    control.close()
    stub.will(*[answer(200, LISTING.encode())] * 2)
    for _ in range(2):
        assert control.list_objects("bucket").object_info
        control.close()

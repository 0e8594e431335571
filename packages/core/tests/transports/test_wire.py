"""What the transports that speak HTTP do on the wire, and when it fails."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime, timedelta

import pytest

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.errors import (
    AccessDeniedError,
    ChecksumMismatchError,
    ConflictError,
    NoCredentialsError,
    NotFoundError,
    S3ConnectionError,
    S3Error,
    ServerError,
    ThrottledError,
    TransferCancelledError,
    TruncatedError,
    WrongRegionError,
)
from s3torch.core.models import Credentials, MultipartUpload, PutOptions
from s3torch.core.ranges import ByteRange

PATIENCE = 30
DATA = bytes(range(256)) * 4000


@pytest.fixture
def transport(connect, stub):
    return connect(stub.endpoint)


def part_of(answer, start, stop, **how):
    headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(DATA)}"}
    return answer(206, DATA[start:stop], headers, **how)


def get_range(transport, start=100, stop=900_000, buffer=None):
    into = memoryview(buffer) if buffer is not None else None
    return transport.get("bucket", "key", byte_range=ByteRange(start, stop), into=into)


@pytest.mark.parametrize("cut", [0, 1, 500_000])
@pytest.mark.parametrize("ranged", [True, False])
def test_body_that_breaks_off_is_fetched_again(transport, stub, answer, cut, ranged):
    buffer = bytearray(len(DATA))
    if ranged:
        stub.will(part_of(answer, 100, 900_000, cut=cut), part_of(answer, 100, 900_000))
        result = get_range(transport, buffer=buffer).result(PATIENCE)
        assert buffer[: result.length] == DATA[100:900_000]
    else:
        stub.will(answer(200, DATA, cut=cut), answer(200, DATA))
        assert transport.get("bucket", "key").result(PATIENCE).data == DATA
    assert len(stub.requests) == 2


def test_body_that_always_breaks_off_is_an_error(transport, stub, answer):
    stub.will(*[part_of(answer, 100, 900_000, cut=1000)] * 5)
    with pytest.raises((S3ConnectionError, TruncatedError)) as caught:
        get_range(transport).result(PATIENCE)
    assert (caught.value.operation, caught.value.bucket, caught.value.key) == ("GetObject", "bucket", "key")
    assert len(stub.requests) == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": f"bytes 0-899899/{len(DATA)}"},
        {"Content-Range": f"bytes 100-899998/{len(DATA)}"},
        {},
    ],
    ids=["other start", "other end", "no range"],
)
def test_other_bytes_than_asked_for_are_an_error(transport, stub, answer, headers):
    stub.will(*[answer(206, DATA[: 900_000 - 100], headers)] * 5)
    with pytest.raises(S3Error):
        get_range(transport).result(PATIENCE)


@pytest.mark.parametrize("size", [0, 5])
@pytest.mark.parametrize("buffered", [True, False])
def test_whole_object_may_answer_a_range_from_its_start(connect, stub, answer, size, buffered):
    """As SeaweedFS answers for a key that ends in a slash."""
    transport = connect(stub.endpoint, max_attempts=1)
    stub.will(*[answer(200, b"whole"[:size])] * 2)
    buffer = bytearray(100)
    result = get_range(transport, 0, 100, buffer if buffered else None).result(PATIENCE)
    assert (result.length, result.head.size) == (size, size)
    assert (buffer[:size] if buffered else result.data) == b"whole"[:size]


@pytest.mark.parametrize("buffered", [True, False])
def test_longer_object_does_not_answer_a_range(transport, stub, answer, buffered):
    stub.will(*[answer(200, DATA)] * 5)
    with pytest.raises(TruncatedError) as caught:
        get_range(transport, 0, 100, bytearray(100) if buffered else None).result(PATIENCE)
    assert caught.value.key == "key"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (500, "InternalError", ServerError),
        (502, "BadGateway", ServerError),
        (503, "SlowDown", ThrottledError),
        (503, "ServiceUnavailable", ThrottledError),
        (504, "GatewayTimeout", ServerError),
    ],
)
def test_server_that_fails_is_asked_again(transport, stub, answer, refusal, status, code, expected):
    stub.will(refusal(status, code), part_of(answer, 100, 900_000))
    assert get_range(transport).result(PATIENCE).data == DATA[100:900_000]
    stub.will(*[refusal(status, code)] * 5)
    with pytest.raises(expected):
        get_range(transport).result(PATIENCE)
    assert len(stub.requests) == 4


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "ExpiredToken", AccessDeniedError),
        (400, "BadDigest", ChecksumMismatchError),
        (403, "SignatureDoesNotMatch", AccessDeniedError),
        (404, "NoSuchKey", NotFoundError),
        (409, "ConditionalRequestConflict", ConflictError),
        (501, "NotImplemented", ServerError),
    ],
)
def test_refusal_is_final(transport, stub, refusal, status, code, expected):
    stub.will(*[refusal(status, code, **{"x-amz-request-id": "R1", "x-amz-id-2": "H1"})] * 5)
    with pytest.raises(expected) as caught:
        transport.put("bucket", "key", memoryview(b"body"), options=PutOptions()).result(PATIENCE)
    error = caught.value
    assert (error.status, error.code) == (status, code)
    assert (error.request_id, error.host_id) == ("R1", "H1")
    assert len(stub.requests) == 1


def test_body_is_sent_again_from_its_start(transport, stub, answer, refusal):
    body = DATA * 3
    stub.will(refusal(503, "SlowDown"), answer())
    transport.put("bucket", "key", memoryview(body), options=PutOptions()).result(PATIENCE)
    assert [request.body for request in stub.requests] == [body, body]


@pytest.mark.promise(7)
def test_completion_that_fails_late_is_an_error(transport, stub, answer, refusal):
    stub.will(*[answer(200, refusal(0, "InternalError").body)] * 5)
    upload = MultipartUpload("bucket", "key", "upload")
    transfer = transport.complete_multipart_upload(upload, [], options=PutOptions())
    with pytest.raises(S3Error):
        transfer.result(PATIENCE)


def test_wrong_region(connect, stub, refusal):
    transport = connect(stub.endpoint, max_attempts=1)
    stub.will(*[refusal(400, "AuthorizationHeaderMalformed", **{"x-amz-bucket-region": "eu-west-1"})] * 5)
    with pytest.raises(WrongRegionError) as caught:
        get_range(transport).result(PATIENCE)
    assert caught.value.expected_region == "eu-west-1"


def test_nobody_listens(connect):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        transport = connect(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(S3ConnectionError) as caught:
            get_range(transport).result(PATIENCE)
    assert caught.value.key == "key"


@pytest.mark.parametrize("stall", [-1, 1000])
@pytest.mark.parametrize("how", ["cancel", "close"])
def test_stalled_get_can_be_cancelled(transport, stub, answer, stall, how):
    stub.will(part_of(answer, 100, 900_000, stall=stall))
    buffer = bytearray(900_000)
    transfer = get_range(transport, buffer=buffer)
    while not stub.requests:
        time.sleep(0.01)
    begin = time.monotonic()
    assert transfer.cancel() if how == "cancel" else transport.close() is None
    with pytest.raises(TransferCancelledError):
        transfer.result(PATIENCE)
    assert time.monotonic() - begin < 3


@pytest.mark.promise(4)
@pytest.mark.parametrize("name", ["crt", "http"])
def test_a_fork_leaves_the_connections_of_the_parent(name, stub, answer, in_child):
    stub.will(*[answer(206, b"data", {"Content-Range": "bytes 0-3/4"})] * 3)
    keys = Credentials("AKID", "SECRET")
    config = S3ClientConfig(transport=name, credentials=lambda: keys, verify="off")
    with S3Client("us-east-1", endpoint=stub.endpoint, s3client_config=config) as client:
        for read in (lambda call: call(), in_child, lambda call: call()):
            assert read(lambda: client.get_object("bucket", "key").read()) == b"data"
    assert stub.connections == 2  # The child has made its own.


def test_requests_say_who_asks(connect, stub, answer):
    transport = connect(stub.endpoint, requester_pays=True)
    stub.will(answer(), answer())
    transport.get("bucket", "key").result(PATIENCE)
    transport.put("bucket", "key", memoryview(b"body"), options=PutOptions()).result(PATIENCE)
    for request in stub.requests:
        assert "agent/1" in request.headers["user-agent"]
        assert request.headers["x-amz-request-payer"] == "requester"
        assert "Credential=AKID/" in request.headers["authorization"]


def test_anonymous_requests_are_not_signed(connect, stub, answer):
    transport = connect(stub.endpoint, unsigned=True, keys=None)
    stub.will(answer(200, b"public"))
    assert transport.get("bucket", "key").result(PATIENCE).data == b"public"
    assert "authorization" not in stub.requests[0].headers


def test_new_credentials_are_taken_up(connect, stub, answer):
    asked = []

    def credentials():
        asked.append(None)
        soon = datetime.now(UTC) + timedelta(minutes=5)
        return Credentials(f"AKID{len(asked)}", "SECRET", f"token{len(asked)}", soon)

    transport = connect(stub.endpoint, credentials=credentials)
    stub.will(answer(), answer())
    for _ in range(2):
        transport.get("bucket", "key").result(PATIENCE)
    first, second = (request.headers for request in stub.requests)
    assert first["x-amz-security-token"] != second["x-amz-security-token"]
    assert first["authorization"].partition("/")[0] != second["authorization"].partition("/")[0]


def test_no_credentials(connect, stub):
    transport = connect(stub.endpoint, keys=None)
    with pytest.raises(NoCredentialsError) as caught:
        transport.get("bucket", "key").result(PATIENCE)
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)
    assert caught.value.key == "key"


def test_credentials_that_cannot_be_had(connect, stub):
    def credentials():
        raise OSError("the vault is sealed")

    transport = connect(stub.endpoint, credentials=credentials)
    with pytest.raises(NoCredentialsError, match="the vault is sealed"):
        transport.get("bucket", "key").result(PATIENCE)


def test_wrong_secret(connect, seaweedfs):
    bucket = seaweedfs.create_bucket()
    transport = connect(seaweedfs.endpoint, keys=(seaweedfs.access_key, "wrong"))
    for transfer in (
        transport.get(bucket, "key"),
        transport.put(bucket, "key", memoryview(b""), options=PutOptions()),
    ):
        with pytest.raises(AccessDeniedError) as caught:
            transfer.result(PATIENCE)
        assert (caught.value.code, caught.value.status) == ("SignatureDoesNotMatch", 403)


def test_unknown_access_key(connect, seaweedfs):
    bucket = seaweedfs.create_bucket()
    with pytest.raises(AccessDeniedError) as caught:
        connect(seaweedfs.endpoint, keys=("nobody", "wrong")).get(bucket, "key").result(PATIENCE)
    assert caught.value.code == "InvalidAccessKeyId"


def test_anonymous_requests_may_be_refused(connect, seaweedfs):
    bucket = seaweedfs.create_bucket()
    with pytest.raises(AccessDeniedError) as caught:
        connect(seaweedfs.endpoint, unsigned=True, keys=None).get(bucket, "key").result(PATIENCE)
    assert caught.value.status == 403

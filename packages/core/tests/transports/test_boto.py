from __future__ import annotations

import threading
import time
from functools import partial

import pytest
from botocore import exceptions as boto
from s3torch.core.transports._boto_errors import error_from_boto
from s3torch.core.transports.boto import BotoTransport
from urllib3.exceptions import ProtocolError

from s3torch.core.errors import (
    ChecksumMismatchError,
    ConfigurationError,
    NoCredentialsError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    ThrottledError,
    TransferCancelledError,
    TruncatedError,
    error_from_response,
)
from s3torch.core.models import PutOptions
from s3torch.core.ranges import MIB

PATIENCE = 30


@pytest.fixture
def connect(connect_with):
    return partial(connect_with, BotoTransport)


@pytest.fixture
def threads():
    """A function that tells the threads of this test's transports; those of others may still be ending."""
    before = set(threading.enumerate())

    def own():
        new = set(threading.enumerate()) - before
        return [thread for thread in new if thread.name.startswith("s3torch-boto")]

    return own


def test_creating_one_starts_nothing(connect, stub, threads):
    connect(stub.endpoint)
    assert threads() == []


def test_threads_are_bounded_and_end(connect, stub, answer, threads):
    transport = connect(stub.endpoint, max_connections=11)
    stub.will(*[answer(200, b"x")] * 50)
    transfers = [transport.get("bucket", "key") for _ in range(50)]
    assert {transfer.result(PATIENCE).data for transfer in transfers} == {b"x"}
    assert 0 < len(threads()) <= 11
    transport.close()
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == []


def test_tries_are_counted_over_failed_responses_and_bodies(connect, stub, answer, refusal):
    transport = connect(stub.endpoint, max_attempts=3)
    busy = refusal(429, "TooManyRequests")
    stub.will(answer(200, b"whole", cut=2), *[busy] * 5)
    with pytest.raises((ThrottledError, TruncatedError)):
        transport.get("bucket", "key").result(PATIENCE)
    assert len(stub.requests) == 3


@pytest.mark.parametrize("code", ["SlowDown", "TooManyRequests", "SomethingNew"])
def test_throttling_is_tried_again(connect, stub, answer, refusal, code):
    stub.will(refusal(429, code), answer(200, b"x"))
    assert connect(stub.endpoint).get("bucket", "key").result(PATIENCE).data == b"x"


def test_no_answer_in_time(connect, stub, answer):
    stub.will(*[answer(stall=-1)] * 2)
    with pytest.raises(S3TimeoutError) as caught:
        connect(stub.endpoint, read_timeout=0.2).get("bucket", "key").result(PATIENCE)
    assert caught.value.operation == "GetObject"
    assert len(stub.requests) == 2


def test_body_that_stalls(connect, stub, answer):
    stub.will(*[answer(200, b"whole", stall=2)] * 2)
    with pytest.raises(S3TimeoutError):
        connect(stub.endpoint, read_timeout=0.2).get("bucket", "key").result(PATIENCE)


def test_small_bodies_go_without_a_round_trip_before(connect, stub, answer):
    stub.will(answer(), answer())
    transport = connect(stub.endpoint)
    for size in (MIB, MIB + 1):
        transport.put("bucket", "key", memoryview(bytes(size)), options=PutOptions()).result(PATIENCE)
    assert ["expect" in request.headers for request in stub.requests] == [False, True]
    assert [len(request.body) for request in stub.requests] == [MIB, MIB + 1]


def test_cancelled_while_waiting_to_try_again(connect, stub, refusal):
    transport = connect(stub.endpoint, max_attempts=10)
    stub.will(*[refusal(503, "SlowDown")] * 10)
    transfer = transport.get("bucket", "key")
    while not stub.requests:
        time.sleep(0.01)
    transfer.cancel()
    with pytest.raises(TransferCancelledError):
        transfer.result(1)


def test_callback_may_cancel_others_and_close(connect, stub, answer):
    transport = connect(stub.endpoint)
    stub.will(answer(200, b"x"), answer(stall=-1))
    first = transport.get("bucket", "key")
    first.result(PATIENCE)
    second = transport.get("bucket", "key")
    ended = threading.Event()

    def end(_):
        transport.close()
        ended.set()

    second.add_done_callback(end)
    second.cancel()
    assert ended.wait(PATIENCE)


@pytest.mark.parametrize(("bucket", "key"), [("no bucket/name", "key"), ("bucket", "")])
def test_names_that_cannot_be(connect, stub, bucket, key):
    with pytest.raises(ConfigurationError):
        connect(stub.endpoint).get(bucket, key).result(PATIENCE)
    assert stub.requests == []


def client_error(status, code, headers=None):
    return boto.ClientError(
        {
            "Error": {"Code": code, "Message": "why"},
            "ResponseMetadata": {
                "HTTPStatusCode": status,
                "HTTPHeaders": headers or {},
                "RequestId": "R",
                "HostId": "H",
            },
        },
        "GetObject",
    )


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (boto.NoCredentialsError(), NoCredentialsError),
        (boto.PartialCredentialsError(provider="p", cred_var="v"), NoCredentialsError),
        (boto.CredentialRetrievalError(provider="p", error_msg="e"), NoCredentialsError),
        (boto.UnauthorizedSSOTokenError(), NoCredentialsError),
        (boto.EndpointConnectionError(endpoint_url="u", error="e"), S3ConnectionError),
        (boto.ConnectionClosedError(endpoint_url="u"), S3ConnectionError),
        (boto.SSLError(endpoint_url="u", error="e"), S3ConnectionError),
        (boto.ProxyConnectionError(proxy_url="u", error="e"), S3ConnectionError),
        (boto.HTTPClientError(error="e"), S3ConnectionError),
        (boto.ResponseStreamingError(error=ProtocolError("reset")), S3ConnectionError),
        (boto.ReadTimeoutError(endpoint_url="u"), S3TimeoutError),
        (boto.ConnectTimeoutError(endpoint_url="u"), S3TimeoutError),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), TruncatedError),
        (boto.FlexibleChecksumError(error_msg="e"), ChecksumMismatchError),
        (boto.ParamValidationError(report="r"), ConfigurationError),
        (boto.NoRegionError(), ConfigurationError),
        (boto.UnsupportedS3ArnError(arn="a"), ConfigurationError),
        (ValueError("Invalid endpoint"), ConfigurationError),
        (RuntimeError("no idea"), S3Error),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_exceptions_of_botocore(raised, expected):
    error = error_from_boto(raised, operation="GetObject", bucket="b", key="k")
    assert type(error) is expected
    assert (error.operation, error.bucket, error.key) == ("GetObject", "b", "k")
    assert error.__cause__ is raised
    assert error.message


def test_answer_without_body_has_no_code():
    error = error_from_boto(client_error(404, "404"), operation="HeadObject", bucket="b", key="k")
    same = error_from_response(
        operation="HeadObject", bucket="b", key="k", status=404, request_id="R", host_id="H"
    )
    assert (type(error), vars(error)) == (type(same), vars(same))


def test_region_of_bucket_is_told():
    raised = client_error(301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-1"})
    error = error_from_boto(raised, operation="GetObject", bucket="b")
    assert error.expected_region == "eu-west-1"


def test_our_errors_stay_as_they_are():
    ours = ConfigurationError("no region")
    assert error_from_boto(ours, operation="GetObject", bucket="b", key="k") is ours
    assert (ours.operation, ours.bucket, ours.key) == ("GetObject", "b", "k")


def test_thread_that_was_left_behind_does_not_try_again(connect, stub, answer, threads):
    transport = connect(stub.endpoint, max_attempts=5)
    stub.will(*[answer(stall=-1)] * 5)
    transfer = transport.get("bucket", "key")
    while not stub.requests:
        time.sleep(0.01)
    transport.close()
    with pytest.raises(TransferCancelledError):
        transfer.result(1)
    stub.released.set()
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == []
    assert len(stub.requests) == 1

"""What is tried again, how often, and when it is given up; the same for every transport."""

from __future__ import annotations

import socket
import time

import pytest

from s3torch.core.errors import (
    AccessDeniedError,
    S3ConnectionError,
    S3TimeoutError,
    ServerError,
    ThrottledError,
    TransferCancelledError,
    TruncatedError,
)
from s3torch.core.models import Credentials, PutOptions
from s3torch.core.ranges import ByteRange
from s3torch.core.transports.crt import CrtTransport
from s3torch.core.transports.http import HttpTransport

PATIENCE = 30
DATA = bytes(range(256)) * 4


@pytest.fixture
def told(connect):
    """Makes a transport whose retries are written down."""

    def make(endpoint, **settings):
        retries = []
        return connect(endpoint, on_retry=lambda **facts: retries.append(facts), **settings), retries

    return make


def put(transport):
    return transport.put("bucket", "key", memoryview(DATA), options=PutOptions())


def test_too_many_requests_is_tried_again(connect, stub, answer, refusal):
    transport = connect(stub.endpoint, max_attempts=3)
    stub.will(*[refusal(429, "TooManyRequests")] * 2, answer())
    put(transport).result(PATIENCE)
    assert [request.body for request in stub.requests] == [DATA] * 3
    stub.will(*[refusal(429, "TooManyRequests")] * 5)
    with pytest.raises(ThrottledError) as caught:
        put(transport).result(PATIENCE)
    assert (caught.value.status, caught.value.key) == (429, "key")
    assert len(stub.requests) == 6


def test_failures_of_all_kinds_are_counted_together(connect, stub, answer, refusal):
    transport = connect(stub.endpoint, max_attempts=3)
    stub.will(refusal(429, "TooManyRequests"), answer(200, DATA, cut=10), *[refusal(503, "SlowDown")] * 5)
    with pytest.raises(ThrottledError):
        transport.get("bucket", "key").result(PATIENCE)
    assert len(stub.requests) == 3


def test_an_answer_for_other_bytes_is_tried_again(connect, stub, answer):
    transport = connect(stub.endpoint, max_attempts=2)
    right = answer(206, DATA[:500], {"Content-Range": f"bytes 0-499/{len(DATA)}"})
    wrong = answer(206, DATA[:500], {"Content-Range": f"bytes 100-599/{len(DATA)}"})
    into = bytearray(500)
    stub.will(wrong, right)
    transfer = transport.get("bucket", "key", byte_range=ByteRange(0, 500), into=memoryview(into))
    assert transfer.result(PATIENCE).length == 500
    assert into == DATA[:500]
    stub.will(*[wrong] * 3)
    with pytest.raises((TruncatedError, S3ConnectionError)):
        transport.get("bucket", "key", byte_range=ByteRange(0, 500)).result(PATIENCE)


def test_expired_credentials_are_fetched_anew_once(connect, stub, answer, refusal):
    asked = []

    def credentials():
        asked.append(None)
        return Credentials(f"AKID{len(asked)}", "SECRET", f"token{len(asked)}")

    transport = connect(stub.endpoint, credentials=credentials)
    stub.will(refusal(400, "ExpiredToken"), answer(), answer(), *[refusal(400, "ExpiredToken")] * 5)
    put(transport).result(PATIENCE)
    put(transport).result(PATIENCE)
    tokens = [request.headers["x-amz-security-token"] for request in stub.requests]
    assert tokens[0] != tokens[1] == tokens[2]
    with pytest.raises(AccessDeniedError) as caught:
        put(transport).result(PATIENCE)
    assert (caught.value.code, caught.value.status) == ("ExpiredToken", 400)
    assert len(stub.requests) == 5


def test_credentials_that_cannot_change_are_not_tried_again(connect, stub, refusal):
    transport = connect(stub.endpoint)
    stub.will(*[refusal(400, "ExpiredToken")] * 3)
    with pytest.raises(AccessDeniedError):
        put(transport).result(PATIENCE)
    assert len(stub.requests) == 1


@pytest.mark.parametrize("stall", [-1, 100], ids=["before-the-answer", "in-the-body"])
def test_a_stalled_answer_is_asked_for_again(connect, stub, answer, stall):
    transport = connect(stub.endpoint, read_timeout=0.3)
    stub.will(answer(200, DATA, stall=stall), answer(200, DATA))
    assert transport.get("bucket", "key").result(PATIENCE).data == DATA
    assert len(stub.requests) == 2


def test_a_server_that_always_stalls_is_a_timeout(connect, stub, answer):
    transport = connect(stub.endpoint, read_timeout=0.3)
    stub.will(*[answer(200, DATA, stall=100)] * 5)
    with pytest.raises(S3TimeoutError) as caught:
        transport.get("bucket", "key").result(PATIENCE)
    assert (caught.value.operation, caught.value.key) == ("GetObject", "key")
    assert len(stub.requests) == 2


def test_silence_is_not_waited_for_longer_by_crt(connect_with, stub, answer):
    # It could take four seconds more for bytes that are on their way; the other has a clock of its own.
    stub.will(*[answer(stall=-1)] * 2)
    patient = connect_with(HttpTransport, stub.endpoint, max_attempts=1, read_timeout=3).get("bucket", "key")
    quick = connect_with(CrtTransport, stub.endpoint, max_attempts=1, read_timeout=0.4).get("bucket", "key")
    with pytest.raises(S3TimeoutError):
        quick.result(PATIENCE)
    assert not patient.done()


def test_an_answer_that_comes_slowly_is_waited_for(connect, serve):
    asked = []

    def drip(connection):
        asked.append(connection.recv(2**16))
        head = (
            'HTTP/1.1 206 Partial\r\nContent-Length: 70\r\nContent-Range: bytes 0-69/99\r\nETag: "e"\r\n\r\n'
        )
        connection.sendall(head.encode())
        for number in range(35):
            time.sleep(0.1)
            connection.sendall(b"%02d" % number)

    transport = connect(serve(drip), read_timeout=3, max_attempts=1)
    result = transport.get("bucket", "key", byte_range=ByteRange(0, 70)).result(PATIENCE)
    assert result.data == b"".join(b"%02d" % number for number in range(35))
    assert len(asked) == 1


def test_nobody_listens(connect):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = "{}:{}".format(*unused.getsockname())
        with pytest.raises(S3ConnectionError, match=host):
            connect(f"http://{host}", max_attempts=4).get("bucket", "key").result(PATIENCE)


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_transfer_that_waits_for_its_next_try_can_be_cancelled(connect, stub, refusal, how):
    transport = connect(stub.endpoint, max_attempts=10)
    stub.will(*[refusal(429, "TooManyRequests")] * 20)
    transfer = put(transport)
    while len(stub.requests) < 3:
        time.sleep(0.01)
    assert transfer.cancel() if how == "cancel" else transport.close() is None
    with pytest.raises(TransferCancelledError):
        transfer.result(PATIENCE)
    assert stub.requests[-1].method == "PUT"


def test_a_forked_child_waits_with_a_thread_of_its_own(
    connect, stub, answer, refusal, in_child, make_context
):
    stub.will(refusal(429, "TooManyRequests"), answer(), refusal(429, "TooManyRequests"), answer())
    put(connect(stub.endpoint)).result(PATIENCE)

    def child():
        return put(connect(stub.endpoint)).result(PATIENCE).etag

    assert in_child(child) == '"e"'


def test_every_retry_is_told_once(told, stub, answer, refusal):
    transport, retries = told(stub.endpoint, max_attempts=4)
    # The body breaks off before its first byte, so it is the whole again that is asked for.
    broken = answer(200, DATA, cut=0)
    stub.will(refusal(503, "SlowDown"), broken, refusal(500, "InternalError"), answer(200, DATA))
    transfer = transport.get("bucket", "key")
    assert transfer.result(PATIENCE).data == DATA
    assert len(stub.requests) == 4
    assert [facts["attempt"] for facts in retries] == [1, 2, 3]
    assert isinstance(retries[0]["error"], ThrottledError)
    assert isinstance(retries[1]["error"], TruncatedError | S3ConnectionError)
    assert isinstance(retries[2]["error"], ServerError)
    for facts in retries:
        assert facts["transfer"] is transfer
        assert (facts["operation"], facts["bucket"], facts["key"]) == ("GetObject", "bucket", "key")
        assert (facts["error"].operation, facts["error"].key) == ("GetObject", "key")
        assert facts["seconds"] >= 0


def test_what_is_not_tried_again_is_no_retry(told, stub, answer, refusal):
    transport, retries = told(stub.endpoint, max_attempts=1)
    stub.will(answer(), refusal(403, "AccessDenied"), refusal(503, "SlowDown"))
    put(transport).result(PATIENCE)
    for error in (AccessDeniedError, ThrottledError):
        with pytest.raises(error):
            put(transport).result(PATIENCE)
    assert retries == []

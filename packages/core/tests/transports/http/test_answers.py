"""Answers of unusual form to the http transport: in chunks, without a length, late, and none at all."""

from __future__ import annotations

import socket
from functools import partial

import pytest

from s3torch.core.errors import S3ConnectionError, S3Error, ServerError, TruncatedError
from s3torch.core.models import MultipartUpload, PutOptions
from s3torch.core.transports.http import HttpTransport

PATIENCE = 30
DATA = bytes(range(251)) * 12_000
SIZE = len(DATA)


@pytest.fixture
def connect(connect_with):
    return partial(connect_with, HttpTransport)


def chunked(*pieces):
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def raw(head, body):
    """A server function that sends exactly this, and waits for more requests."""

    def function(connected):
        with connected.makefile("rb") as request:
            while request.readline().strip():
                """The head ends with an empty line."""
        connected.sendall(head.encode() + b"\r\n\r\n" + body)

    return function


RESULT = b"CompleteMultipartUploadResult"
COMPLETED = b'<?xml version="1.0"?><%s><ETag>"whole"</ETag></%s>' % (RESULT, RESULT)
LATE = b'<?xml version="1.0"?><Error><Code>%s</Code><Message>late</Message></Error>'


def complete(transport):
    upload = MultipartUpload("bucket", "key", "id")
    return transport.complete_multipart_upload(upload, [], options=PutOptions())


@pytest.mark.parametrize("length", [10**15, 2**63 - 1, 2**63], ids=str)
def test_a_length_for_which_there_is_no_memory(connect, serve, length):
    answer = raw(f"HTTP/1.1 200 OK\r\nETag: e\r\nContent-Length: {length}", b"data")
    with pytest.raises(S3Error, match="no memory"):
        connect(serve(answer)).get("bucket", "key").result(PATIENCE)


def test_a_completion_that_takes_long_comes_in_chunks_after_white_space(connect, serve):
    answer = raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", chunked(b" ", b"\n ", COMPLETED))
    assert complete(connect(serve(answer))).result(PATIENCE).etag == '"whole"'


def test_a_completion_that_fails_late_is_tried_again_where_that_may_help(connect, serve):
    head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close"
    busy, good = raw(head, chunked(b" ", LATE % b"SlowDown")), raw(head, chunked(COMPLETED))
    assert complete(connect(serve(busy, good))).result(PATIENCE).etag == '"whole"'
    failed = raw(head, chunked(b"   ", LATE % b"InternalError"))
    with pytest.raises(ServerError) as caught:
        complete(connect(serve(failed), max_attempts=1)).result(PATIENCE)
    assert (caught.value.code, caught.value.operation) == ("InternalError", "CompleteMultipartUpload")


@pytest.mark.parametrize("with_buffer", [True, False])
@pytest.mark.parametrize(
    ("head", "body"),
    [
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked",
            chunked(DATA[:10], DATA[10:2_000_000], DATA[2_000_000:]),
        ),
        ("HTTP/1.0 200 OK", DATA),
    ],
    ids=["chunked", "until the connection ends"],
)
def test_a_body_may_come_without_its_length(connect, serve, head, body, with_buffer):
    def answer(connected):
        raw(head, body)(connected)
        connected.shutdown(socket.SHUT_WR)

    buffer = bytearray(SIZE)
    transfer = connect(serve(answer)).get("bucket", "key", into=memoryview(buffer) if with_buffer else None)
    result = transfer.result(PATIENCE)
    assert result.length == SIZE
    assert (buffer if with_buffer else result.data) == DATA


def test_chunks_that_break_off_are_an_error(connect, serve):
    def answer(connected):
        raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", b"5\r\nab")(connected)
        connected.shutdown(socket.SHUT_WR)

    with pytest.raises(TruncatedError):
        connect(serve(answer), max_attempts=1).get("bucket", "key").result(PATIENCE)


@pytest.mark.parametrize(
    "head", ["SSH-2.0-OpenSSH", "HTTP/1.1 200 OK\r\nbroken", "HTTP/1.1 200 OK\r\nX: " + "x" * 80_000]
)
def test_what_is_no_answer_of_http_is_an_error(connect, serve, head):
    with pytest.raises(S3ConnectionError):
        connect(serve(raw(head, b"")), max_attempts=1).get("bucket", "key").result(PATIENCE)

"""What only the http transport promises: bodies resumed at the byte, kept connections, early answers."""

from __future__ import annotations

import gc
import socket
import threading
import time
from functools import partial

import pytest

from s3torch.core._process import PerProcess
from s3torch.core.errors import (
    AccessDeniedError,
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    S3ConnectionError,
    S3TimeoutError,
    ThrottledError,
    TransferCancelledError,
    TruncatedError,
)
from s3torch.core.models import MultipartUpload, PutOptions
from s3torch.core.ranges import MIB, ByteRange
from s3torch.core.requests import get_object, put_object
from s3torch.core.transports.http import HttpTransport, _connection
from s3torch.testing.transport_tests import TransportCalls

PATIENCE = 30
DATA = bytes(range(251)) * 12_000
SIZE = len(DATA)


@pytest.fixture(autouse=True)
def nothing_is_shared_with_other_tests(monkeypatch):
    """Clients that other tests have left keep the idle connections of their settings."""
    monkeypatch.setattr(_connection, "shared", PerProcess(_connection._SharedIdle))


@pytest.fixture
def connect(connect_with):
    return partial(connect_with, HttpTransport)


@pytest.fixture
def transport(connect, stub):
    return connect(stub.endpoint)


def head_from(connected):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connected.recv(1)
        if not piece:
            raise ConnectionResetError
        head += piece
    return head.decode()


def put(transport, body=b"body"):
    return transport.put("bucket", "key", memoryview(body))


def ranges(stub):
    return [request.headers.get("range") for request in stub.requests]


@pytest.mark.parametrize("with_buffer", [True, False])
@pytest.mark.parametrize("size", [1000, SIZE])
@pytest.mark.parametrize("start", [None, 0, 100])
def test_a_body_that_breaks_is_resumed_at_the_byte(transport, stub, answer, start, size, with_buffer):
    first, stop = start or 0, (start or 0) + size
    whole = DATA * 2

    def part(begin, cut=None):
        told = (
            {} if begin == first and start is None else {"Content-Range": f"bytes {begin}-{stop - 1}/{stop}"}
        )
        return answer(206 if told else 200, whole[begin:stop], told, cut=cut)

    stub.will(part(first, 700), part(first + 700))
    buffer = bytearray(size) if with_buffer else None
    result = transport.get(
        "bucket",
        "key",
        byte_range=None if start is None else ByteRange(start, stop),
        into=memoryview(buffer) if with_buffer else None,
    ).result(PATIENCE)
    assert (buffer if with_buffer else result.data) == whole[first:stop]
    assert (result.length, result.head.size) == (size, stop)
    asked = None if start is None else f"bytes={first}-{stop - 1}"
    assert ranges(stub) == [asked, f"bytes={first + 700}-{stop - 1}"]
    assert [request.headers.get("if-match") for request in stub.requests] == [None, '"e"']


def test_each_break_is_an_attempt(connect, stub, answer):
    transport = connect(stub.endpoint, max_attempts=3)
    for begin in (0, 10, 20):
        told = {"Content-Range": f"bytes {begin}-999/1000"}
        stub.will(answer(206, DATA[begin:1000], told, cut=10))
    with pytest.raises(TruncatedError, match="30 of 1000"):
        transport.get("bucket", "key", byte_range=ByteRange(0, 1000)).result(PATIENCE)
    assert ranges(stub) == ["bytes=0-999", "bytes=10-999", "bytes=20-999"]


def test_an_object_that_is_replaced_between_two_attempts_is_read_anew(
    transport, connect, stub, answer, refusal
):
    transport = connect(stub.endpoint, max_attempts=3)
    new = DATA[::-1]
    stub.will(
        answer(200, DATA, cut=500), refusal(412, "PreconditionFailed"), answer(200, new, {"ETag": '"f"'})
    )
    result = transport.get("bucket", "key").result(PATIENCE)
    assert result.data == new
    assert result.head.etag == '"f"'
    assert ranges(stub) == [None, f"bytes=500-{SIZE - 1}", None]


def test_an_object_that_must_not_be_replaced_is_not_read_anew(transport, stub, answer, refusal):
    stub.will(answer(200, DATA, cut=500), refusal(412, "PreconditionFailed"))
    with pytest.raises(PreconditionFailedError):
        transport.get("bucket", "key", if_match='"e"').result(PATIENCE)


def test_a_server_that_ignores_conditions_cannot_mix_two_versions(connect, stub, answer):
    transport = connect(stub.endpoint, max_attempts=3)
    new = DATA[::-1]
    told = {"Content-Range": f"bytes 500-{SIZE - 1}/{SIZE}", "ETag": '"f"'}
    stub.will(answer(200, DATA, cut=500), answer(206, new[500:], told), answer(200, new, {"ETag": '"f"'}))
    assert transport.get("bucket", "key").result(PATIENCE).data == new


@pytest.mark.parametrize("etag", ['W/"weak"', ""])
def test_without_a_strong_etag_a_body_is_read_from_its_start(transport, stub, answer, etag):
    stub.will(*[answer(200, DATA, {"ETag": etag}, cut=cut) for cut in (500, None)])
    assert transport.get("bucket", "key").result(PATIENCE).data == DATA
    assert ranges(stub) == [None, None]


def test_connections_are_kept(transport, stub, answer, refusal):
    stub.will(*[answer(200, b"x")] * 3, refusal(404, "NoSuchKey"), answer(), answer(204), answer(200, b"y"))
    for _ in range(3):
        transport.get("bucket", "key").result(PATIENCE)
    with pytest.raises(FileNotFoundError):
        transport.get("bucket", "key").result(PATIENCE)
    put(transport).result(PATIENCE)
    transport.abort_multipart_upload(MultipartUpload("bucket", "key", "id")).result(PATIENCE)
    assert transport.get("bucket", "key").result(PATIENCE).data == b"y"
    assert stub.connections == 1


@pytest.mark.parametrize(
    "headers", [{"Connection": "close"}, {"Content-Length": "1"}], ids=["announced", "more than announced"]
)
def test_connections_that_are_of_no_more_use_are_not_kept(transport, stub, answer, headers):
    stub.will(
        *[answer(200, b"xHTTP/1.1 200 OK\r\n\r\n"[: 1 if "Connection" in headers else None], headers)] * 2
    )
    for _ in range(2):
        assert transport.get("bucket", "key").result(PATIENCE).data == b"x"
    assert stub.connections == 2


def test_a_kept_connection_that_the_server_has_closed_is_no_attempt(connect, serve):
    closed = threading.Event()

    def answer_once(connected):
        head_from(connected)
        connected.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        connected.close()
        closed.set()

    def reset_at_the_next(connected):
        head_from(connected)
        connected.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        head_from(connected)
        connected.close()

    transport = connect(serve(answer_once, reset_at_the_next, answer_once), max_attempts=1)
    for _ in range(3):
        assert transport.get("bucket", "key").result(PATIENCE).data == b"x"
        closed.wait(PATIENCE)


def test_a_new_connection_that_is_closed_at_once_is_an_attempt(connect, serve):
    transport = connect(serve(lambda connected: (head_from(connected), connected.close())), max_attempts=1)
    with pytest.raises(S3ConnectionError, match="closed"):
        transport.get("bucket", "key").result(PATIENCE)


@pytest.mark.parametrize("how", ["cancel", "close"])
@pytest.mark.parametrize("size", [1000, 4 * MIB])
def test_after_cancelling_a_buffer_is_not_touched_any_more(connect, serve, how, size):
    half_sent, go_on = threading.Event(), threading.Event()

    def stall_in_the_middle(connected):
        head_from(connected)
        connected.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * (size // 2))
        half_sent.set()
        go_on.wait(PATIENCE)
        connected.sendall(b"y" * (size // 2))

    transport = connect(serve(stall_in_the_middle))
    buffer = bytearray(size)
    transfer = transport.get("bucket", "key", into=memoryview(buffer))
    assert half_sent.wait(PATIENCE)
    while not buffer[size // 2 - 1]:
        time.sleep(0.001)
    assert transfer.cancel() if how == "cancel" else transport.close() is None
    buffer.append(0)  # Python refuses while anything holds a view of it.
    buffer[:] = b"mine" * (size // 4)
    go_on.set()
    with pytest.raises(TransferCancelledError):
        transfer.result(PATIENCE)
    assert buffer == b"mine" * (size // 4)


def test_an_upload_can_be_cancelled_while_the_server_takes_nothing(connect, serve):
    asked, done = threading.Event(), threading.Event()

    def take_only_the_head(connected):
        head_from(connected)
        asked.set()
        done.wait(PATIENCE)

    transport = connect(serve(take_only_the_head))
    body = bytearray(32 * MIB)
    transfer = put(transport, body)
    assert asked.wait(PATIENCE)
    assert transfer.cancel()
    body.append(0)
    with pytest.raises(TransferCancelledError):
        transfer.result(PATIENCE)
    done.set()


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize(
    ("status", "code", "cls"), [(403, "AccessDenied", AccessDeniedError), (503, "SlowDown", ThrottledError)]
)
def test_an_answer_before_the_end_of_an_upload_is_read(connect, serve, closes, status, code, cls):
    done = threading.Event()

    def answer_early(connected):
        head_from(connected)
        body = f"<Error><Code>{code}</Code></Error>".encode()
        connected.sendall(b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
        if closes:
            connected.close()
        else:
            done.wait(PATIENCE)

    with pytest.raises(cls) as caught:
        put(connect(serve(answer_early), max_attempts=1), bytes(32 * MIB)).result(PATIENCE)
    done.set()
    assert (caught.value.status, caught.value.code) == (status, code)


def test_an_upload_goes_on_after_an_answer_that_is_not_the_last(connect, serve):
    size = 16 * MIB

    def go_ahead(connected):
        head_from(connected)
        connected.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        received = 0
        while received < size:
            received += len(connected.recv(MIB))
        connected.sendall(
            b'HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n'
        )

    transport = connect(serve(go_ahead), max_attempts=1)
    assert put(transport, bytes(size)).result(PATIENCE).etag == '"e"'


def test_success_before_the_end_of_an_upload_is_none(connect, serve):
    def accept_early(connected):
        head_from(connected)
        connected.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with pytest.raises(S3ConnectionError, match="before it had the whole body"):
        put(connect(serve(accept_early), max_attempts=1), bytes(32 * MIB)).result(PATIENCE)


def test_a_server_that_takes_nothing_is_a_timeout(connect, serve):
    done = threading.Event()

    def take_only_the_head(connected):
        head_from(connected)
        done.wait(PATIENCE)

    transport = connect(serve(take_only_the_head), max_attempts=1, read_timeout=0.2)
    with pytest.raises(S3TimeoutError, match="no byte has moved"):
        put(transport, bytes(32 * MIB)).result(PATIENCE)
    done.set()


def test_a_server_that_takes_too_little_is_a_timeout_where_that_is_wanted(connect, serve):
    done = threading.Event()

    def take_a_little(connected):
        head_from(connected)
        while not done.wait(0.05):
            connected.recv(1)

    transport = connect(serve(take_a_little), max_attempts=1, low_speed_limit=2**30, low_speed_time=0.3)
    with pytest.raises(S3TimeoutError, match="bytes a second"):
        put(transport, bytes(32 * MIB)).result(PATIENCE)
    done.set()


def test_a_value_that_would_become_another_header_is_refused(transport, stub):
    request = get_object("bucket", "key")
    request.headers.append(("x-amz-meta-a", "b\r\nx-amz-acl: public-read"))
    with pytest.raises(ConfigurationError, match="x-amz-meta-a"):
        transport.send(request).result(PATIENCE)
    assert stub.requests == []


def test_retries_are_told(connect, stub, answer, refusal):
    told = []
    transport = connect(stub.endpoint, max_attempts=3, on_retry=lambda **facts: told.append(facts))
    stub.will(refusal(503, "SlowDown"), answer(200, DATA, cut=5), answer(200, DATA))
    assert transport.get("bucket", "key").result(PATIENCE).data == DATA
    assert [type(facts["error"]) for facts in told] == [ThrottledError, TruncatedError]
    assert [facts["attempt"] for facts in told] == [1, 2]
    assert {(facts["operation"], facts["bucket"], facts["key"]) for facts in told} == {
        ("GetObject", "bucket", "key")
    }


def test_all_addresses_of_a_host_are_used_and_those_that_fail_come_last(connect, stub, answer, monkeypatch):
    port = int(stub.endpoint.rpartition(":")[2])
    with socket.socket() as unused:
        unused.bind(("127.0.0.2", 0))
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_how: found)
        transport = connect(stub.endpoint.replace("127.0.0.1", "store.test"), max_attempts=1)
        stub.will(*[answer(200, b"x", {"Connection": "close"})] * 3)
        for _ in range(3):
            assert transport.get("bucket", "key").result(PATIENCE).data == b"x"
    assert {request.headers["host"] for request in stub.requests} == {f"store.test:{port}"}


@pytest.mark.parametrize("ends", ["dropped", "closed"])
def test_transports_with_equal_settings_share_connections(make_context, stub, answer, ends):
    def send(transport):
        stub.will(answer())
        TransportCalls(transport).put("bucket", "key", memoryview(b"data")).result(PATIENCE)

    first = HttpTransport(make_context(stub.endpoint))
    others = [HttpTransport(make_context(stub.endpoint)) for _ in range(2)]
    before = stub.connections
    send(first)
    assert stub.connections == before + 1
    if ends == "closed":
        first.close()
    del first
    gc.collect()
    for transport in others:
        send(transport)
    assert stub.connections == before + 1
    for transport in others:
        transport.close()
    # Nobody shares them any more.
    send(last := HttpTransport(make_context(stub.endpoint)))
    assert stub.connections == before + 2
    last.close()


def test_other_settings_have_connections_of_their_own(make_context, stub, answer):
    before = stub.connections
    transports = [HttpTransport(make_context(stub.endpoint, read_timeout=seconds)) for seconds in (31, 32)]
    for transport in transports:
        stub.will(answer())
        TransportCalls(transport).put("bucket", "key", memoryview(b"data")).result(PATIENCE)
    assert stub.connections == before + 2
    for transport in transports:
        transport.close()


def test_a_transport_that_is_dropped_closes_its_connections(make_context, stub, answer, recwarn):
    stub.will(answer())
    transport = HttpTransport(make_context(stub.endpoint))
    TransportCalls(transport).put("bucket", "key", memoryview(b"data")).result(PATIENCE)
    # The collector finds it in a cycle, as it finds clients.
    cycle = [transport]
    cycle.append(cycle)
    del transport, cycle
    gc.collect()
    assert not [str(warning.message) for warning in recwarn if warning.category is ResourceWarning]


def test_an_object_can_be_got_on_the_calling_thread(connect, stub, answer, refusal):
    threads = set(threading.enumerate())
    send_now = connect(stub.endpoint).transport.send_now
    stub.will(answer(200, b"whole"), refusal(404, "NoSuchKey"), answer(200, b"again"))
    assert send_now(get_object("bucket", "key")).data == b"whole"
    with pytest.raises(NotFoundError, match="s3://bucket/key"):
        send_now(get_object("bucket", "key"))
    buffer = bytearray(8)
    assert send_now(get_object("bucket", "key"), into=memoryview(buffer)).length == 5
    assert buffer == b"again\0\0\0"
    new = set(threading.enumerate()) - threads
    assert not [thread for thread in new if thread.name.startswith("s3torch-http_")]


def test_an_object_can_be_put_on_the_calling_thread(connect, stub, answer, refusal):
    threads = set(threading.enumerate())
    send_now = connect(stub.endpoint).transport.send_now
    request = put_object("bucket", "key", options=PutOptions())
    stub.will(answer(200, b"", headers={"ETag": '"1"'}), refusal(403, "AccessDenied"))
    assert send_now(request, body=memoryview(b"body")).etag == '"1"'
    with pytest.raises(AccessDeniedError, match="s3://bucket/key"):
        send_now(request, body=memoryview(b"body"))
    assert [one.body for one in stub.requests] == [b"body", b"body"]
    new = set(threading.enumerate()) - threads
    assert not [thread for thread in new if thread.name.startswith("s3torch-http_")]

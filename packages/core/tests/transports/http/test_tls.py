"""The http transport over TLS."""

from __future__ import annotations

import _ssl
import signal
import socket
import ssl
import sys
import threading
import time
from contextlib import suppress
from functools import partial

import pytest

from s3torch.core import requests
from s3torch.core.errors import (
    AccessDeniedError,
    S3ConnectionError,
    S3TimeoutError,
    TransferCancelledError,
    TransportError,
    TruncatedError,
)
from s3torch.core.ranges import KIB, MIB, ByteRange
from s3torch.core.transports.http import HttpTransport, _records
from s3torch.testing._seaweedfs import AUTHORITY, CERTIFICATE, PRIVATE_KEY
from s3torch.testing.servers import start_seaweedfs

PATIENCE = 30
SIZE = 4 * MIB
HEAD = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: %d\r\n\r\n' % SIZE


@pytest.fixture(params=["many records a call", "one record a call"])
def connect(connect_with, request, monkeypatch):
    if request.param == "one record a call":
        # As where Python has an OpenSSL that cannot be called.
        monkeypatch.setattr(_records, "_openssl", lambda: None)
    return partial(connect_with, HttpTransport)


@pytest.fixture
def serve(serve, certificates, monkeypatch):
    """Starts a server with TLS that calls a function with each connection, once a request head has come."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificates / AUTHORITY))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / CERTIFICATE, certificates / PRIVATE_KEY)

    def start(function, connections=1):
        def answer(connected):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += connected.recv(1)
            function(connected)

        return serve(*[answer] * connections, tls=context)

    return start


def end(connected, *, in_order):
    if in_order:
        with suppress(OSError):  # The client need not answer that in TLS.
            connected.unwrap()
    connected.close()


def test_bytes_go_to_and_from_a_real_server(connect, monkeypatch):
    data = bytes(range(256)) * (9 * MIB // 256)
    with start_seaweedfs(tls=True) as server:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(server.ca_file))
        bucket = server.create_bucket()
        transport = connect(server.endpoint, keys=(server.access_key, server.secret_key))
        transport.put(bucket, "key", memoryview(data)).result(PATIENCE)
        for _ in range(2):
            assert transport.get(bucket, "key").result(PATIENCE).data == data
        buffer = bytearray(5 * MIB)
        ranged = ByteRange(MIB, 6 * MIB)
        transport.get(bucket, "key", byte_range=ranged, into=memoryview(buffer)).result(PATIENCE)
        assert buffer == data[MIB : 6 * MIB]


@pytest.mark.parametrize("trusted", [True, False])
def test_a_server_must_be_who_it_says(connect, serve, monkeypatch, trusted):
    endpoint = serve(lambda connected: None)
    if trusted:
        # The authority is known, but the certificate is for another name.
        endpoint = endpoint.replace("127.0.0.1", "127.0.0.1.nip.test")
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(endpoint.rpartition(":")[2])))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_how: found)
    else:
        monkeypatch.delenv("AWS_CA_BUNDLE")
    with pytest.raises(S3ConnectionError, match="certificate verify failed"):
        connect(endpoint, max_attempts=1).get("bucket", "key").result(PATIENCE)


def test_a_bundle_that_cannot_be_read_is_named(connect, serve, monkeypatch, tmp_path):
    bundle = tmp_path / "no-bundle.pem"
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    with pytest.raises(TransportError, match="no-bundle"):
        connect(serve(lambda connected: None)).get("bucket", "key").result(PATIENCE)


def test_after_cancelling_a_buffer_is_not_touched_any_more(connect, serve):
    half_sent, go_on = threading.Event(), threading.Event()

    def stall_in_the_middle(connected):
        connected.sendall(HEAD + b"x" * (SIZE // 2))
        half_sent.set()
        go_on.wait(PATIENCE)
        connected.sendall(b"y" * (SIZE // 2))

    buffer = bytearray(SIZE)
    transfer = connect(serve(stall_in_the_middle)).get("bucket", "key", into=memoryview(buffer))
    assert half_sent.wait(PATIENCE)
    while not buffer[SIZE // 2 - 1]:
        time.sleep(0.001)
    assert transfer.cancel()
    buffer[:] = b"mine" * (SIZE // 4)
    go_on.set()
    with pytest.raises(TransferCancelledError):
        transfer.result(PATIENCE)
    assert buffer == b"mine" * (SIZE // 4)


def test_a_body_that_stalls_is_a_timeout(connect, serve):
    done = threading.Event()

    def stall(connected):
        connected.sendall(HEAD + b"x")
        done.wait(PATIENCE)

    with pytest.raises(S3TimeoutError):
        connect(serve(stall), max_attempts=1, read_timeout=0.2).get("bucket", "key").result(PATIENCE)
    done.set()


def test_bytes_that_come_too_slowly_are_a_timeout(connect, serve):
    done = threading.Event()

    def drip(connected):
        connected.sendall(HEAD)
        while not done.wait(0.05):
            connected.sendall(b"x")

    transport = connect(serve(drip), max_attempts=1, low_speed_limit=1000, low_speed_time=0.3)
    with pytest.raises(S3TimeoutError, match="1000 bytes a second"):
        transport.get("bucket", "key").result(PATIENCE)
    done.set()


def test_a_handshake_has_an_end(connect, certificates):
    """Also where a byte of it comes now and then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def drip():
            connected, _ = listener.accept()
            with connected, suppress(OSError):
                for byte in b"\x16\x03\x03\x40\x00" + bytes(1000):
                    connected.sendall(bytes([byte]))
                    if done.wait(0.05):
                        return

        threading.Thread(target=drip, daemon=True).start()
        endpoint = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(S3TimeoutError):
            connect(endpoint, max_attempts=1, connect_timeout=0.5).get("bucket", "key").result(PATIENCE)
        done.set()


@pytest.mark.parametrize("with_buffer", [True, False])
@pytest.mark.parametrize("in_order", [True, False])
def test_a_body_that_breaks_off_is_an_error(connect, serve, with_buffer, in_order):
    def close_early(connected):
        connected.sendall(HEAD + b"x" * 1000)
        end(connected, in_order=in_order)

    into = memoryview(bytearray(SIZE)) if with_buffer else None
    with pytest.raises((TruncatedError, S3ConnectionError)):
        connect(serve(close_early), max_attempts=1).get("bucket", "key", into=into).result(PATIENCE)


@pytest.mark.parametrize("in_order", [True, False])
def test_a_body_without_a_length_ends_only_as_tls_ends(connect, serve, in_order):
    def answer(connected):
        connected.sendall(b"HTTP/1.1 200 OK\r\n\r\nwhole")
        end(connected, in_order=in_order)

    transfer = connect(serve(answer), max_attempts=1).get("bucket", "key")
    if in_order:
        assert transfer.result(PATIENCE).data == b"whole"
    else:
        with pytest.raises(S3ConnectionError):
            transfer.result(PATIENCE)


def test_an_answer_before_the_end_of_an_upload_is_read(connect, serve):
    done = threading.Event()

    def answer_early(connected):
        body = b"<Error><Code>AccessDenied</Code></Error>"
        connected.sendall(b"HTTP/1.1 403 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        done.wait(PATIENCE)

    body = memoryview(bytes(32 * MIB))
    with pytest.raises(AccessDeniedError):
        connect(serve(answer_early)).put("bucket", "key", body).result(PATIENCE)
    done.set()


def test_an_upload_goes_on_after_a_pause_of_the_server(connect, serve):
    body = bytes(range(256)) * (6 * MIB // 256)
    received = bytearray()

    def pause(connected):
        # The kernel is full by then, and a call that sends has come back in vain.
        time.sleep(1.5)
        while len(received) < len(body):
            received.extend(connected.recv(MIB))
        connected.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n')

    transport = connect(serve(pause), max_attempts=1, read_timeout=12)
    transport.put("bucket", "key", memoryview(body)).result(PATIENCE)
    assert received == body


@pytest.mark.parametrize("with_buffer", [True, False])
def test_records_of_any_size_make_one_body(connect, serve, with_buffer):
    body = bytes(range(256)) * (SIZE // 256)
    # Parts of a record that come with the head, records of a few bytes, and pauses within a record.
    sizes = [0, 1, 5000, 16384, 16385, 4096, 3, 100_000, 2 * MIB]

    def answer(connected):
        connected.sendall(HEAD + body[:100])
        position = 100
        for size in sizes:
            connected.sendall(body[position : position + size])
            position += size
            time.sleep(0.01)
        connected.sendall(body[position:])

    buffer = bytearray(SIZE) if with_buffer else None
    into = None if buffer is None else memoryview(buffer)
    found = connect(serve(answer)).get("bucket", "key", into=into).result(PATIENCE).data
    assert (found if buffer is None else buffer) == body


def test_signals_are_no_silence(connect, serve):
    def answer_late(connected):
        time.sleep(0.5)
        connected.sendall(HEAD + b"x")
        time.sleep(0.5)
        connected.sendall(bytes(SIZE - 1))

    transport = connect(serve(answer_late), max_attempts=1, read_timeout=12)
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        into = memoryview(bytearray(SIZE))
        transport.transport.send_now(requests.get_object("bucket", "key"), into=into)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


UNLIKE_OURS = {
    "a later Python": (sys, "version_info", (3, 15, 0)),
    "another library": (ssl, "OPENSSL_VERSION", "LibreSSL 4.0.0"),
    "another OpenSSL than that of ssl": (ssl, "OPENSSL_VERSION_NUMBER", 0),
    "ssl without a file": (_ssl, "__file__", None),
}


@pytest.mark.parametrize("what", [None, *UNLIKE_OURS])
def test_openssl_is_called_only_where_it_is_known(monkeypatch, what):
    if what is not None:
        monkeypatch.setattr(*UNLIKE_OURS[what])
    _records._openssl.cache_clear()
    try:
        assert (_records._openssl() is None) == (what is not None)
    finally:
        _records._openssl.cache_clear()


def test_single_records_are_warned_of_once(connect, serve, request, caplog):
    """Where OpenSSL cannot be called, whoever reads large objects should hear why that is slow."""
    _records.warn_of_single_records.cache_clear()

    def answer(connected):
        connected.sendall(HEAD + bytes(SIZE))

    for _ in range(2):
        connect(serve(answer)).get("bucket", "key").result(PATIENCE)
    is_warned = "one record" in request.node.name
    assert [record.levelname for record in caplog.records if "records" in record.message] == (
        ["WARNING"] if is_warned else []
    )


def test_bytes_come_and_go_in_few_calls(connect_with, serve):
    """Each time that a call ends the interpreter's lock is taken again, beside a busy thread after 5 ms."""
    moving = {"read", "recv", "recv_into", "send", "write"}
    calls = 0

    def count(_frame, event, argument):
        nonlocal calls
        if event == "c_call" and threading.current_thread().name.startswith("s3torch-http"):
            calls += argument.__name__ in moving

    def answer(connected):
        received = 0
        while received < SIZE:
            received += len(connected.recv(MIB))
        connected.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n')
        while b"\r\n\r\n" not in connected.recv(MIB):
            pass
        connected.sendall(HEAD + bytes(SIZE))

    transport = connect_with(HttpTransport, serve(answer))
    threading.setprofile(count)
    try:
        transport.put("bucket", "key", memoryview(bytes(SIZE))).result(PATIENCE)
        buffer = bytearray(b"\1" * SIZE)
        transport.get("bucket", "key", into=memoryview(buffer)).result(PATIENCE)
    finally:
        threading.setprofile(None)
    assert buffer == bytes(SIZE)
    # Files that are read for the first request among them; records alone are so many.
    assert 0 < calls < 2 * SIZE // (16 * KIB)


def test_a_later_connection_resumes_the_session_of_the_first(connect, serve):
    resumed = []

    def answer(connected):
        resumed.append(connected.session_reused)
        connected.sendall(HEAD + bytes(SIZE))
        connected.close()

    get = connect(serve(answer, connections=3)).get
    for _ in range(3):
        assert get("bucket", "key").result(PATIENCE).length == SIZE
    assert resumed == [False, True, True]

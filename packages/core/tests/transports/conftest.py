"""A server whose answers a test writes itself, down to where a connection breaks."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from s3torch.core._config import S3ClientConfig
from s3torch.core.models import Credentials
from s3torch.core.seam import TransportContext
from s3torch.core.session import AwsSession
from s3torch.core.transports.crt import CrtTransport
from s3torch.core.transports.http import HttpTransport
from s3torch.testing.transport_tests import TransportCalls

# Before the first test module imports them.
pytest.register_assert_rewrite("s3torch.testing")


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    # Bytes of the body after which the connection is closed.
    cut: int | None = None
    # Bytes of the body after which nothing more comes; -1 sends no headers either.
    stall: int | None = None


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Stub(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: deque[Answer] = deque()
        self.requests: list[Request] = []
        self.connections = 0
        self.released = threading.Event()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def will(self, *answers):
        self.answers.extend(answers)

    def handle_error(self, request, client_address):
        """The client may go away at any time."""


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.server.connections += 1
        while line := self.rfile.readline():
            method, path, _ = line.decode().split(" ", 2)
            headers = {}
            while (header := self.rfile.readline().decode().strip()) != "":
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            if headers.get("expect") == "100-continue":
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = self.rfile.read(int(headers.get("content-length", "0")))
            self.server.requests.append(Request(method, path, headers, body))
            if not self.send(self.server.answers.popleft()):
                return

    def send(self, answer):
        if answer.stall == -1:
            self.server.released.wait(60)
            return False
        lines = {"Content-Length": str(len(answer.body)), "ETag": '"e"', **answer.headers}
        head = f"HTTP/1.1 {answer.status} Some Reason\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        ends = [end for end in (answer.cut, answer.stall) if end is not None]
        self.wfile.write(head.encode() + b"\r\n" + answer.body[: ends[0] if ends else None])
        if answer.stall is not None:
            self.server.released.wait(60)
        if ends:
            self.connection.shutdown(socket.SHUT_RDWR)
        return not ends


@pytest.fixture(scope="session")
def stub_server():
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def stub(stub_server):
    """The server, with neither answers nor requests."""
    stub_server.answers.clear()
    stub_server.requests.clear()
    stub_server.connections = 0
    stub_server.released = threading.Event()
    yield stub_server
    stub_server.released.set()


@pytest.fixture(scope="session")
def contexts():
    """What was made before, because the making of a boto3 client takes a while."""
    contexts: dict[object, TransportContext] = {}
    yield contexts
    for context in contexts.values():
        context.session.close()


@pytest.fixture
def make_context(contexts):
    """Makes the context of a transport to a server; settings are those of ``S3ClientConfig``."""

    def make(endpoint, *, keys=("AKID", "SECRET"), **settings):
        settings = {"max_attempts": 2, **settings}
        name = (endpoint, keys, *sorted(settings.items()))
        if name not in contexts:
            if keys is not None:
                settings.setdefault("credentials", lambda: Credentials(*keys))
            config = S3ClientConfig(endpoint=endpoint, **settings)
            session = AwsSession(
                region="us-east-1", endpoint=None, config=config, user_agent="agent/1", endpoints={}
            )
            contexts[name] = TransportContext(config, session, "agent/1")
        return contexts[name]

    return make


@pytest.fixture
def answer():
    return Answer


def error_body(code):
    return f"<Error><Code>{code}</Code><Message>told by the stub</Message></Error>".encode()


@pytest.fixture
def refusal():
    """Makes the answer of S3 with this status and error code."""
    return lambda status, code, **headers: Answer(status, error_body(code), headers)


@pytest.fixture
def connect_with(make_context):
    """Makes transports of a class, each in a ``TransportCalls``, which are closed after the test."""
    transports = []

    def make(transport_class, endpoint, *, on_retry=None, **settings):
        context = replace(make_context(endpoint, **settings), on_retry=on_retry)
        transports.append(TransportCalls(transport_class(context)))
        return transports[-1]

    yield make
    for transport in transports:
        transport.close()


@pytest.fixture(params=[CrtTransport, HttpTransport], ids=["crt", "http"])
def transport_class(request):
    return request.param


@pytest.fixture
def connect(connect_with, transport_class):
    """Makes transports to a server, of each class that speaks HTTP in turn."""
    return partial(connect_with, transport_class)


@pytest.fixture
def serve():
    """Starts a server that calls a function with each connection; TLS with a context for it."""
    sockets = []

    def start(*connections, tls=None):
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)

        def accept():
            with suppress(OSError):  # The client may go away at any time.
                for function in connections:
                    connected, _ = listener.accept()
                    sockets.append(connected)
                    if tls is not None:
                        connected = tls.wrap_socket(connected, server_side=True)
                        sockets.append(connected)
                    function(connected)

        threading.Thread(target=accept, daemon=True).start()
        return f"{'http' if tls is None else 'https'}://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for one in sockets:
        one.close()

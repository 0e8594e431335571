"""A server on loopback whose answers a test writes itself, down to where a connection breaks.

It knows nothing of S3: it gives the scripted answers in their order, and records what it was asked::

    with ScriptedServer() as server:
        server.will(refusal(503, "SlowDown"), ScriptedAnswer(body=b"data"))
        ...
        assert [request.method for request in server.requests] == ["GET", "GET"]

An answer may break off, fall silent, come byte by byte, or be any bytes at all (``raw``), such as an interim
answer before the final one::

    early = ScriptedAnswer(103, headers={"Content-Length": None, "ETag": None}).to_bytes()
    server.will(ScriptedAnswer(raw=early + ScriptedAnswer(body=b"data").to_bytes()))

and ``push`` sends what nobody has asked for on the connections that a client keeps.
"""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

__all__ = ["ScriptedAnswer", "ScriptedRequest", "ScriptedServer", "refusal"]

_STALL_SECONDS = 60
_NO_CONTENT = 204


@dataclass(frozen=True, slots=True)
class ScriptedAnswer:
    """What the server answers to one request.

    Attributes:
        status: The HTTP status.
        body: The body; a HEAD gets only its length.
        headers: Headers besides ``Content-Length`` and ``ETag``, or instead of them; ``None`` leaves one out.
        cut: After how many bytes of the body the connection breaks; -1 sends no headers either.
        stall: After how many bytes of the body nothing comes until ``release``, and the rest then; -1 sends
            no headers either before that.
        slow: After how many bytes of the body the rest comes byte by byte, until ``release``; -1 sends the
            headers so, too.
        pause: Seconds between two bytes where it is slow.
        raw: All bytes of the answer, in place of status, headers and body.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    cut: int | None = None
    stall: int | None = None
    slow: int | None = None
    pause: float = 0.05
    raw: bytes | None = None

    def to_bytes(self, *, has_body: bool = True) -> bytes:
        """Returns the answer as it goes over the wire; to a HEAD without its body."""
        return self._head() + (self.body if has_body and self.raw is None else b"")

    def _head(self) -> bytes:
        if self.raw is not None:
            return self.raw
        length = None if self.status == _NO_CONTENT else str(len(self.body))
        lines = {"Content-Length": length, "ETag": '"e"', **self.headers}
        head = f"HTTP/1.1 {self.status} Some Reason\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
        return head.encode() + b"\r\n"

    def _position(self, place: int | None) -> int | None:
        """Returns after how many bytes of the answer a place in its body comes."""
        return None if place is None else 0 if place < 0 else len(self._head()) + place


@dataclass(frozen=True, slots=True)
class ScriptedRequest:
    """What the server was asked.

    Attributes:
        method: The HTTP method.
        path: Path and query as they came.
        headers: The headers, with names in lower case.
        body: The body.
        at: When it had come, by the monotonic clock.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float


def refusal(status: int, code: str, **headers: str) -> ScriptedAnswer:
    """Makes the answer of S3 with this status and error code."""
    body = f"<Error><Code>{code}</Code><Message>told by the script</Message></Error>"
    return ScriptedAnswer(status, body.encode(), headers)


class ScriptedServer:
    """Serves HTTP/1.1 on loopback from its creation until ``close``, or the end of a ``with`` block.

    A request for which no answer is scripted gets ``501 NotScripted``.

    Args:
        tls: A context with a certificate, for a server that speaks TLS.

    Attributes:
        endpoint: The URL of the server.
        answers: What is still to be answered.
        requests: What was asked, in the order in which it came.
        connections: How many connections were made.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.answers: deque[ScriptedAnswer] = deque()
        self.requests: list[ScriptedRequest] = []
        self.connections = 0
        self._released = threading.Event()
        self._tls = tls
        self._open: set[socket.socket] = set()
        self._server = _Server(self)
        scheme = "http" if tls is None else "https"
        self.endpoint = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def will(self, *answers: ScriptedAnswer) -> None:
        """Adds answers behind those that are scripted already."""
        self.answers.extend(answers)

    def wait_for_requests(self, count: int, timeout: float = 10.0) -> None:
        """Waits until the server was asked so often.

        Raises:
            TimeoutError: It was not, in so many seconds.
        """
        end = time.monotonic() + timeout
        while len(self.requests) < count:
            if time.monotonic() > end:
                raise TimeoutError(f"{len(self.requests)} of {count} requests came in {timeout} seconds")
            time.sleep(0.005)

    def push(self, data: bytes, *, close: bool = False) -> None:
        """Sends bytes that nobody has asked for on each connection that is open, and may close it then."""
        for connected in list(self._open):
            with suppress(OSError):
                connected.sendall(data)
                if close:
                    connected.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Lets answers that stall or are slow go on, now and later."""
        self._released.set()

    def reset(self) -> None:
        """Forgets answers, requests and the count of connections; answers stall again until ``release``."""
        self.release()
        self._released = threading.Event()
        self.answers.clear()
        self.requests.clear()
        self.connections = 0

    def close(self) -> None:
        """Ends the server; may be called again."""
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> ScriptedAnswer:
        try:
            return self.answers.popleft()
        except IndexError:
            return refusal(501, "NotScripted")


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, script: ScriptedServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client may go away at any time."""


class _Handler(socketserver.StreamRequestHandler):
    server: _Server
    disable_nagle_algorithm = True

    def setup(self) -> None:
        script = self.server.script
        script.connections += 1
        if script._tls is not None:
            self.request = script._tls.wrap_socket(self.request, server_side=True)
        super().setup()
        script._open.add(self.connection)

    def finish(self) -> None:
        self.server.script._open.discard(self.connection)
        with suppress(OSError):
            super().finish()
        self.connection.close()

    def handle(self) -> None:
        script = self.server.script
        while line := self.rfile.readline():
            request = self._receive(line)
            # Both belong to the test that is running, also when the answer stalls for longer.
            released, answer = script._released, script._answer()
            script.requests.append(request)
            if not self._send(answer, released, has_body=request.method != "HEAD"):
                return

    def _receive(self, line: bytes) -> ScriptedRequest:
        method, path, _ = line.decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while header := self.rfile.readline().decode("latin-1").strip():
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("expect") == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self.rfile.read(int(headers.get("content-length", "0")))
        return ScriptedRequest(method, path, headers, body, time.monotonic())

    def _send(self, answer: ScriptedAnswer, released: threading.Event, *, has_body: bool) -> bool:
        """Sends an answer; returns whether the connection goes on."""
        data = answer.to_bytes(has_body=has_body)
        cut, stall, slow = (answer._position(place) for place in (answer.cut, answer.stall, answer.slow))
        self.wfile.write(data[: min(place for place in (cut, stall, slow, len(data)) if place is not None)])
        if cut is None and stall is not None:
            released.wait(_STALL_SECONDS)
            self.wfile.write(data[stall:])
        if cut is None and slow is not None:
            for place in range(slow, len(data)):
                released.wait(answer.pause)
                self.wfile.write(data[place : place + 1])
        if cut is None and stall is None:
            return True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        return False

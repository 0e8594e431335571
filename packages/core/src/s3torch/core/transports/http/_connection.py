"""The connections of ``http`` transports: what goes out and comes in, and how idle ones are shared."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING

from s3torch.core import _process
from s3torch.core._process import PerProcess, start_thread
from s3torch.core.errors import S3ConnectionError, S3Error, TruncatedError
from s3torch.core.ranges import KIB, MIB
from s3torch.core.requests._request import FIRST_ERROR_STATUS
from s3torch.core.transports._request_target import RequestTarget
from s3torch.core.transports.http._messages import MAX_HEAD, ChunkedDecoder, ResponseHead, response_head

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from s3torch.core.models import BucketEndpoint
    from s3torch.core.seam import TransportContext
    from s3torch.core.transports.http._connecting import ConnectionMaker
    from s3torch.core.transports.http._sockets import ByteSocket

_RECEIVE = 16 * KIB
# What a head may take besides a body that is received with it, and bodies up to which that is done.
_HEAD = 4 * KIB
_SMALL = 256 * KIB
# Between two pieces it is seen whether the server has answered before it has the whole body.
_SEND = 8 * MIB
_HEAD_END = b"\r\n\r\n"
_FIRST_FINAL_STATUS = 200
_SWITCHING_PROTOCOLS = 101
# S3 closes idle connections itself after some seconds more.
_IDLE_SECONDS = 15.0
# More small requests in flight mean more threads that contend for the interpreter's lock.
_FEWEST = 4


class StaleConnectionError(Exception):
    """The server had closed a kept connection before it could see the request."""


class Connection:
    """A connection to one host.

    Attributes:
        origin: What it is connected to; equal origins can share connections.
        socket: What it is made of.
        reused: Whether it has served a request already.
        idle_since: When it was given back, by the monotonic clock.
        target_prefix: What a proxy wants before the path.
        headers: What a proxy wants besides.
    """

    def __init__(self, origin: tuple[str, str], connected: ByteSocket) -> None:
        self.origin = origin
        self.reused = False
        self.idle_since = 0.0
        self.target_prefix = ""
        self.headers: tuple[tuple[str, str], ...] = ()
        self._pid = _process.here
        self.socket = connected
        # What was received beyond what was asked for.
        self._ahead = b""
        # How much is asked for with a head. Objects of a dataset are alike, so most answers come in one call.
        self._first = _RECEIVE
        # Whether the last request went out whole, and its answer came in whole.
        self._sent = self._received = True
        self._keeps_alive = True

    @property
    def is_reusable(self) -> bool:
        """Whether another request may be sent."""
        return self._sent and self._received and self._keeps_alive and not self._ahead

    def __del__(self) -> None:
        # In a forked child it is the parent that goes on to use it.
        if self._pid == _process.here:
            self.socket.close()

    def ask(
        self, head: bytes, body: memoryview | None = None, *, has_answer_body: bool = True
    ) -> ResponseHead:
        """Sends a request and receives the head of the answer.

        A server may answer before it has the whole body; then the rest is not sent. The answer to a HEAD has
        a length, but no body.

        Raises:
            StaleConnectionError: A kept connection was closed before anything of an answer came.
            OSError: The connection broke, or nothing moved for too long (``TimeoutError``).
            S3ConnectionError: The answer is malformed.
        """
        self._sent = self._received = False
        self.socket.stall.expect_bytes()
        try:
            answer = self._send(head, body) or self._receive_final_head()
        except TimeoutError:
            raise
        except OSError as exc:
            if self.reused and not self._ahead:
                raise StaleConnectionError from exc
            raise
        if not self._sent and answer.status < FIRST_ERROR_STATUS:
            raise S3ConnectionError("the server answered with success before it had the whole body")
        self.socket.stall.expect_bytes()
        self._keeps_alive = answer.keeps_alive
        if not has_answer_body:
            self._keeps_alive = answer.may_be_kept
            return replace(answer, is_chunked=False, length=0)
        length = answer.length or 0
        self._first = max(_RECEIVE, length + _HEAD) if length <= _SMALL else _RECEIVE
        return answer

    def receive_into(self, view: memoryview) -> int:
        """Receives bytes of the body into memory and returns how many, 0 only at the end."""
        if self._ahead:
            piece = self._take_ahead(len(view))
            view[: len(piece)] = piece
            return len(piece)
        return self.socket.receive_into(view)

    def receive(self, limit: int) -> bytes:
        """Receives bytes of the body, none only at the end."""
        return self._take_ahead(limit) if self._ahead else self.socket.receive(limit, whole=True)

    def end_body(self) -> None:
        """Takes note that the body was received whole."""
        self._received = True

    def pieces(self, head: ResponseHead) -> Iterator[bytes]:
        """Receives the body piece by piece, in whatever way its end is told.

        Raises:
            TruncatedError: The connection ended before the body did.
        """
        if head.is_chunked:
            yield from self._chunks()
        elif head.length is None:
            while piece := self._take_ahead(_RECEIVE) or self.socket.receive(_RECEIVE):
                yield piece
        else:
            missing = head.length
            while missing:
                piece = self.receive(min(missing, _SEND))
                if not piece:
                    raise TruncatedError(f"got {head.length - missing} of {head.length} bytes")
                missing -= len(piece)
                yield piece
        self.end_body()

    def body(self, head: ResponseHead, limit: int) -> bytes:
        """Receives a body that is kept in memory, as far as it is not longer than ``limit``."""
        pieces: list[bytes] = []
        received = 0
        for piece in self.pieces(head):
            pieces.append(piece[: limit - received])
            received += len(pieces[-1])
            if received == limit:
                break
        return b"".join(pieces)

    def _send(self, head: bytes, body: memoryview | None) -> ResponseHead | None:
        """Sends a request; returns the head of an answer that came before the end."""
        try:
            if body is None or len(body) <= _RECEIVE:
                answer = self._send_all(memoryview(head if body is None else b"".join((head, body))))
            else:
                answer = self._send_all(memoryview(head)) or self._send_all(body)
        except TimeoutError:
            raise
        except OSError as exc:
            # The server may have told why, and closed the connection then.
            try:
                return self._receive_final_head()
            except OSError:
                raise exc from None
        self._sent = answer is None
        return answer

    def _send_all(self, data: memoryview) -> ResponseHead | None:
        start, size = 0, len(data)
        while start < size:
            with data[start : start + _SEND] as piece:
                count = self.socket.send(piece)
            start += count
            if start < size and self.socket.has_answer():
                self.socket.stall.expect_head()
                answer = self._receive_head()
                if answer.status >= _FIRST_FINAL_STATUS:
                    return answer
                self.socket.stall.expect_bytes()
        return None

    def _receive_final_head(self) -> ResponseHead:
        self.socket.stall.expect_head()
        head = self._receive_head()
        while head.status < _FIRST_FINAL_STATUS:
            head = self._receive_head()
        return head

    def _receive_head(self) -> ResponseHead:
        end = self._ahead.find(_HEAD_END)
        while end < 0 and len(self._ahead) <= MAX_HEAD:
            piece = self.socket.receive(self._first)
            if not piece:
                raise ConnectionResetError("the server closed the connection before its answer was whole")
            self._ahead = self._ahead + piece if self._ahead else piece
            end = self._ahead.find(_HEAD_END)
        if not 0 <= end <= MAX_HEAD:
            raise S3ConnectionError(f"the head of the answer is longer than {MAX_HEAD} bytes")
        head = response_head(self._ahead[:end])
        if head.status == _SWITCHING_PROTOCOLS:
            raise S3ConnectionError("the server switched to another protocol without being asked")
        self._ahead = self._ahead[end + len(_HEAD_END) :]
        return head

    def _chunks(self) -> Iterator[bytes]:
        decoder = ChunkedDecoder()
        while not decoder.ended:
            data = self._take_ahead(_RECEIVE) or self.socket.receive(_RECEIVE)
            if not data:
                raise TruncatedError("the connection ended before the last chunk")
            yield from decoder.feed(data)
        self._ahead = decoder.rest + self._ahead

    def _take_ahead(self, limit: int) -> bytes:
        piece, self._ahead = self._ahead, b""
        if len(piece) > limit:
            piece, self._ahead = piece[:limit], piece[limit:]
        return piece


class Connections:
    """Hands out connections and takes them back; may be used by many threads at a time.

    Args:
        maker: Makes those that are missing.
        context: The settings, and whom to trust.

    Attributes:
        target: How many small requests to have in flight.
    """

    def __init__(self, maker: ConnectionMaker, context: TransportContext) -> None:
        self._maker = maker
        self._limit = context.config.connections
        self._idle = shared.get().join(self, context)
        self.target = self._idle.target(self._limit)
        self._closed = False

    def take(self, endpoint: BucketEndpoint, *, fresh: bool = False) -> Connection:
        """Returns a connection to the host of a bucket.

        Args:
            endpoint: The address.
            fresh: Whether it has to be a new one.

        Raises:
            OSError: None could be made.
        """
        origin = (endpoint.scheme, endpoint.host)
        while not fresh:
            kept = self._idle.take(origin)
            if kept is None:
                break
            if kept.socket.is_alive():
                return kept
            kept.socket.close()
        return self._maker.connect(*origin)

    def give_back(self, connection: Connection) -> None:
        """Takes a connection back; keeps it if it may be used again."""
        if self._closed or not connection.is_reusable:
            connection.socket.close()
            return
        if not connection.reused:
            self._maker.sessions[connection.origin] = connection.socket.session
        connection.reused, connection.idle_since = True, time.monotonic()
        self._idle.keep(connection, self._limit)
        if self._closed:
            self.close()

    def close(self) -> None:
        """Closes the idle connections, unless others share them.

        Those in use are closed when they come back.
        """
        self._closed = True
        self._idle.leave(self)


class IdleConnections:
    """The idle connections of all transports of a process whose settings are equal.

    They outlive a transport that is dropped, because the next dataset or checkpoint of the same settings
    would have to connect again. The thread that closes what was idle for too long keeps them until then.
    """

    def __init__(self) -> None:
        # In the order in which they were given back; the last one is the warmest.
        self._connections: list[Connection] = []
        self._users: weakref.WeakSet[Connections] = weakref.WeakSet()
        # By their limits.
        self._targets: dict[int, RequestTarget] = {}
        self._is_watched = False
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.

    def join(self, user: Connections) -> None:
        with self._lock:
            self._users.add(user)

    def target(self, limit: int) -> RequestTarget:
        with self._lock:
            return self._targets.setdefault(limit, RequestTarget(limit, fewest=_FEWEST))

    def leave(self, user: Connections) -> None:
        with self._lock:
            self._users.discard(user)
            dropped: list[Connection] = []
            if not self._users:
                dropped, self._connections = self._connections, []
        _close_all(dropped)

    def take(self, origin: tuple[str, str]) -> Connection | None:
        with self._lock:
            for index in reversed(range(len(self._connections))):
                if self._connections[index].origin == origin:
                    return self._connections.pop(index)
        return None

    def keep(self, connection: Connection, limit: int) -> None:
        with self._lock:
            self._connections.append(connection)
            dropped = self._drop(len(self._connections) - limit)
            starts, self._is_watched = not self._is_watched, True
        _close_all(dropped)
        if starts:
            try:
                start_thread(self._watch, name="s3torch-idle")
            except S3Error:  # Then old ones are closed when others are given back.
                self._is_watched = False

    def _watch(self) -> None:
        """Closes what is idle for too long, on a thread that ends with the last one."""
        while self._is_watched:
            time.sleep(_IDLE_SECONDS)
            with self._lock:
                dropped = self._drop(0)
                self._is_watched = bool(self._connections)
            _close_all(dropped)

    def _drop(self, surplus: int) -> list[Connection]:
        """Takes out what was idle for too long, and the oldest beyond the limit."""
        oldest = time.monotonic() - _IDLE_SECONDS
        kept = self._connections
        count = 0
        while count < len(kept) and (count < surplus or kept[count].idle_since < oldest):
            count += 1
        dropped, self._connections = kept[:count], kept[count:]
        return dropped


class _SharedIdle:
    """The idle connections of a process, by the settings that a connection has."""

    def __init__(self) -> None:
        self._by_kind: weakref.WeakValueDictionary[Hashable, IdleConnections] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()

    def join(self, user: Connections, context: TransportContext) -> IdleConnections:
        """Returns those that a transport with these settings shares."""
        from urllib.request import getproxies

        config = context.config
        kind = (
            context.session.ca_bundle,
            config.read_timeout,
            config.low_speed_limit,
            config.low_speed_time,
            tuple(sorted(getproxies().items())),
        )
        with self._lock:
            idle = self._by_kind.get(kind)
            if idle is None:
                idle = self._by_kind[kind] = IdleConnections()
            idle.join(user)
        return idle


shared = PerProcess(_SharedIdle)


def _close_all(connections: list[Connection]) -> None:
    for connection in connections:
        connection.socket.close()

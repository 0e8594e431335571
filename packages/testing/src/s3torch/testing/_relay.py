"""One client's connection to the proxy: request after request goes to the server, and comes back damaged.

h11 reads the heads and finds the ends of bodies. Heads of responses are written here, because h11 writes none
that is wrong, and tests ask for such.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import h11

from s3torch.core.ranges import KIB
from s3torch.testing._faults import decoded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from s3torch.testing._faults import Exchange, Reply, Side

    # With names in lower case.
    Headers = Mapping[str, str]
    Response = h11.InformationalResponse | h11.Response

_BUFFER = 256 * KIB
_LONGEST_HEAD = 256 * KIB
_DRAIN_TIMEOUT = 1.0
# Closing with this option sends a reset instead of an orderly end.
_NO_LINGER = struct.pack("ii", 1, 0)
# So that what was sent before a reset is with the peer's program, not in a buffer that the reset discards.
_BEFORE_RESET = 0.05
_EARLY_ANSWER = 0.05
_REQUEST_ID = "FAULT0000000001"


class PeerError(ConnectionError):
    """The peer has gone or does not speak HTTP/1.1, or a fault has ended the connection."""


class _Peer:
    """One end of a connection: h11 reads what comes from there, message by message."""

    def __init__(self, connection: socket.socket, role: type[h11.CLIENT | h11.SERVER]) -> None:
        connection.setblocking(False)  # noqa: FBT003 - the name of the method says it
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = asyncio.get_running_loop()
        self._socket = connection
        self._buffer = memoryview(bytearray(_BUFFER))
        self._role = role
        self._http = h11.Connection(role, _LONGEST_HEAD)
        self.trailers = b""

    @property
    def expects_continue(self) -> bool:
        """Whether the client sends no body before it is told to."""
        return self._http.they_are_waiting_for_100_continue

    @property
    def ended(self) -> bool:
        """Whether the peer has sent its last byte, as far as was read."""
        return self._http.trailing_data[1]

    async def request(self) -> h11.Request | None:
        """Reads the next head; ``None`` if the connection ends before it begins."""
        self._begin()
        event = await self._event()
        return event if isinstance(event, h11.Request) else None

    async def ask(self, request: h11.Request) -> None:
        """Sends the head of a request, and knows from then on how its response ends."""
        self._begin()
        await self.send(self._http.send(request))

    async def response(self) -> Response:
        event = await self._event()
        if not isinstance(event, h11.InformationalResponse | h11.Response):
            raise PeerError("the server closed the connection without an answer")
        return event

    async def body(self, headers: Headers) -> AsyncIterator[memoryview]:
        """Reads the content of the body behind a head; each piece is valid until the next one."""
        left = 0 if _is_chunked(headers) else _length(headers)
        while not isinstance(event := self._next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                left -= len(event.data)
                yield memoryview(event.data)
            elif left <= 0:
                await self._receive()
            else:  # h11 would copy every byte three times.
                while left:
                    piece = self._buffer[: await self._receive_into(self._buffer[:left])]
                    if not piece:
                        raise PeerError(f"the connection ended {left} bytes too early")
                    left -= len(piece)
                    yield piece
                return
        self.trailers = _lines(event.headers.raw_items())

    async def send(self, data: memoryview | bytes) -> None:
        await self._loop.sock_sendall(self._socket, data)

    def is_stale(self) -> bool:
        """Whether the peer has closed an idle connection, or has sent what nobody asked for."""
        if self._http.trailing_data[0]:
            return True
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def reset_on_close(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)

    async def finish(self) -> None:
        """Ends the connection so that the peer gets what was sent to it, although it is still sending."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(_DRAIN_TIMEOUT):
                while await self._loop.sock_recv_into(self._socket, self._buffer):
                    pass
        except (OSError, TimeoutError):
            pass

    def close(self) -> None:
        self._socket.close()

    def _begin(self) -> None:
        ahead, _ = self._http.trailing_data
        self._http = h11.Connection(self._role, _LONGEST_HEAD)
        if ahead:
            self._http.receive_data(ahead)

    async def _event(self) -> object:
        while (event := self._next_event()) is h11.NEED_DATA:
            await self._receive()
        return event

    def _next_event(self) -> object:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as exc:
            raise PeerError(str(exc)) from exc

    async def _receive(self) -> None:
        received = self._buffer[: await self._receive_into(self._buffer)]
        self._http.receive_data(received)  # type: ignore[arg-type]  # It copies any buffer.

    async def _receive_into(self, buffer: memoryview) -> int:
        try:
            return await self._loop.sock_recv_into(self._socket, buffer)
        except OSError as exc:
            raise PeerError("the connection broke") from exc


class Relay:
    """Serves one accepted connection; ``begin`` records each request, and says what goes wrong with it."""

    def __init__(
        self, client: socket.socket, server: tuple[str, int], begin: Callable[[h11.Request], Exchange]
    ) -> None:
        self._client = _Peer(client, h11.SERVER)
        self._address = server
        self._server: _Peer | None = None
        self._begin = begin
        self._reset = False

    async def serve(self) -> None:
        """Passes requests on until one side ends."""
        try:
            try:
                while (head := await self._client.request()) and await self._pass_request(head):
                    pass
            except* (OSError, h11.ProtocolError):
                pass  # Client, server or fault has ended a connection, which is what this is for.
            if not self._reset:
                await self._client.finish()
        finally:
            self._client.close()
            self._forget_server()

    async def _pass_request(self, request: h11.Request) -> bool:
        """Passes one request and its response; returns whether the connection can be used again."""
        exchange = self._begin(request)
        if exchange.fault.reply is not None:
            return await self._reply(request, exchange, exchange.fault.reply)
        await self._interrupt("request", exchange, at=None)
        server = await self._connected()
        await server.ask(request)
        headers = exchange.request.headers
        if not (_is_chunked(headers) or _length(headers)):
            return await self._answer(request, exchange, server)
        async with asyncio.TaskGroup() as group:
            upload = group.create_task(self._upload(exchange, server))
            reusable = await self._answer(request, exchange, server)
            # A server may answer before it has read everything, and then never read the rest.
            await asyncio.wait({upload}, timeout=_EARLY_ANSWER)
            complete = upload.done() and upload.result()
            upload.cancel()
        return reusable and complete

    async def _upload(self, exchange: Exchange, server: _Peer) -> bool:
        """Passes the body of a request; returns whether the server took all of it."""
        try:
            await self._pass_body("request", exchange, exchange.request.headers, self._client, server)
        except PeerError:
            raise
        except OSError:
            return False  # The server has stopped reading; its answer says why.
        return True

    async def _answer(self, request: h11.Request, exchange: Exchange, server: _Peer) -> bool:
        while isinstance(response := await server.response(), h11.InformationalResponse):
            await self._client.send(_head(response, response.headers.raw_items()))
        if exchange.fault.latency is not None:
            await asyncio.sleep(exchange.fault.latency)
        await self._interrupt("response", exchange, at=None)
        headers = decoded(response.headers.raw_items())
        await self._client.send(_changed_head(response, exchange))
        if request.method != b"HEAD" and response.status_code not in (204, 304):
            await self._pass_body("response", exchange, headers, server, self._client)
        server_goes_on = _keeps_alive(response, headers) and not server.ended
        if not server_goes_on:
            self._forget_server()
        return server_goes_on and _keeps_alive(request, exchange.request.headers)

    async def _reply(self, request: h11.Request, exchange: Exchange, reply: Reply) -> bool:
        reusable = _keeps_alive(request, exchange.request.headers) and not self._client.expects_continue
        if not self._client.expects_continue:
            async for _ in self._client.body(exchange.request.headers):
                pass
        await asyncio.sleep(exchange.fault.latency or 0)
        body = b"" if request.method == b"HEAD" else _body(reply)
        headers = [
            ("x-amz-request-id", _REQUEST_ID),
            ("Content-Type", "application/xml"),
            ("Content-Length", str(len(body))),
            ("Connection", "keep-alive" if reusable else "close"),
        ]
        reason = reply.code.encode("latin-1")
        response = h11.Response(status_code=reply.status, headers=headers, reason=reason)
        exchange.passed["response"] = len(body)
        await self._client.send(_changed_head(response, exchange) + body)
        return reusable

    async def _pass_body(
        self, side: Side, exchange: Exchange, headers: Headers, source: _Peer, target: _Peer
    ) -> None:
        is_chunked = _is_chunked(headers)
        bandwidth = exchange.fault.bandwidth
        begun = asyncio.get_running_loop().time()
        async for content in source.body(headers):
            rest = content
            while rest:
                await self._interrupt(side, exchange, at=exchange.passed[side])
                part = rest[: exchange.room(side)]
                rest = rest[len(part) :]
                exchange.take(side, part)
                if is_chunked:
                    await target.send(b"%x\r\n" % len(part))
                await target.send(part)
                if is_chunked:
                    await target.send(b"\r\n")
                if bandwidth is not None:
                    passed = asyncio.get_running_loop().time() - begun
                    await asyncio.sleep(exchange.passed[side] / bandwidth - passed)
        if is_chunked:
            await target.send(b"0\r\n" + source.trailers)

    async def _interrupt(self, side: Side, exchange: Exchange, *, at: int | None) -> None:
        """Makes what interrupts a request or a response at this point of its body, or before it, happen."""
        interruption = exchange.fault.interruption
        if interruption is None or (interruption.side, interruption.after) != (side, at):
            return
        if interruption.kind == "stall":
            await asyncio.sleep(interruption.seconds)
            return
        if interruption.kind == "reset":
            await asyncio.sleep(_BEFORE_RESET)
            self._reset = True
            self._client.reset_on_close()
        raise PeerError(f"{interruption.kind} asked for by a test")

    async def _connected(self) -> _Peer:
        if self._server is not None and self._server.is_stale():
            self._forget_server()
        if self._server is None:
            connection = socket.socket()
            try:
                connection.setblocking(False)  # noqa: FBT003 - the name of the method says it
                await asyncio.get_running_loop().sock_connect(connection, self._address)
                self._server = _Peer(connection, h11.CLIENT)
            except BaseException:
                connection.close()
                raise
        return self._server

    def _forget_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


def _is_chunked(headers: Headers) -> bool:
    return "transfer-encoding" in headers


def _length(headers: Headers) -> int:
    return int(headers.get("content-length", 0))


def _keeps_alive(head: h11.Request | h11.Response, headers: Headers) -> bool:
    """Whether the connection serves another request after this one."""
    return head.http_version == b"1.1" and "close" not in headers.get("connection", "").lower()


def _changed_head(response: h11.Response, exchange: Exchange) -> bytes:
    """Returns the head of a response with the headers of the fault, and records it."""
    changes = exchange.fault.headers
    changed = {name.lower().encode("latin-1") for name in changes}
    headers = [(name, value) for name, value in response.headers.raw_items() if name.lower() not in changed]
    headers += [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in changes.items()
        if value is not None
    ]
    exchange.answered(response.status_code, decoded(headers))
    return _head(response, headers)


def _head(response: Response, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    first = b"HTTP/%b %d %b\r\n" % (response.http_version, response.status_code, response.reason)
    return first + _lines(headers)


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n"


def _body(reply: Reply) -> bytes:
    if reply.body is not None:
        return reply.body.encode()
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{escape(reply.code)}</Code><Message>{escape(reply.message)}</Message>"
        f"<RequestId>{_REQUEST_ID}</RequestId><HostId>fault</HostId></Error>"
    ).encode()

"""One client's connection to the proxy: request after request goes to the server, and comes back damaged."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from s3torch.testing._passage import Passage
from s3torch.testing._wire import Head, Wire, WireError

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.testing._faults import Break, Fault, Reply, Side
    from s3torch.testing._recording import Entry

# So that what was sent before a reset is with the peer's program, not in a buffer that the reset discards.
_BEFORE_RESET = 0.05
_EARLY_ANSWER = 0.05
_REQUEST_ID = "FAULT0000000001"


class Relay:
    """Serves one connection.

    Args:
        client: The accepted connection.
        server: The address of the server.
        begin: Called with the head of every request; notes it, and says what goes wrong with it.
    """

    def __init__(
        self,
        client: socket.socket,
        server: tuple[str, int],
        begin: Callable[[Head], tuple[Entry, Fault]],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = Wire(self._loop, client)
        self._address = server
        self._server: Wire | None = None
        self._begin = begin
        self._reset = False

    async def serve(self) -> None:
        """Passes requests on until one side ends."""
        try:
            try:
                while (head := await self._client.head()) and await self._exchange(head):
                    pass
            except* OSError:
                pass  # Client, server or fault has ended a connection, which is what this is for.
            if not self._reset:
                await self._client.finish()
        finally:
            self._client.close()
            self._forget_server()

    async def _exchange(self, request: Head) -> bool:
        """Passes one request and its response; tells whether the connection can be used again."""
        entry, fault = self._begin(request)
        if fault.reply is not None:
            return await self._reply(request, entry, fault, fault.reply)
        await self._interrupt_before(fault, "request")
        server = await self._connected()
        await server.send(request.raw)
        if request.request_body() == 0:
            return await self._answer(request, entry, fault, server)
        async with asyncio.TaskGroup() as group:
            upload = group.create_task(self._upload(request, entry, fault, server))
            reusable = await self._answer(request, entry, fault, server)
            # A server may answer before it has read everything, and then never read the rest.
            await asyncio.wait({upload}, timeout=_EARLY_ANSWER)
            complete = upload.done() and upload.result()
            upload.cancel()
        return reusable and complete

    async def _upload(self, request: Head, entry: Entry, fault: Fault, server: Wire) -> bool:
        """Passes the body of a request; tells whether the server took all of it."""
        passage = Passage(
            self._client, server, side="request", fault=fault, entry=entry, interrupt=self._break
        )
        try:
            await passage.run(request.request_body())
        except WireError:
            raise
        except OSError:
            return False  # The server has stopped reading; its answer says why.
        return True

    async def _answer(self, request: Head, entry: Entry, fault: Fault, server: Wire) -> bool:
        while True:
            head = await server.head()
            if head is None:
                raise WireError("the server closed the connection without an answer")
            if head.status >= 200:
                break
            await self._client.send(head.raw)
        await asyncio.sleep(fault.latency or 0)
        await self._interrupt_before(fault, "response")
        body = head.response_body(request.words[0])
        reusable = head.keeps_alive and request.keeps_alive and body != "to the end"
        if fault.headers:
            head = Head.parse(head.with_headers(fault.headers))
        entry.status, entry.response_headers = head.status, head.headers
        await self._client.send(head.raw)
        passage = Passage(
            server, self._client, side="response", fault=fault, entry=entry, interrupt=self._break
        )
        await passage.run(body)
        if not head.keeps_alive or body == "to the end":
            self._forget_server()
        return reusable

    async def _reply(self, request: Head, entry: Entry, fault: Fault, reply: Reply) -> bool:
        reusable = request.keeps_alive
        if "100-continue" in request.headers.get("expect", "").lower():
            reusable = False  # The client sends no body before it is told to.
        else:
            async for _ in self._client.body(request.request_body()):
                pass
        await asyncio.sleep(fault.latency or 0)
        body = b"" if request.words[0] == "HEAD" else _body(reply)
        head = Head.parse(
            f"HTTP/1.1 {reply.status} {reply.code}\r\n"
            f"x-amz-request-id: {_REQUEST_ID}\r\n"
            "Content-Type: application/xml\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"Connection: {'keep-alive' if reusable else 'close'}\r\n\r\n".encode("latin-1")
        )
        head = Head.parse(head.with_headers(fault.headers))
        entry.status, entry.response_headers = head.status, head.headers
        entry.count("response", len(body))
        await self._client.send(head.raw + body)
        return reusable

    async def _interrupt_before(self, fault: Fault, side: Side) -> None:
        """Makes what interrupts the request or the response happen, if that is before its first byte."""
        interruption = fault.interruption
        if interruption is not None and interruption.side == side and interruption.after is None:
            await self._break(interruption)

    async def _break(self, interruption: Break) -> None:
        if interruption.kind == "stall":
            await asyncio.sleep(interruption.seconds)
            return
        if interruption.kind == "reset":
            await asyncio.sleep(_BEFORE_RESET)
            self._reset = True
            self._client.reset_on_close()
        raise WireError(f"{interruption.kind} asked for by a test")

    async def _connected(self) -> Wire:
        if self._server is not None and self._server.is_stale():
            self._forget_server()
        if self._server is None:
            connection = socket.socket()
            try:
                connection.setblocking(False)  # noqa: FBT003 - the name of the method says it
                await self._loop.sock_connect(connection, self._address)
                self._server = Wire(self._loop, connection)
            except BaseException:
                connection.close()
                raise
        return self._server

    def _forget_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


def _body(reply: Reply) -> bytes:
    if reply.body is not None:
        return reply.body.encode()
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{escape(reply.code)}</Code><Message>{escape(reply.message)}</Message>"
        f"<RequestId>{_REQUEST_ID}</RequestId><HostId>fault</HostId></Error>"
    ).encode()

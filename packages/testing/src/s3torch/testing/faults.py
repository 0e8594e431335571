"""A proxy that counts requests and breaks connections, for tests of what happens then.

``FaultProxy`` stands between a client and an S3 server on loopback. It passes headers and contents on
unchanged, the ``Host`` header too, so signatures stay valid; it records each request; and it does damage on
the wire where a test has asked for it::

    with start_seaweedfs() as server, FaultProxy(server.endpoint) as proxy:
        client = make_client(server.at(proxy.endpoint))
        proxy.add(Fault.slow_down(), method="GET", times=2)
        client.get("bucket", "key")
        assert len(proxy.requests("GET", key="key")) == 3

A network like that of a region is ``proxy.add(Fault(latency=0.025, bandwidth=90e6))``. The proxy moves
several hundred megabytes per second in pieces of 256 KiB, and holds no more of a body than one of them.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import operator
import os
import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from s3torch.core.errors import ConfigurationError
from s3torch.testing._faults import Break, Exchange, Fault, FaultRule, Flip, Reply, Request, fits
from s3torch.testing._relay import Relay
from s3torch.testing._seaweedfs import HOST

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    import h11

__all__ = ["Break", "Fault", "FaultProxy", "FaultRule", "Flip", "Reply", "Request"]

_BACKLOG = 512

_log = logging.getLogger(__name__)


class FaultProxy:
    """An HTTP proxy on a free port of loopback; a context manager.

    It runs in a thread of its own. Its methods may be called from any thread, also while requests are under
    way. A forked child can send requests through the proxy of its parent, but has no proxy itself.

    Args:
        upstream: The address of the server, as in ``http://127.0.0.1:10101``.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise ConfigurationError(f"upstream must be like http://127.0.0.1:8333, got {upstream!r}")
        self.upstream = upstream
        self._address = (parts.hostname, parts.port)
        # Reentrant, as a match function may ask for the requests so far.
        self._lock = threading.RLock()
        self._exchanges: list[Exchange] = []
        self._rules: list[FaultRule] = []
        self._errors: list[BaseException] = []
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._owner = os.getpid()

    @property
    def endpoint(self) -> str:
        """The address to give to the client.

        Raises:
            ConfigurationError: The proxy does not run.
        """
        if self._listener is None:
            raise ConfigurationError("the proxy does not run; use it in a with statement, or call start()")
        return f"http://{HOST}:{self._listener.getsockname()[1]}"

    @property
    def bytes_sent(self) -> int:
        """Bytes of bodies that were passed on to clients."""
        return sum(request.response_bytes for request in self.requests())

    @property
    def bytes_received(self) -> int:
        """Bytes of bodies that were passed on to the server."""
        return sum(request.request_bytes for request in self.requests())

    def requests(self, method: str | None = None, *, key: str | None = None) -> list[Request]:
        """Returns the requests so far, in the order in which they came.

        A client that has its response finds the request here with all its facts.

        Args:
            method: Only those of this HTTP method.
            key: Only those with this in their key.
        """
        with self._lock:
            requests = [exchange.snapshot() for exchange in self._exchanges]
        return [request for request in requests if fits(request, method, key)]

    def clear(self) -> None:
        """Forgets the requests so far; the faults stay."""
        with self._lock:
            self._exchanges.clear()

    def add(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        key: str | None = None,
        match: Callable[[Request], bool] | None = None,
        skip: int = 0,
        times: int | None = None,
    ) -> FaultRule:
        """Makes something go wrong with requests that come from now on.

        Args:
            fault: What goes wrong.
            method: Only requests of this HTTP method.
            key: Only requests with this in their key.
            match: Only requests for which this returns true. It is called in the thread of the proxy; what it
                raises ends the connection, and is raised again by ``close``.
            skip: How many of these requests are left alone first.
            times: How many are struck after them; by default all.

        Returns:
            The rule, which counts its ``hits`` and can be taken away again with ``remove``.
        """
        rule = FaultRule(fault, method, key, match, skip, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    def remove(self, rule: FaultRule) -> None:
        """Takes a fault away; requests that it has struck already are not healed."""
        with self._lock:
            self._rules.remove(rule)

    def heal(self) -> None:
        """Takes all faults away; requests that they have struck already are not healed."""
        with self._lock:
            self._rules.clear()

    def start(self) -> Self:
        """Starts to listen, and returns the proxy itself; does nothing if it runs."""
        if self._thread is None:
            self._listener = listener = socket.create_server((HOST, 0), backlog=_BACKLOG)
            listener.setblocking(False)  # noqa: FBT003 - the name of the method says it
            self._owner = os.getpid()
            started = threading.Event()
            self._thread = threading.Thread(
                target=lambda: asyncio.run(self._serve(listener, started)),
                name="s3torch-fault-proxy",
                daemon=True,
            )
            self._thread.start()
            started.wait()
        return self

    def close(self) -> None:
        """Ends all connections and the proxy; may be called again.

        Raises:
            BaseException: What a ``match`` function has raised, if one has.
        """
        if self._thread is None or os.getpid() != self._owner:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._errors:
            raise self._errors.pop(0)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except Exception:
            if exc_type is None:
                raise

    async def _serve(self, listener: socket.socket, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        started.set()
        relays: set[asyncio.Task[None]] = set()
        # Not with ``sock_accept``, which loses a connection if it is cancelled at that moment.
        self._loop.add_reader(listener.fileno(), self._accept, listener, relays)
        await self._stop.wait()
        self._loop.remove_reader(listener.fileno())
        # All connections end here, too: their tasks are cancelled with the loop.

    def _accept(self, listener: socket.socket, relays: set[asyncio.Task[None]]) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # Whoever connected is gone already.
            return
        connection.setblocking(False)  # noqa: FBT003 - the name of the method says it
        relay = self._loop.create_task(self._relay(connection))
        relays.add(relay)
        relay.add_done_callback(relays.discard)
        # A task that is cancelled before its first step does not close anything itself.
        relay.add_done_callback(functools.partial(_close, connection))

    async def _relay(self, connection: socket.socket) -> None:
        try:
            await Relay(connection, self._address, self._begin).serve()
        except Exception as exc:  # noqa: BLE001 - close raises it again
            _log.exception("a connection of the proxy failed")
            self._errors.append(exc)

    def _begin(self, head: h11.Request) -> Exchange:
        exchange = Exchange.of(head)
        with self._lock:
            self._exchanges.append(exchange)
            struck = [rule.fault for rule in self._rules if rule.strikes(exchange.request)]
        exchange.fault = functools.reduce(operator.or_, struck, Fault())
        return exchange


def _close(connection: socket.socket, _: object) -> None:
    connection.close()

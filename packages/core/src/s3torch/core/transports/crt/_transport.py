"""The transport over the AWS Common Runtime (awscrt): event loops, one native client per host, signing.

Facts about awscrt that this folder rests on, checked on 0.38:

* A ranged ``GET_OBJECT`` no larger than the client's part size is exactly one HTTP request, with pooled
  part buffers; ``DEFAULT`` grows its buffer and costs half as much CPU time again.
* ``on_body`` gets the offset in the object, not in the range, on a thread of the CRT.
* The native error objects cannot be unpickled, so they never leave this folder but as ``__cause__``.
* Of an answer nothing is told before its end, so time-outs are for whole answers (``_watch``).
* ``finished_future`` is set before ``on_done`` runs; ``on_done`` is what this folder listens to.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core._process import PerProcess
from s3torch.core._resources import GBPS_PER_CONNECTION, exhausted_files, throughput_share
from s3torch.core.errors import S3Error, TransportError
from s3torch.core.plugins import hookimpl
from s3torch.core.ranges import MIB
from s3torch.core.requests import body_of, request_headers, request_target
from s3torch.core.transports._request_target import RequestTarget
from s3torch.core.transports._retries import Throttling
from s3torch.core.transports._signing import make_signing_config
from s3torch.core.transports.crt._connections import SharedClient, natives
from s3torch.core.transports.crt._log import native_log
from s3torch.core.transports.crt._transfer import CrtTransfer
from s3torch.core.transports.crt._watch import Watch, timer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from awscrt.auth import AwsSigningConfig
    from awscrt.io import ClientBootstrap
    from awscrt.s3 import S3Request

    from s3torch.core.models import BucketEndpoint, Credentials
    from s3torch.core.requests import Request
    from s3torch.core.seam import TransportContext

T = TypeVar("T")

# Transfers from this size on are bounded by whoever starts them.
_LARGE = 1 * MIB
# The smallest that the CRT takes. What is in flight is bounded by s3torch; this only must not be in its way.
_CRT_MEMORY_LIMIT = 1 << 30
_MAX_EVENT_LOOPS = 8
# One for each pair of keys and endpoint; directory buckets have keys of their own.
_MAX_SIGNING_CONFIGS = 64
_FILES_PER_LOOP = 3
_SPARE_FILES = 8
_FEWEST_TURNS = 8
_STALL_SECONDS = 1.0


@hookimpl
def s3torch_create_transport(context: TransportContext) -> CrtTransport:
    """Creates the transport."""
    return CrtTransport(context)


class CrtTransport:
    """Moves bytes with awscrt. The rules are those of ``s3torch.core.seam``."""

    buffers_parts = True

    def __init__(self, context: TransportContext) -> None:
        self._context = context
        self._runtime = CrtRuntime(context)
        self.live: set[CrtTransfer[Any]] = set()
        self.watch = Watch(context.config, self.live, self._runtime)
        self._turns: dict[str, Turns] = {}
        self.attempts = context.config.attempts
        self.throttling = Throttling()
        self.on_retry = context.on_retry
        self.closed = False
        # Whether the store tells ETags, without which the CRT takes no range.
        self.has_etags = True

    def send(
        self, request: Request[T], *, body: memoryview | None = None, into: memoryview | None = None
    ) -> CrtTransfer[T]:
        """Starts a request."""
        if self.closed:
            raise ValueError("the transport is closed")
        payload = body_of(request, body)
        is_small = len(request.byte_range or payload or ()) < _LARGE
        turns = self._turns_of(request.bucket) if is_small else None
        transfer = CrtTransfer(request, payload, into, self)
        transfer.begin(turns)
        return transfer

    def _turns_of(self, bucket: str) -> Turns | None:
        """Returns the turns of small requests to a bucket; ``None`` where the request will fail."""
        turns = self._turns.get(bucket)
        with suppress(S3Error):  # The transfer raises it.
            if turns is None:
                endpoint = self._context.session.endpoint(bucket)
                turns = self._turns[bucket] = self._runtime.client(endpoint).turns
            if turns.is_full:
                # Keys that are due are renewed here, and not on the thread of the CRT that gives a turn.
                self._context.session.credentials(bucket)
        return turns

    def close(self) -> None:
        """Cancels what is in flight and lets go of the native clients."""
        self.closed = True
        for transfer in list(self.live):
            transfer.cancel()
        self._runtime.close()

    def renew(self, stale: Credentials | None, bucket: str) -> bool:
        """Fetches other credentials than these for a bucket; ``False`` if there are none."""
        return self._context.session.renew_credentials(stale, bucket)

    def send_native(self, transfer: CrtTransfer[Any]) -> S3Request:
        """Makes the native request of an attempt."""
        from awscrt.http import HttpHeaders, HttpRequest
        from awscrt.s3 import S3RequestType

        session, request, receiver = self._context.session, transfer.request, transfer.receiver
        endpoint = session.endpoint(request.bucket)
        transfer.host, transfer.region = endpoint.host, endpoint.signing_region
        transfer.credentials = session.credentials(request.bucket)
        body = transfer.body.body if transfer.body is not None else None
        headers = request_headers(request, self._context, endpoint, body=body)
        headers += self._runtime.session_headers(endpoint, transfer.credentials)
        ranged = receiver.part_size is not None
        transfer.in_flight = len(self.live)
        transfer.begun_at = time.monotonic()
        if not self.watch.is_looking:
            self.watch.begin()
        native: S3Request = self._runtime.client(endpoint).native.make_request(
            type=S3RequestType.GET_OBJECT if ranged else S3RequestType.DEFAULT,
            operation_name=request.operation,
            request=HttpRequest(
                request.method, request_target(request, endpoint), HttpHeaders(headers), transfer.body
            ),
            signing_config=self._runtime.signing_config(endpoint, transfer.credentials),
            # One request for this range, whatever the part size of the client is.
            part_size=receiver.part_size,
            on_headers=receiver.on_headers,
            on_body=receiver.on_body,
            on_done=transfer.on_done,
        )
        return native


class Turns:
    """Starts small transfers in their order, as many at a time as ``RequestTarget`` says.

    The CRT opens a connection for every request that finds none idle, and a handshake costs more processor
    time than a small object. So requests wait for a turn.
    Where no answer comes for a while, more get their turn at once: some may be stuck.

    Args:
        limit: The most that are in flight.
        clock: Tells the seconds.
    """

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._target = RequestTarget(limit, fewest=_FEWEST_TURNS, connects=True, clock=clock)
        self._clock = clock
        self._in_flight = 0
        self._waiting: deque[Callable[[], object]] = deque()
        self._answered_at = clock()
        self._is_looking = False
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.
        self._here = threading.local()

    @property
    def count(self) -> int:
        """How many may be in flight now."""
        return self._target.count

    @property
    def is_full(self) -> bool:
        """Whether the next request has to wait."""
        return self._in_flight >= self.count

    def enter(self, start: Callable[[], object]) -> None:
        """Calls ``start`` when it is its turn: now, or on the thread that ends another transfer."""
        with self._lock:
            self._waiting.append(start)
        self._start()

    def leave(self, began: float) -> None:
        """Gives a turn back that began then."""
        with self._lock:
            self._in_flight -= 1
            self._answered_at = self._clock()
            if self._waiting:
                self._target.answered(began)
        self._start()

    def _start(self) -> None:
        if getattr(self._here, "is_starting", False):
            return  # A transfer that has failed at once: the loop below goes on.
        self._here.is_starting = True
        try:
            while (start := self._next()) is not None:
                start()
        finally:
            self._here.is_starting = False

    def _next(self) -> Callable[[], object] | None:
        with self._lock:
            if self._waiting and not self.is_full:
                self._in_flight += 1
                return self._waiting.popleft()
            if self._waiting and not self._is_looking and self.count < self._target.limit:
                self._is_looking = True
                timer.get().call_later(_STALL_SECONDS, self._look)
        return None

    def _look(self) -> None:
        with self._lock:
            self._is_looking = False
            if self._clock() - self._answered_at >= _STALL_SECONDS:
                self._target.stuck()
        self._start()


class CrtRuntime:
    """Native clients of one transport in one process, made as hosts are asked for."""

    def __init__(self, context: TransportContext) -> None:
        try:
            # What came last of all that is needed here.
            from awscrt.s3 import S3RetryConfig  # noqa: F401
        except ImportError as exc:
            raise TransportError(
                f"transport 'crt' needs awscrt, which cannot be imported here ({exc}); "
                "install it with pip install awscrt --upgrade, or use transport='http'"
            ) from exc
        self._context = context
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.
        config = context.config
        self.bundle = context.session.ca_bundle
        # What a native client keeps of the settings.
        self._settings = (
            config.part_size,
            config.connections,
            config.throughput_target_gbps,
            config.connect_timeout,
            self.bundle,
        )
        self._clients: dict[Hashable, SharedClient] = {}
        # Scheme and host of each.
        self.servers: set[tuple[str, str]] = set()
        # Also where a transport is dropped without being closed.
        weakref.finalize(self, natives.let_go, self._clients, os.getpid()).atexit = False
        self._signing: dict[tuple[Credentials, str, str, bool], AwsSigningConfig] = {}
        self._bootstrap = _bootstrap.get()

    def client(self, endpoint: BucketEndpoint) -> SharedClient:
        """Returns the native client of a host; a native client knows just one host and port."""
        kind = (endpoint.scheme, endpoint.host, endpoint.signing_region, *self._settings)
        client = self._clients.get(kind)
        if client is None:
            with self._lock:
                client = self._clients.get(kind)
                if client is None:
                    client = natives.take(kind, lambda: self._make_client(endpoint))
                    self._clients[kind] = client
                    self.servers.add((endpoint.scheme, endpoint.host))
        return client

    def signing_config(
        self, endpoint: BucketEndpoint, credentials: Credentials | None
    ) -> AwsSigningConfig | None:
        """Returns how requests to this endpoint are signed with these keys; ``None`` for anonymous ones."""
        if credentials is None:
            return None
        how = (credentials, endpoint.signing_region, endpoint.signing_name, endpoint.session_auth)
        config = self._signing.get(how)
        if config is None:
            with self._lock:
                while len(self._signing) >= _MAX_SIGNING_CONFIGS:
                    # The oldest first: its keys have most likely been renewed since.
                    del self._signing[next(iter(self._signing))]
                config = self._signing[how] = make_signing_config(credentials, endpoint)
        return config

    @staticmethod
    def session_headers(endpoint: BucketEndpoint, credentials: Credentials | None) -> list[tuple[str, str]]:
        """Returns the header with the token of a session with a directory bucket; it is signed as all others.

        With V4_S3EXPRESS the CRT would begin sessions of its own, beside those of boto3 clients, and would
        not tell when one is refused.
        """
        if not endpoint.session_auth or credentials is None or credentials.session_token is None:
            return []
        return [(endpoint.token_header, credentials.session_token)]

    def close(self) -> None:
        """Lets go of the native clients; they end when their last request has."""
        with self._lock:
            natives.let_go(self._clients, os.getpid(), at_once=True)
            self._signing.clear()

    def _make_client(self, endpoint: BucketEndpoint) -> SharedClient:
        from awscrt.s3 import S3Client, S3RequestTlsMode, S3RetryConfig, S3RetryMode

        native_log.get()
        # A client has two more groups of as many event loops.
        _check_files(2 * _event_loops())
        config = self._context.config
        tls = endpoint.scheme == "https"
        native = S3Client(
            bootstrap=self._bootstrap,
            region=endpoint.signing_region,
            tls_mode=S3RequestTlsMode.ENABLED if tls else S3RequestTlsMode.DISABLED,
            tls_connection_options=_tls_options(endpoint.host, self.bundle) if tls else None,
            part_size=config.part_size,
            # The CRT derives from its target how many connections it may have, and the override only caps it.
            throughput_target_gbps=max(
                throughput_share(config.throughput_target_gbps), config.connections * GBPS_PER_CONNECTION
            ),
            max_active_connections_override=config.connections,
            memory_limit=max(_CRT_MEMORY_LIMIT, 4 * config.part_size),
            # s3torch tries again itself: the CRT knows neither 429 nor expired keys nor our time-outs, and
            # does not tell how often it has tried.
            retry_config=S3RetryConfig(retry_mode=S3RetryMode.NONE),
            connect_timeout_ms=math.ceil(config.connect_timeout * 1000),
        )
        return SharedClient(native, Turns(config.connections))


def _event_loops() -> int:
    return max(1, min((os.cpu_count() or 2) // 2 + 1, _MAX_EVENT_LOOPS))


def _check_files(loops: int) -> None:
    """Refuses to begin what would end the process, for want of files, within native code."""
    exhausted = exhausted_files(loops * _FILES_PER_LOOP + _SPARE_FILES)
    if exhausted:
        raise TransportError(f"transport 'crt' cannot start its event loops: {exhausted}")


def _make_bootstrap() -> ClientBootstrap:
    from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup

    _check_files(_event_loops())
    loops = EventLoopGroup(_event_loops())
    return ClientBootstrap(loops, DefaultHostResolver(loops))


# The static default of the CRT does not survive a fork. The clients of a process share these event loops,
# which never end.
_bootstrap = PerProcess(_make_bootstrap)


def _tls_options(host: str, bundle: str | None) -> Any:
    from awscrt.io import ClientTlsContext, TlsContextOptions

    if bundle is None:
        return None
    options = TlsContextOptions()
    try:
        options.override_default_trust_store_from_path(None, bundle)
        connection = ClientTlsContext(options).new_connection_options()
    except Exception as exc:
        raise TransportError(f"the certificates in {bundle} (ca_bundle) cannot be used: {exc}") from exc
    connection.set_server_name(host.rpartition(":")[0] or host)
    return connection

"""The native side of ``crt``: event loops, one client per host, signing, and the native log.

The native log is switched on by the environment. ``S3TORCH_CRT_LOG`` is a level: ``off`` (the default),
``fatal``, ``error``, ``warn``, ``info``, ``debug`` or ``trace``. The log goes to stderr, or, with
``S3TORCH_CRT_LOG_DIR``, to a file of each process in that folder. awscrt takes one log per process, and its
lock does not survive a fork. So the log begins with the first native client, which a program that only starts
workers never makes, and a child of a process with a log has none. awscrt hands each line to a thread that
writes it. A process that ends waits until its file is complete; on stderr the last lines may be missing.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import threading
import time
import weakref
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3torch.core._process import PerProcess
from s3torch.core._resources import GBPS_PER_CONNECTION, exhausted_files, throughput_share
from s3torch.core.errors import TransportError
from s3torch.core.transports._signing import make_signing_config
from s3torch.core.transports.crt._connections import natives

if TYPE_CHECKING:
    from collections.abc import Hashable

    from awscrt.auth import AwsSigningConfig
    from awscrt.io import ClientBootstrap
    from awscrt.s3 import S3Client

    from s3torch.core.models import BucketEndpoint, Credentials
    from s3torch.core.seam import TransportContext
    from s3torch.core.transports.crt._connections import SharedClient

# The smallest that the CRT takes. What is in flight is bounded by s3torch; this only must not be in its way.
_CRT_MEMORY_LIMIT = 1 << 30
_MAX_EVENT_LOOPS = 8
# One for each pair of keys and endpoint; directory buckets have keys of their own.
_MAX_SIGNING_CONFIGS = 64
_FILES_PER_LOOP = 3
_SPARE_FILES = 8
_LEVEL = "S3TORCH_CRT_LOG"
_FOLDER = "S3TORCH_CRT_LOG_DIR"
_LEVELS = {
    "off": "NoLogs",
    "fatal": "Fatal",
    "error": "Error",
    "warn": "Warn",
    "info": "Info",
    "debug": "Debug",
    "trace": "Trace",
}

_COMPLETE_SECONDS = 5.0
_LOOK_SECONDS = 0.005
_TAIL = 2**16

_log = logging.getLogger(__name__)


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
                    client = natives.take(
                        kind,
                        lambda: self._make_client(endpoint),
                        limit=self._context.config.connections,
                    )
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

    def _make_client(self, endpoint: BucketEndpoint) -> S3Client:
        from awscrt.s3 import S3Client, S3RequestTlsMode, S3RetryConfig, S3RetryMode

        native_log.get()
        # A client has two more groups of as many event loops.
        _check_files(2 * _event_loops())
        config = self._context.config
        tls = endpoint.scheme == "https"
        return S3Client(
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


class NativeLog:
    """The log of one process; begins, where it is wanted, as soon as this is made."""

    def __init__(self) -> None:
        name = os.environ.get(_LEVEL, "").strip().lower() or "off"
        if name not in _LEVELS:
            _log.warning(
                "%s=%r is not a level, so there is no native log. Levels: %s",
                _LEVEL,
                name,
                ", ".join(_LEVELS),
            )
        elif name != "off":
            self._begin(name)

    def _begin(self, name: str) -> None:
        from awscrt.io import LogLevel, init_logging

        try:
            target = _target()
            init_logging(LogLevel[_LEVELS[name]], target or "stderr")
        except RuntimeError:  # The program, or the parent of this process, has begun one.
            return
        except OSError as exc:
            _log.warning("there is no native log: %s", exc)
            return
        if target is not None:
            # From "info" on it has the headers of requests, session tokens and customer keys among them.
            Path(target).chmod(0o600)
            # Workers of multiprocessing end without the functions of the interpreter and the C library.
            Finalize(None, _complete, (target,), exitpriority=0)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_silence)


native_log = PerProcess(NativeLog)


def _target() -> str | None:
    folder = os.environ.get(_FOLDER)
    if not folder:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    # Numbers of processes are used again.
    moment = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
    return str(Path(folder, f"awscrt.{moment}.{os.getpid()}.log"))


def _complete(path: str) -> None:
    """Waits until the file has all lines so far, of which the last is one of ours."""
    from awscrt.logging import LogSubject, log

    end = f"process {os.getpid()} ends"
    log(logging.CRITICAL, LogSubject.COMMON_GENERAL, end)
    write_out = ctypes.CDLL(None).fflush
    deadline = time.monotonic() + _COMPLETE_SECONDS
    while time.monotonic() < deadline:
        write_out(None)
        if _ends_with(path, end.encode()):
            return
        time.sleep(_LOOK_SECONDS)


def _ends_with(path: str, text: bytes) -> bool:
    try:
        with Path(path).open("rb") as file:
            # Threads of the CRT may log behind it.
            file.seek(max(0, Path(path).stat().st_size - _TAIL))
            return text in file.read()
    except OSError:  # Somebody has taken it away.
        return True


def _silence() -> None:
    # A thread of the parent may have held the lock of the log at the fork.
    from awscrt.io import LogLevel, set_log_level

    set_log_level(LogLevel.NoLogs)

"""The client: what users talk to S3 with, and what it holds in one process: session, transport and memory."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from s3torch.core._config import S3ClientConfig, UserAgent
from s3torch.core._memory import Memory
from s3torch.core._process import PerProcess
from s3torch.core._resources import throughput_share
from s3torch.core._uri import check_endpoint
from s3torch.core.errors import ConfigurationError, ServerError, ThrottledError
from s3torch.core.models import PutOptions
from s3torch.core.observers._listening import listening
from s3torch.core.observers._observed import Observations, ObservedTransport
from s3torch.core.operations._bucket import BucketOperations
from s3torch.core.plugins import create_transport, default_transport
from s3torch.core.ranges import MAX_OBJECT_SIZE
from s3torch.core.readers import SequentialS3Reader
from s3torch.core.requests._objects import NO_LENGTH, get_for_head
from s3torch.core.requests._request import check_kind, check_place, check_version
from s3torch.core.seam import BuffersParts, EndsEarly, SupportsSendNow, TransportContext
from s3torch.core.session import AwsSession
from s3torch.core.transfer import InFlightTarget, ObjectSource

if TYPE_CHECKING:
    from types import TracebackType

    from s3torch.core._memory import MemoryBudget
    from s3torch.core._writers import S3Writer
    from s3torch.core.errors import S3Error
    from s3torch.core.models import BucketEndpoint
    from s3torch.core.readers import S3Reader, S3ReaderConstructorProtocol
    from s3torch.core.requests import Request
    from s3torch.core.seam import Transport

__all__ = ["S3Client"]

T = TypeVar("T")

_log = logging.getLogger(__name__)


class S3Client(BucketOperations):
    """Reads, writes, lists, copies and deletes objects.

    Making a client costs nothing and sends nothing; connections are made at the first use, once per process.
    A client may be shared by threads, used before and after a fork on both sides, and pickled; secrets do not
    travel in pickles.

    Args:
        region: The region of the buckets; ``None`` takes ``AWS_REGION``, ``AWS_DEFAULT_REGION``, then the
            profile.
        endpoint: The URL of a store that speaks S3; ``None`` takes it from the configuration and environment.
        user_agent: What requests say they come from.
        s3client_config: All other settings.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    def __init__(
        self,
        region: str | None = None,
        *,
        endpoint: str | None = None,
        user_agent: UserAgent | None = None,
        s3client_config: S3ClientConfig | None = None,
    ) -> None:
        if region is not None and (not isinstance(region, str) or not region):
            raise ConfigurationError(f"region must be None or a non-empty string, got {region!r}")
        check_kind("user_agent", user_agent, UserAgent)
        check_kind("s3client_config", s3client_config, S3ClientConfig)
        handle = RuntimeHandle(
            region=region,
            endpoint=check_endpoint(endpoint) if endpoint is not None else None,
            config=s3client_config if s3client_config is not None else S3ClientConfig(),
            user_agent=user_agent if user_agent is not None else UserAgent(),
        )
        super().__init__(handle)

    @property
    def region(self) -> str | None:
        """The region that was given."""
        return self._handle.region

    @property
    def endpoint(self) -> str | None:
        """The endpoint that was given."""
        return self._handle.endpoint

    @property
    def s3client_config(self) -> S3ClientConfig:
        """The settings."""
        return self._handle.given

    @property
    def user_agent_prefix(self) -> str:
        """The value of the ``User-Agent`` header."""
        return self._handle.user_agent.prefix

    def get_object(
        self,
        bucket: str,
        key: str,
        *,
        object_info: Any = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        version_id: str | None = None,
    ) -> S3Reader:
        """Returns a reader of an object; nothing is sent before it is read.

        Args:
            bucket: The bucket.
            key: The key.
            object_info: What a listing or a HEAD told of the object: its size is not asked for again, and the
                object must still have its ETag.
            reader_constructor: The kind of reader, from ``S3ReaderConstructor``; ``None`` for sequential.
            version_id: The version to read; ``None`` for the latest.
        """
        _log.debug("GetObject s3://%s/%s, object_info is None=%s", bucket, key, object_info is None)
        if reader_constructor is not None and not callable(reader_constructor):
            raise ConfigurationError(
                f"reader_constructor must be one of S3ReaderConstructor, got {reader_constructor!r}"
            )
        source = self.open_ranges(bucket, key, object_info=object_info, version_id=version_id)
        return SequentialS3Reader(source) if reader_constructor is None else reader_constructor(source)

    def open_ranges(
        self, bucket: str, key: str, *, object_info: Any = None, version_id: str | None = None
    ) -> ObjectSource:
        """Returns an object as a source of ranges, for code that plans its own requests.

        ``start(start, stop, into=None)`` of the source starts one request and returns at once; what it
        returns has ``wait()``, ``cancel()`` and ``add_done_callback()``. All ranges of one source are of one
        version of the object, else ``ObjectChangedError`` is raised, and every length is checked.
        ``wait()`` is for one thread at a time.

        Args:
            bucket: The bucket.
            key: The key.
            object_info: What a listing or a HEAD told of the object.
            version_id: The version to read; ``None`` for the latest.
        """
        check_place(bucket, key)
        check_version(version_id)
        return ObjectSource(self._handle, bucket, key, object_info=object_info, version_id=version_id)

    def put_object(
        self,
        bucket: str,
        key: str,
        storage_class: str | None = None,
        *,
        options: PutOptions | None = None,
        expected_size: int = 0,
    ) -> S3Writer:
        """Returns a writer of an object, which appears, or replaces an older one, when the writer is closed.

        Args:
            bucket: The bucket.
            key: The key.
            storage_class: As in ``"STANDARD_IA"``; ``None`` for that of ``options``.
            options: How the object is stored, over the ``put_options`` of the configuration.
            expected_size: About how many bytes there will be, where that is known: the parts of a large
                object are of one size then. More or fewer are no error.
        """
        _log.debug("PutObject s3://%s/%s", bucket, key)
        check_place(bucket, key)
        check_kind("options", options, PutOptions)
        if not isinstance(expected_size, int) or not 0 <= expected_size <= MAX_OBJECT_SIZE:
            raise ConfigurationError(f"expected_size must be from 0 to 5 TiB, got {expected_size!r}")
        if storage_class is not None:
            options = replace(options or PutOptions(), storage_class=storage_class)
        chosen = self.s3client_config.options_of(options)
        # Those who only read do not load them.
        from s3torch.core._writers import PutObjectStream, S3Writer
        from s3torch.core.transfer._upload import Upload

        upload = Upload(self._handle, bucket, key, chosen, expected_size=expected_size)
        return S3Writer(PutObjectStream(upload))

    def close(self) -> None:
        """Cancels what is in flight in this process and frees connections; the next use makes new ones."""
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(region={self.region!r}, endpoint={self.endpoint!r})"


class Runtime:
    """Everything of one client that lives in one process.

    Attributes:
        config: The settings, with what environment and profile say where they say nothing.
        memory: Budget and buffers.
        transport: What moves the bytes.
        sends_now: The same transport, where it can send on the calling thread; ``None`` where it cannot.
        in_flight_target: How much to have in flight where that costs memory; ``None`` where it costs none.
        ends_early: Whether the transport can end an answer after some of its bytes.
    """

    def __init__(self, settings: RuntimeHandle) -> None:
        agent = settings.user_agent.prefix
        config = settings.config
        self._session = AwsSession(
            region=settings.region,
            endpoint=settings.endpoint,
            config=config,
            user_agent=agent,
            endpoints=settings.endpoints,
        )
        # So that processes that get the handle need not look at the profile.
        config = settings.config = self._session.settled
        if settings.endpoint is not None:
            config = replace(config, endpoint=settings.endpoint)
        self.config = config
        self._observations = Observations()
        self.memory = Memory.of_this_process(config.memory_limit)
        on_retry = partial(_retried, self._observations, self.memory.budget)
        context = TransportContext(config, self._session, agent, on_retry)
        name = config.transport_name or default_transport(encrypted=self._session.is_encrypted)
        self._transport = create_transport(name, context)
        self.ends_early = isinstance(self._transport, EndsEarly) and self._transport.ends_early
        self.in_flight_target: InFlightTarget | None = None
        if isinstance(self._transport, BuffersParts) and self._transport.buffers_parts:
            self.in_flight_target = InFlightTarget(
                throughput_share(config.throughput_target_gbps), config.part_size
            )
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.
        self.transport: Transport = self._transport
        self.sends_now: SupportsSendNow | None = None
        listening.get().follow(self)

    def call(self, request: Request[T]) -> T:
        """Sends a request that moves no bytes of an object, and waits for its result."""
        try:
            return self.send_and_wait(request)
        except ServerError as error:
            if error.code != NO_LENGTH or request.method != "HEAD":
                raise
            # What was not said is asked again in another way.
            return self.call(get_for_head(request))  # type: ignore[arg-type, return-value]

    def send_and_wait(self, request: Request[T], *, body: memoryview | None = None) -> T:
        """Sends a request and waits for its result; on the calling thread where the transport can do that."""
        now = self.sends_now
        return now.send_now(request, body=body) if now else self.transport.send(request, body=body).result()

    def presign(self, operation: str, parameters: dict[str, Any], *, expires: int) -> str:
        """Returns a URL that is signed for one operation of boto3; nothing is sent."""
        return self._session.presign(operation, parameters, expires=expires)

    def set_observed(self, *, observed: bool) -> None:
        """Tells observers from now on of what is done, or does so no more."""
        with self._lock:
            bare = self._transport
            self.transport = ObservedTransport(bare, self._observations) if observed else bare
            self.sends_now = bare if isinstance(bare, SupportsSendNow) and not observed else None

    def close(self) -> None:
        """Cancels what is in flight and frees connections."""
        self._transport.close()
        self._session.close()
        self.memory.pool.clear()


def _retried(observations: Observations, budget: MemoryBudget, *, error: S3Error, **told: Any) -> None:
    """Takes note of a failed attempt; a store that asks to slow down gets fewer requests for a while."""
    if isinstance(error, ThrottledError):
        budget.slow_down()
    observations.retried(error=error, **told)


@dataclass(eq=False)
class RuntimeHandle:
    """Makes the runtime of a client, once per process, at the first use.

    It is the part of a client that readers, writers and listings keep, and that travels to other processes:
    settings and addresses go along, connections and secrets stay behind.

    Attributes:
        given: The settings as they were given.
    """

    region: str | None
    endpoint: str | None
    config: S3ClientConfig
    user_agent: UserAgent
    endpoints: dict[str, BucketEndpoint] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.given = self.config
        self._begin()

    def _begin(self) -> None:
        self._runtime: PerProcess[Runtime] = PerProcess(self._make)

    def get(self) -> Runtime:
        """Returns the runtime of this process.

        Raises:
            TransportError: The transport is unknown or cannot be used here.
        """
        runtime = self._runtime.value
        return self._runtime.get() if runtime is None else runtime

    def call(self, request: Request[T]) -> T:
        """Sends a request that moves no bytes of an object, and waits for its result."""
        return self.get().call(request)

    def close(self) -> None:
        """Closes the runtime of this process; the next use makes another."""
        runtime = self._runtime.take()
        if runtime is not None:
            runtime.close()

    def _make(self) -> Runtime:
        return Runtime(self)

    def __getstate__(self) -> dict[str, object]:
        state = dict(self.__dict__)
        del state["_runtime"]
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._begin()

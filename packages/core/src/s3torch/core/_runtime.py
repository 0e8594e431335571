"""What a client holds in one process: session, transport and memory."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core._memory import Memory
from s3torch.core._process import PerProcess
from s3torch.core._resources import throughput_share
from s3torch.core.errors import ServerError, ThrottledError
from s3torch.core.observers._listening import listening
from s3torch.core.observers._observed import Observations, ObservedTransport
from s3torch.core.plugins import create_transport, default_transport
from s3torch.core.requests._objects import NO_LENGTH, get_for_head
from s3torch.core.seam import BuffersParts, EndsEarly, SupportsSendNow, TransportContext
from s3torch.core.session import AwsSession
from s3torch.core.transfer import InFlightTarget

if TYPE_CHECKING:
    from s3torch.core._config import S3ClientConfig, UserAgent
    from s3torch.core._memory import MemoryBudget
    from s3torch.core.errors import S3Error
    from s3torch.core.models import BucketEndpoint
    from s3torch.core.requests import Request
    from s3torch.core.seam import Transport

T = TypeVar("T")


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
            sends_now = self.sends_now
            return self.transport.send(request).result() if sends_now is None else sends_now.send_now(request)
        except ServerError as error:
            if error.code != NO_LENGTH or request.method != "HEAD":
                raise
            # What was not said is asked again in another way.
            return self.call(get_for_head(request))  # type: ignore[arg-type, return-value]

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

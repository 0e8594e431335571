"""What a client holds in one process: session, transport, control plane and memory."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from s3torch.core._memory import Memory
from s3torch.core._process import PerProcess
from s3torch.core._resources import throughput_share
from s3torch.core.config import default_transport
from s3torch.core.observers._listening import listening
from s3torch.core.observers._observations import Observations
from s3torch.core.observers._observed import ObservedControl, ObservedTransport
from s3torch.core.plugins.manager import create_transport
from s3torch.core.protocols import HoldsParts, SupportsControl, SupportsGetNow, TransportContext
from s3torch.core.session import AwsSession
from s3torch.core.transfer import InFlightTarget

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core.config import S3ClientConfig
    from s3torch.core.models import BucketEndpoint, GetResult
    from s3torch.core.protocols import ControlPlane, Transport
    from s3torch.core.user_agent import UserAgent

__all__ = ["Connection", "Connector"]


class Connection:
    """Everything of one client that lives in one process.

    Attributes:
        memory: Budget and buffers.
        transport: What moves the bytes.
        pace: How much to have on its way where that costs memory; ``None`` where it costs none.
    """

    def __init__(self, settings: Connector) -> None:
        agent = settings.user_agent.prefix
        self._session = AwsSession(
            region=settings.region,
            endpoint=settings.endpoint,
            config=settings.config,
            user_agent=agent,
            endpoints=settings.endpoints,
        )
        config = settings.config
        if settings.endpoint is not None:
            config = replace(config, endpoint=settings.endpoint)
        self._observations = Observations()
        context = TransportContext(config, self._session, agent, self._observations.retried)
        self.memory = Memory.of_this_process(settings.config.memory_limit)
        name = config.transport_name or default_transport(encrypted=self._session.is_encrypted)
        self._transport = create_transport(name, context)
        self.pace: InFlightTarget | None = None
        if isinstance(self._transport, HoldsParts) and self._transport.holds_parts:
            self.pace = InFlightTarget(throughput_share(config.throughput_target_gbps), config.part_size)
        # What is used: the transport and its control plane, or what stands in front while somebody listens.
        self.transport: Transport = self._transport
        self.get_now = _get_now(self._transport)
        self._used_control: ControlPlane | None = None
        self._control: ControlPlane | None = None
        self._observed = False
        self._lock = threading.RLock()
        listening.get().follow(self)

    @property
    def control(self) -> ControlPlane:
        """The control plane: the transport's own if it has one, else boto3's; made at the first use."""
        with self._lock:
            if self._used_control is None:
                if self._control is None:
                    self._control = self._make_control()
                self._used_control = self._control
                if self._observed:
                    self._used_control = cast(
                        "ControlPlane", ObservedControl(self._control, self._observations)
                    )
            return self._used_control

    def set_observed(self, *, observed: bool) -> None:
        """Tells observers from now on of what is done, or does so no more."""
        with self._lock:
            self._observed = observed
            self._used_control = None
            self.transport = self._transport
            self.get_now = _get_now(self._transport)
            if observed:
                self.transport = ObservedTransport(self._transport, self._observations)
                self.get_now = None

    def _make_control(self) -> ControlPlane:
        if isinstance(self._transport, SupportsControl):
            return self._transport.control()
        from s3torch.core.control import BotoControl

        return BotoControl(self._session, self._observations.retried)

    def close(self) -> None:
        """Cancels what is in flight and frees connections."""
        self._transport.close()
        if self._control is not None:
            self._control.close()
        self._session.close()
        self.memory.pool.clear()


def _get_now(transport: Transport) -> Callable[..., GetResult] | None:
    return transport.get_now if isinstance(transport, SupportsGetNow) else None


@dataclass(eq=False)
class Connector:
    """Makes the connection of a client, once per process, at the first use.

    It is the part of a client that readers, writers and listings keep, and that travels to other processes:
    settings and addresses go along, connections and secrets stay behind.
    """

    region: str | None
    endpoint: str | None
    config: S3ClientConfig
    user_agent: UserAgent
    endpoints: dict[str, BucketEndpoint] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._connection: PerProcess[Connection] = PerProcess(self._connect)

    def get(self) -> Connection:
        """Returns the connection of this process.

        Raises:
            TransportError: The transport is unknown or cannot be used here.
        """
        return self._connection.get()

    def close(self) -> None:
        """Closes the connection of this process; the next use makes another."""
        connection = self._connection.take()
        if connection is not None:
            connection.close()

    def _connect(self) -> Connection:
        return Connection(self)

    def __getstate__(self) -> dict[str, object]:
        state = dict(self.__dict__)
        del state["_connection"]
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

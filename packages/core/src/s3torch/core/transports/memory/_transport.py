"""The transport to a store in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from s3torch.core.errors import S3Error, TruncatedError
from s3torch.core.plugins import hookimpl
from s3torch.core.requests import Answer, body_of
from s3torch.core.transports._workers import WorkerPool, WorkerTransfer
from s3torch.core.transports.memory._service import Service
from s3torch.core.transports.memory._store import MemoryStore

if TYPE_CHECKING:
    from s3torch.core._config import S3ClientConfig
    from s3torch.core.requests import Request
    from s3torch.core.seam import TransportContext

T = TypeVar("T")

_THREADS = 4


@hookimpl
def s3torch_create_transport(context: TransportContext) -> MemoryTransport:
    """Creates a transport to the store of the configured endpoint."""
    return MemoryTransport(MemoryStore.at(context.config.endpoint), context.config)


class MemoryTransport:
    """Moves bytes within this process. The rules are those of ``s3torch.core.seam``.

    Args:
        store: Where the objects are.
        config: The settings of the client; ``None`` for the defaults.
    """

    def __init__(self, store: MemoryStore, config: S3ClientConfig | None = None) -> None:
        self._service = Service(store, config)
        self._pool = WorkerPool(_THREADS, name="s3torch-memory")

    def send(
        self, request: Request[T], *, body: memoryview | None = None, into: memoryview | None = None
    ) -> WorkerTransfer[T]:
        """Starts a request."""
        room = None if into is None else len(into)

        def work(transfer: WorkerTransfer[T]) -> T:
            data = b"" if request.streams else transfer.copy()
            try:
                return request.result(_received(self._service.answer(request, data), transfer, room))
            except S3Error as error:
                return request.failed(error, into=room)

        buffer = into if request.streams else body_of(request, body)
        return self._pool.start(WorkerTransfer(work, request=request, buffer=buffer))

    def close(self) -> None:
        """Cancels what is in flight and ends the threads; the objects stay."""
        self._pool.close()


def _received(answer: Answer, transfer: WorkerTransfer[T], room: int | None) -> Answer:
    """Puts the body of an answer into the caller's buffer, if there is one."""
    if room is None:
        return answer
    if answer.length > room:
        raise TruncatedError(f"the body has {answer.length} bytes, more than the {room} asked for")
    transfer.fill(0, answer.body or b"")
    return Answer(answer.status, answer.headers, None, answer.length)

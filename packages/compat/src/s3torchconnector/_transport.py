"""A transport that gives errors the texts of s3torchconnector; another transport does the work."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast
from weakref import WeakValueDictionary

from s3torch.core import S3Error
from s3torch.core.plugins import create_transport, default_transport, hookimpl
from s3torch.core.ranges import MAX_PART_SIZE, MIN_PART_SIZE
from s3torch.core.seam import BuffersParts, EndsEarly, SupportsSendNow
from s3torchconnector._error_texts import with_old_text
from s3torchconnector._s3client.s3client_config import S3ClientConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core.requests import Request
    from s3torch.core.seam import RetryListener, Transfer, Transport, TransportContext

__all__ = ["s3torch_create_transport"]

T = TypeVar("T")
# Transfers by the identity of what they wrap, which lives at least as long as they do.
Wrappers: TypeAlias = "WeakValueDictionary[int, OldTextTransfer[Any]]"


@hookimpl
def s3torch_create_transport(context: TransportContext) -> OldTextTransport:
    """Creates the transport that the configuration asks for, and wraps it.

    Raises:
        S3Error: The part size is out of range; the drop-in says so at the first use.
    """
    config = context.config
    if not MIN_PART_SIZE <= config.part_size <= MAX_PART_SIZE:
        raise S3Error("invalid configuration: part size must be at between 5MiB and 5GiB")
    asked = config.wrapped_transport_name if isinstance(config, S3ClientConfig) else None
    name = asked or default_transport(encrypted=context.session.is_encrypted)
    wrappers: Wrappers = WeakValueDictionary()
    transport = create_transport(name, replace(context, on_retry=_naming(wrappers, context.on_retry)))
    if isinstance(transport, SupportsSendNow):
        return OldTextTransportNow(transport, wrappers)
    return OldTextTransport(transport, wrappers)


def _naming(wrappers: Wrappers, listener: RetryListener | None) -> RetryListener | None:
    """Makes a listener that names the transfer that the caller has, not the one inside it."""
    if listener is None:
        return None

    def tell(*, transfer: Transfer[Any] | None = None, **facts: Any) -> None:
        listener(transfer=wrappers.get(id(transfer)), **facts)

    return tell


class OldTextTransport:
    """Passes every request on and changes the texts of errors."""

    def __init__(self, transport: Transport, wrappers: Wrappers) -> None:
        self._transport = transport
        self._wrappers = wrappers
        self.buffers_parts = isinstance(transport, BuffersParts) and transport.buffers_parts
        self.ends_early = isinstance(transport, EndsEarly) and transport.ends_early

    def send(
        self, request: Request[T], *, body: memoryview | None = None, into: memoryview | None = None
    ) -> OldTextTransfer[T]:
        transfer = OldTextTransfer(inner := self._transport.send(request, body=body, into=into))
        self._wrappers[id(inner)] = transfer
        return transfer

    def close(self) -> None:
        self._transport.close()


class OldTextTransportNow(OldTextTransport):
    """Also sends on the calling thread; a class of its own, because having the method says so."""

    def send_now(
        self, request: Request[T], *, body: memoryview | None = None, into: memoryview | None = None
    ) -> T:
        try:
            return cast("SupportsSendNow", self._transport).send_now(request, body=body, into=into)
        except S3Error as error:
            raise with_old_text(error) from error


class OldTextTransfer(Future[T]):
    """A transfer whose errors have the old texts.

    It forwards what a ``Transfer`` can and ``exception``, and adds no callback of its own, so that the work
    of a transfer that somebody waits for can still be done on the waiting thread.
    """

    def __init__(self, transfer: Transfer[T]) -> None:
        super().__init__()
        self._transfer = transfer

    def result(self, timeout: float | None = None) -> T:
        try:
            return self._transfer.result(timeout)
        except S3Error as error:
            raise with_old_text(error) from error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        ask = getattr(self._transfer, "exception", self._raised)
        error: BaseException | None = ask(timeout)
        return with_old_text(error) if isinstance(error, S3Error) else error

    def done(self) -> bool:
        return self._transfer.done()

    def cancel(self) -> bool:
        return self._transfer.cancel()

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        self._transfer.add_done_callback(lambda _: fn(self))

    def _raised(self, timeout: float | None) -> BaseException | None:
        try:
            self._transfer.result(timeout)
        except BaseException as error:  # noqa: BLE001 - It is what was asked for.
            return error
        return None

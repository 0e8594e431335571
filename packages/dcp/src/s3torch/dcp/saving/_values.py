"""The values of a save on the host: those of accelerators are copied ahead, in pieces, while others are sent.

A copy from an accelerator needs no processor, so it goes on while the bytes before it are hashed and sent. It
is made in pieces, into memory that is used again and again, and so takes little of it however large tensors
are. Values that are on the host already stay where they are, and are asked for only when their turn comes.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from s3torch.dcp._tensors import PIECE, bytes_of, is_on_accelerator, is_plain, memory_of, pinned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")


class HostValues(Generic[T]):
    """The values of items, one after the other.

    Args:
        items: What is written, in order.
        resolve: Gives the value of an item.
        ahead: How many bytes are copied ahead; one piece is, however small this is.
        device: Copies from an accelerator; ``None`` for that of this process, if it has one.
    """

    def __init__(
        self,
        items: Iterable[T],
        resolve: Callable[[T], Any],
        *,
        ahead: int,
        device: FromDevice | None = None,
    ) -> None:
        self._rest = iter(items)
        self._resolve = resolve
        self._ahead = ahead
        self._device = device or FromDevice()
        self._begun: deque[HostValue[T]] = deque()
        self._in_flight = 0

    def __iter__(self) -> Iterator[HostValue[T]]:
        """Yields each value; it is to be sent, if at all, before the next one is asked for."""
        self.top_up()
        while self._begun:
            yield self._begun[0]
            self._in_flight -= self._begun.popleft().drop()
            self.top_up()

    def top_up(self, *, arrived: int = 0) -> None:
        """Starts copies until enough is on its way."""
        self._in_flight -= arrived
        while not self._in_flight or self._in_flight < self._ahead:
            newest = self._begun[-1] if self._begun else None
            if newest is not None and (size := newest.start_piece()):
                self._in_flight += size
            elif newest is not None and not newest.is_remote:
                return
            elif (item := next(self._rest, None)) is not None:
                self._begun.append(HostValue(item, self._resolve(item), self._device, self.top_up))
            else:
                return


class HostValue(Generic[T]):
    """The value of one item.

    Attributes:
        item: The item.
        data: The value; a plain tensor may be on an accelerator still.
        is_plain: It is a tensor whose bytes are just its elements, which ``send`` can write.
        is_remote: It is such a tensor and not on the host.
    """

    def __init__(self, item: T, data: Any, device: FromDevice, top_up: Callable[..., None]) -> None:
        self.item = item
        self._device = device
        self._top_up = top_up
        self._copies: deque[_HostCopy] = deque()
        self.is_plain = self.is_remote = False
        if isinstance(data, torch.Tensor):
            data = data.detach()
            self.is_remote = device.serves(data) and is_plain(data)
            if not self.is_remote:
                data = data.cpu()
            self.is_plain = self.is_remote or is_plain(data)
        self.data = data
        self._waiting: Iterator[torch.Tensor] = _cut(data) if self.is_remote else iter(())

    def start_piece(self) -> int:
        """Starts to copy the next piece; returns its bytes, 0 if there is none."""
        piece = next(self._waiting, None)
        if piece is None:
            return 0
        self._copies.append(self._device.start(piece))
        return piece.nbytes

    def make_plain(self) -> bool:
        """Copies a tensor whose elements have gaps between them; returns whether it is plain now."""
        data = self.data
        if not self.is_plain and type(data) is torch.Tensor and data.layout == torch.strided:
            self.data = without_rest(data)
            self.is_plain = is_plain(self.data)
        return self.is_plain

    def send(self, stream: Any) -> None:
        """Writes the bytes of a plain tensor.

        Args:
            stream: Has ``write``, and ``lend`` for memory that does not change before the stream is closed.
        """
        if not self.is_remote:
            stream.lend(memory_of(self.data))
            return
        while self._copies:
            content = self._copies.popleft().wait()
            # The accelerator goes on while these bytes are taken.
            self._top_up(arrived=len(content))
            stream.write(content)

    def send_elements(self, stream: Any) -> None:
        """Writes the elements of a tensor of any kind, in order."""
        if self.is_plain:
            self.send(stream)
        else:
            stream.write(bytes_of(self.data))

    def on_host(self) -> Any:
        """Returns the value, on the host as a whole."""
        if not self.is_remote:
            return self.data
        whole = torch.empty(self.data.shape, dtype=self.data.dtype)
        self.send(_Memory(memory_of(whole)))
        return whole

    def drop(self) -> int:
        """Forgets the value; returns how many bytes were on their way for nothing."""
        lost = 0
        while self._copies:
            lost += len(self._copies.popleft().wait())
        self._waiting = iter(())
        self.data = None
        return lost


class _Memory:
    """A stream into memory."""

    def __init__(self, memory: memoryview) -> None:
        self._rest = memory

    def write(self, data: memoryview) -> None:
        self._rest[: len(data)] = data
        self._rest = self._rest[len(data) :]


def _cut(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields the bytes of a plain tensor in pieces."""
    yield from tensor.reshape(-1).view(torch.uint8).split(PIECE)


class FromDevice:
    """Copies from the accelerator of this process, on streams of their own; for one thread."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.Stream] = {}

    def serves(self, tensor: torch.Tensor) -> bool:
        """Whether copies of a tensor can be started."""
        return is_on_accelerator(tensor)

    def start(self, piece: torch.Tensor) -> _HostCopy:
        """Starts a copy, which waits for what was asked of the accelerator before the first one."""
        target = pinned(piece.numel())
        stream = self._stream(piece.device)
        with stream:
            target.copy_(piece, non_blocking=True)
            event = stream.record_event()
        return _HostCopy(piece, target, event)

    def _stream(self, device: torch.device) -> torch.Stream:
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = torch.Stream(device)
            stream.wait_stream(torch.accelerator.current_stream(device))
        return stream


class _HostCopy:
    """Bytes on their way to the host."""

    def __init__(self, piece: torch.Tensor, target: torch.Tensor, event: torch.Event) -> None:
        # The piece has to live until the accelerator has read it.
        self._piece: torch.Tensor | None = piece
        self._target = target
        self._event = event

    def wait(self) -> memoryview:
        """Returns the bytes when they are there."""
        self._event.synchronize()
        self._piece = None
        return memory_of(self._target)


def without_rest(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor whose storage has nothing else; of a view, torch would save the whole storage."""
    if tensor.untyped_storage().size() == tensor.nbytes:
        return tensor
    if is_plain(tensor):
        return torch.frombuffer(memory_of(tensor), dtype=tensor.dtype).view(tensor.shape)
    return tensor.clone()

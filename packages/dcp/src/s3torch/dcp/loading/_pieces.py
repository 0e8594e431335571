"""What a load fetches: the stored chunks of its plan, and the pieces of them that it wants.

Core's ``plan_parts`` decides which requests the pieces take.
"""

from __future__ import annotations

import io
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.planner import LoadItemType

from s3torch.core.transfer import is_computable
from s3torch.dcp._metadata import CHECKSUMS, CheckpointError, ItemChecksums
from s3torch.dcp._tensors import (
    HEAD_SIZE,
    NOTE,
    PIECE,
    TensorLayout,
    is_on_accelerator,
    memory_of,
    parse_archive,
    pinned,
)
from s3torch.dcp.loading._checking import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem

_COPIES_IN_FLIGHT = 4 * PIECE


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """Bytes of a file that decode to one tensor or one object, and all read items that want it.

    Attributes:
        start: Where the bytes begin in the file.
        stop: Where they end.
        descriptors: The stream extensions that have to be undone, last one first.
        requests: The read items; in a resharded load several may want parts of one stored tensor.
        note: What our writer has noted of the layout.
        checksums: What it has noted of the checksums.
    """

    start: int
    stop: int
    descriptors: tuple[str, ...]
    requests: tuple[ReadItem, ...]
    note: Any = None
    checksums: Any = None

    @property
    def size(self) -> int:
        return self.stop - self.start

    def checks(self, start: int, stop: int) -> Iterator[Check]:
        """Yields what can be compared of some bytes of the file that are in this chunk.

        Raises:
            CheckpointError: What was noted is damaged.
        """
        found = ItemChecksums.of(self.checksums, self.size)
        if found is None or not is_computable(found.algorithm):
            return
        name = str(self.requests[0].storage_index.fqn)
        for begin, end, crc in found.pieces(self.size, start - self.start, stop - self.start):
            yield Check(self.start + begin, self.start + end, found.algorithm, crc, name)


def stored_at(item: ReadItem, storage_data: Mapping[Any, Any]) -> Any:
    """Looks up where an item is stored.

    Raises:
        CheckpointError: The checkpoint's metadata does not tell.
    """
    info = storage_data.get(item.storage_index)
    if info is None:
        raise CheckpointError(
            f"the metadata of the checkpoint does not tell where {item.storage_index} is stored"
        )
    return info


def chunks_by_file(
    items: Iterable[ReadItem], storage_data: Mapping[Any, Any]
) -> dict[str, list[StoredChunk]]:
    """Looks up where the items of a plan are stored; each stored chunk comes once, in the plan's order.

    Returns:
        The chunks by the path of the file, relative to the checkpoint.

    Raises:
        CheckpointError: The checkpoint's metadata has no place for an item.
    """
    wanted: dict[tuple[Any, ...], list[ReadItem]] = {}
    notes: dict[tuple[Any, ...], tuple[Any, Any]] = {}
    for item in items:
        info = stored_at(item, storage_data)
        # Checkpoints of older releases of torch do not have the descriptors.
        descriptors = tuple(getattr(info, "transform_descriptors", None) or ())
        place = (info.relative_path, info.offset, info.offset + info.length, descriptors, item.type)
        wanted.setdefault(place, []).append(item)
        notes[place] = getattr(info, NOTE, None), getattr(info, CHECKSUMS, None)
    files: dict[str, list[StoredChunk]] = {}
    for place, requests in wanted.items():
        path, start, stop, descriptors, _ = place
        chunk = StoredChunk(start, stop, descriptors, tuple(requests), *notes[place])
        files.setdefault(path, []).append(chunk)
    return files


def is_inside(request: ReadItem, layout: TensorLayout) -> bool:
    """Whether a tensor has all elements that a read item wants."""
    if not len(request.storage_offsets) == len(request.lengths) == len(layout.sizes):
        return False
    where = zip(request.storage_offsets, request.lengths, layout.sizes, strict=True)
    return all(at >= 0 and at + count <= size for at, count, size in where)


def span_in(request: ReadItem, layout: TensorLayout) -> tuple[int, int]:
    """Returns the first element of a tensor that a read item wants, and how many there are up to the last."""
    first = sum(at * step for at, step in zip(request.storage_offsets, layout.strides, strict=True))
    within = zip(request.lengths, layout.strides, strict=True)
    last = first + sum((count - 1) * step for count, step in within)
    return first, 0 if 0 in request.lengths else last + 1 - first


def target_of(request: ReadItem, planner: LoadPlanner) -> torch.Tensor:
    """Asks the planner for the tensor that a read item fills.

    Raises:
        CheckpointError: It has another shape.
    """
    target = planner.resolve_tensor(request).detach()
    if target.size() != request.lengths:
        raise CheckpointError(
            f"{request.storage_index} has the shape {tuple(request.lengths)} in the checkpoint, but "
            f"{tuple(target.size())} is wanted"
        )
    return target


def hand_over(request: ReadItem, value: Any, planner: LoadPlanner) -> None:
    """Gives the planner what a whole item was decoded to."""
    if request.type == LoadItemType.BYTE_IO:
        planner.load_bytes(request, io.BytesIO(value))
        return
    index = [slice(at, at + n) for at, n in zip(request.storage_offsets, request.lengths, strict=True)]
    tensor = value[tuple(index)]
    if tensor.size() != request.lengths:
        raise CheckpointError(
            f"{request.storage_index} has the shape {tuple(value.size())} in its file, but the metadata of "
            f"the checkpoint promises {tuple(request.lengths)} from {tuple(request.storage_offsets)}"
        )
    target = target_of(request, planner)
    target.copy_(tensor)
    planner.commit_tensor(request, target)


class _Piece:
    """Bytes of a file, and the memory where they are received, which is taken at the first ``open``."""

    name: str
    start: int
    stop: int
    held: int
    _memory: torch.Tensor | None = None
    _view: memoryview | None = None

    def open(self) -> memoryview:
        if self._view is None:
            self._memory = self._take()
            self._view = memory_of(self._memory)
        return self._view

    def _take(self) -> torch.Tensor:
        return torch.empty(self.held, dtype=torch.uint8)


class TensorPiece(_Piece):
    """The bytes of a stored tensor that one read item wants.

    They are received in the target itself where that has the same form, else in memory of their own.

    Attributes:
        fits: What is stored is a copy of the target's memory, or would be if that was on the CPU.
    """

    def __init__(
        self, request: ReadItem, chunk: StoredChunk, layout: TensorLayout, target: torch.Tensor
    ) -> None:
        self.request = request
        self.name = str(request.storage_index.fqn)
        self.target = target
        self._strides = layout.strides
        self._dtype = layout.dtype
        first, self._count = span_in(request, layout)
        self.start = chunk.start + layout.start + first * layout.dtype.itemsize
        self.stop = self.start + self._count * layout.dtype.itemsize
        self.fits = (
            self._count == math.prod(request.lengths)
            and target.layout == torch.strided
            and target.dtype == layout.dtype
            and target.is_contiguous()
            and not target.is_conj()
            and not target.is_neg()
        )
        self._own = not self.fits or target.device.type != "cpu"
        self.held = self.stop - self.start if self._own else 0

    def _take(self) -> torch.Tensor:
        return torch.empty(self._count, dtype=self._dtype) if self._own else self.target

    def finish(self, planner: LoadPlanner) -> None:
        """Commits the target, which is filled now."""
        if self._own and self._count and self._memory is not None:
            self.target.copy_(self._memory.as_strided(tuple(self.request.lengths), self._strides))
        self._memory = self._view = None
        planner.commit_tensor(self.request, self.target)


class ItemPiece(_Piece):
    """All bytes of an item, to be decoded."""

    def __init__(self, chunk: StoredChunk) -> None:
        self.chunk = chunk
        self.name = str(chunk.requests[0].storage_index.fqn)
        self.start = chunk.start
        self.stop = chunk.stop
        self.held = chunk.size

    def take(self) -> memoryview:
        """Returns the bytes, which are nobody else's any more."""
        view = self.open()
        self._memory = self._view = None
        return view


class HeadPiece(ItemPiece):
    """The first bytes of an archive that tell where its tensor is."""

    def __init__(self, chunk: StoredChunk) -> None:
        super().__init__(chunk)
        self.stop = min(chunk.stop, chunk.start + HEAD_SIZE)
        self.held = self.stop - self.start

    def layout(self) -> TensorLayout | None:
        """Reads them; ``None`` where the whole archive is needed."""
        return parse_archive(self.take(), self.chunk.size)


class StagedPiece(_Piece):
    """Some bytes of a tensor on an accelerator: received in a staging buffer, and copied from there."""

    def __init__(
        self,
        name: str,
        start: int,
        target: torch.Tensor,
        device: ToDevice,
        done: Callable[[LoadPlanner], None],
    ) -> None:
        self.name = name
        self.start = start
        self.stop = start + target.nbytes
        self.held = target.nbytes
        self._target = target
        self._device = device
        self._done = done

    def _take(self) -> torch.Tensor:
        return self._device.take(self.held)

    def finish(self, planner: LoadPlanner) -> None:
        """Sends the bytes, which are there now, to the target."""
        if self._memory is not None:
            self._device.start(self._memory, self._target)
        self._memory = self._view = None
        self._done(planner)


def staged_pieces(piece: TensorPiece, device: ToDevice) -> list[StagedPiece]:
    """Cuts a target with the form of what is stored into pieces; the last that arrives commits it."""
    parts = piece.target.reshape(-1).view(torch.uint8).split(PIECE)
    missing = len(parts)

    def done(planner: LoadPlanner) -> None:
        nonlocal missing
        missing -= 1
        if not missing:
            planner.commit_tensor(piece.request, piece.target)

    return [
        StagedPiece(piece.name, piece.start + number * PIECE, part, device, done)
        for number, part in enumerate(parts)
    ]


class InFlight:
    """Work that goes on by itself and is finished in the order in which it was started.

    Args:
        limit: Bytes; when there are more, ``add`` waits for the oldest.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._started: deque[tuple[int, Callable[[], bool], Callable[[], object]]] = deque()

    def add(self, size: int, is_done: Callable[[], bool], finish: Callable[[], object]) -> None:
        """Adds work that was started; finishes what is done, and what is too much."""
        self._started.append((size, is_done, finish))
        self._bytes += size
        while self._started and (self._bytes > self._limit or self._started[0][1]()):
            self._finish_one()

    def finish(self) -> None:
        """Finishes all."""
        while self._started:
            self._finish_one()

    def _finish_one(self) -> None:
        size, _, finish = self._started.popleft()
        self._bytes -= size
        finish()


class ToDevice:
    """Copies bytes to the accelerator of this process; for one thread.

    The copies are made on the stream that the caller uses, so that whatever the caller asks of the
    accelerator next finds the bytes there.
    """

    def __init__(self) -> None:
        self._in_flight = InFlight(_COPIES_IN_FLIGHT)

    def serves(self, tensor: torch.Tensor) -> bool:
        """Whether bytes can be copied into a tensor."""
        return is_on_accelerator(tensor)

    def take(self, size: int) -> torch.Tensor:
        """Returns a staging buffer, to be filled and given to ``start``."""
        return pinned(size)

    def start(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Starts a copy of a staging buffer; waits for older ones when there are many."""
        target.copy_(source, non_blocking=True)
        event = torch.accelerator.current_stream(target.device).record_event()

        def finish(_: torch.Tensor = source) -> None:  # The buffer has to live until it was read.
            event.synchronize()

        self._in_flight.add(source.nbytes, event.query, finish)

    def finish(self) -> None:
        """Waits until all bytes are there."""
        self._in_flight.finish()

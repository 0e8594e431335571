"""From plans to bytes: which ranges a load needs, and which files a save writes. Pure functions of values.

The items of torch's plans are taken as they are; nothing here imports torch.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError
from s3torch.dcp.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch.distributed.checkpoint.planner import ReadItem, WriteItem

__all__ = [
    "NOTE",
    "SUFFIX",
    "FilePlan",
    "ItemRange",
    "RangeGroup",
    "Span",
    "StoredChunk",
    "chunks_by_file",
    "group_ranges",
    "merge_chunks",
    "plan_files",
    "plan_numbered_files",
    "plan_tensor_files",
    "stored_at",
    "unstored",
]

# The attribute of torch's own storage entries where our writer notes more; stock torch ignores it.
NOTE = "tensor_layout"

SUFFIX = ".distcp"


@dataclass(frozen=True, slots=True)
class ItemRange:
    """The bytes of one item of a file, from ``start`` up to, but not including, ``end``."""

    start: int
    end: int

    def contains(self, start: int, end: int) -> bool:
        """Tells whether all bytes from ``start`` to ``end`` are in this range."""
        return self.start <= start and end <= self.end

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


@dataclass(frozen=True, slots=True)
class RangeGroup:
    """Neighbouring ranges that one request fetches, with the gaps between them."""

    start: int
    end: int
    item_ranges: list[ItemRange]


def group_ranges(ranges: Iterable[ItemRange], max_gap_size: float) -> list[RangeGroup]:
    """Joins neighbours with a gap of at most ``max_gap_size`` bytes; ranges without bytes are dropped.

    Raises:
        ConfigurationError: A range is invalid, or they are not sorted, or they overlap.
    """
    groups: list[RangeGroup] = []
    members: list[ItemRange] = []
    for item in ranges:
        if item.start == item.end:
            continue
        _check_order(members[-1] if members else None, item)
        if members and item.start - members[-1].end > max_gap_size:
            groups.append(RangeGroup(members[0].start, members[-1].end, members))
            members = []
        members.append(item)
    if members:
        groups.append(RangeGroup(members[0].start, members[-1].end, members))
    return groups


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """Bytes of a file that decode to one tensor or one object, and all read items that want it.

    Attributes:
        start: Where the bytes begin in the file.
        stop: Where they end.
        descriptors: The stream extensions that have to be undone, last one first.
        requests: The read items; in a resharded load several may want parts of one stored tensor.
        note: What our writer has noted of the layout.
    """

    start: int
    stop: int
    descriptors: tuple[str, ...]
    requests: tuple[ReadItem, ...]
    note: Any = None

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a file that are read in one go: one chunk, or several that overlap."""

    start: int
    stop: int
    chunks: tuple[StoredChunk, ...]

    @property
    def item_range(self) -> ItemRange:
        """The bytes, as readers are told them."""
        return ItemRange(self.start, self.stop)


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
    notes: dict[tuple[Any, ...], Any] = {}
    for item in items:
        info = stored_at(item, storage_data)
        # Checkpoints of older releases of torch do not have the descriptors.
        descriptors = tuple(getattr(info, "transform_descriptors", None) or ())
        place = (info.relative_path, info.offset, info.offset + info.length, descriptors, item.type)
        wanted.setdefault(place, []).append(item)
        notes[place] = getattr(info, NOTE, None)
    files: dict[str, list[StoredChunk]] = {}
    for place, requests in wanted.items():
        path, start, stop, descriptors, _ = place
        chunk = StoredChunk(start, stop, descriptors, tuple(requests), notes[place])
        files.setdefault(path, []).append(chunk)
    return files


def merge_chunks(chunks: Iterable[StoredChunk]) -> list[Span]:
    """Sorts chunks by their place and merges those that overlap; chunks that only touch stay apart."""
    spans: list[Span] = []
    for chunk in sorted(chunks, key=lambda chunk: (chunk.start, chunk.stop)):
        last = spans[-1] if spans else None
        if last is None or chunk.start >= last.stop:
            spans.append(Span(chunk.start, chunk.stop, (chunk,)))
        else:
            stop = max(last.stop, chunk.stop)
            spans[-1] = Span(last.start, stop, (*last.chunks, chunk))
    return spans


@dataclass(frozen=True, slots=True)
class FilePlan:
    """A file that a save writes.

    Attributes:
        name: Its path relative to the checkpoint, ``{prefix}{n}.distcp``.
        items: What goes into it, in order: objects, then tensors.
        is_safetensors: It has the safetensors format.
    """

    name: str
    items: tuple[WriteItem, ...]
    is_safetensors: bool = False

    def named_for(self, save_id: str) -> FilePlan:
        """Returns the same file with a name that no other save uses."""
        stem, dot, suffix = self.name.rpartition(".")
        return replace(self, name=f"{stem}-{save_id}{dot}{suffix}")


def plan_files(
    items: Sequence[WriteItem], prefix: str, *, files: int, single_file_per_rank: bool = True
) -> list[FilePlan]:
    """Shares the items of one rank out between files; there is no file without items.

    Args:
        items: The items of the rank's plan.
        prefix: What stands in front of each name.
        files: How many files there are at most. Tensors are shared out by size.
        single_file_per_rank: ``False`` gives each item a file of its own.
    """
    if single_file_per_rank:
        buckets = [_objects_first(bucket) for bucket in _share_out(items, files)]
    else:
        buckets = [[item] for item in items]
    filled = [tuple(bucket) for bucket in buckets if bucket]
    return [FilePlan(f"{prefix}{n}{SUFFIX}", bucket) for n, bucket in enumerate(filled)]


def plan_numbered_files(items: Sequence[WriteItem], name_of: Callable[[str], str]) -> list[FilePlan]:
    """Puts tensors into the safetensors files that are chosen by their names."""
    buckets: dict[str, list[WriteItem]] = {}
    for item in items:
        buckets.setdefault(name_of(item.index.fqn), []).append(item)
    return [
        FilePlan(name, tuple(sorted(bucket, key=_element_size, reverse=True)), is_safetensors=True)
        for name, bucket in sorted(buckets.items())
    ]


def plan_tensor_files(
    items: Sequence[WriteItem], prefix: str, *, files: int, single_file_per_rank: bool = True
) -> list[FilePlan]:
    """Does what ``plan_files`` does, for the safetensors format: it holds only tensors, and each name once.

    Tensors are sorted by the size of their elements, largest first, so that each is aligned. Objects go into
    a file of their own.
    """
    tensors = [item for item in items if not _is_object(item)]
    objects = [item for item in items if _is_object(item)]
    buckets = _share_out(tensors, files) if single_file_per_rank else [[item] for item in tensors]
    parts = [sorted(part, key=_element_size, reverse=True) for bucket in buckets for part in _apart(bucket)]
    plans = [
        FilePlan(f"{prefix}{n}{SUFFIX}", tuple(part), is_safetensors=True) for n, part in enumerate(parts)
    ]
    rest = plan_files(objects, prefix, files=1, single_file_per_rank=single_file_per_rank)
    return plans + [
        replace(plan, name=f"{prefix}{n}{SUFFIX}") for n, plan in enumerate(rest, start=len(plans))
    ]


def unstored(state_dict_metadata: Mapping[str, Any], stored: Iterable[Any]) -> list[str]:
    """Lists what the metadata promises and no file holds.

    Args:
        state_dict_metadata: For each name the metadata of a tensor, with its chunks, or of an object.
        stored: The metadata indices of what was written.
    """
    there = {(index.fqn, _offsets(index.offset)) for index in stored}
    promised = chain.from_iterable(
        [(name, _offsets(chunk.offsets)) for chunk in value.chunks]
        if hasattr(value, "chunks")
        else [(name, None)]
        for name, value in state_dict_metadata.items()
    )
    return [name if at is None else f"{name} at {at}" for name, at in promised if (name, at) not in there]


def _offsets(offsets: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if offsets is None else tuple(offsets)


def _check_order(last: ItemRange | None, item: ItemRange) -> None:
    if not 0 <= item.start < item.end:
        raise ConfigurationError(f"Invalid range: {item}")
    if last is not None and item.start < last.start:
        raise ConfigurationError(f"Unsorted ranges: {last} and {item}")
    if last is not None and item.start < last.end:
        raise ConfigurationError(f"Overlapping ranges: {last} and {item}")


def _is_object(item: WriteItem) -> bool:
    return item.tensor_data is None


def _objects_first(items: Sequence[WriteItem]) -> list[WriteItem]:
    return sorted(items, key=lambda item: not _is_object(item))


def _tensor_bytes(item: WriteItem) -> int:
    data = item.tensor_data
    return 0 if data is None else math.prod(data.chunk.sizes) * data.properties.dtype.itemsize


def _element_size(item: WriteItem) -> int:
    data = item.tensor_data
    return 0 if data is None else data.properties.dtype.itemsize


def _apart(items: Sequence[WriteItem]) -> list[list[WriteItem]]:
    """Puts the second, third … chunk of one tensor into lists of their own."""
    parts: list[list[WriteItem]] = []
    seen: dict[str, int] = {}
    for item in items:
        turn = seen.get(item.index.fqn, 0)
        seen[item.index.fqn] = turn + 1
        if turn == len(parts):
            parts.append([])
        parts[turn].append(item)
    return parts


def _share_out(items: Sequence[WriteItem], count: int) -> list[list[WriteItem]]:
    """Puts objects into the buckets in turn, and each tensor, largest first, into the emptiest bucket."""
    if count == 1:
        return [list(items)]
    buckets: list[list[WriteItem]] = [[] for _ in range(count)]
    for n, item in enumerate(item for item in items if _is_object(item)):
        buckets[n % count].append(item)
    by_fill = [(0, n) for n in range(count)]
    tensors = [item for item in items if not _is_object(item)]
    for item in sorted(tensors, key=_tensor_bytes, reverse=True):
        fill, n = heapq.heappop(by_fill)
        buckets[n].append(item)
        heapq.heappush(by_fill, (fill + _tensor_bytes(item), n))
    return buckets

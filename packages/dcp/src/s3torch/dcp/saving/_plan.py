"""Which files a save writes, and what goes into each. Pure functions of the items.

The names of all files contain an id of the save. So no file that a checkpoint may name is written over, in no
store, whoever saves to the same path.
"""

from __future__ import annotations

import heapq
import math
import uuid
from dataclasses import dataclass, replace
from itertools import filterfalse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch.distributed.checkpoint.planner import WriteItem

SUFFIX = ".distcp"


@dataclass(frozen=True, slots=True)
class FilePlan:
    """A file that a save writes.

    Attributes:
        name: Its path relative to the checkpoint, ``{prefix}{n}.distcp``, and later with the id of the save.
        items: What goes into it, in order: objects, then tensors.
        is_safetensors: It has the safetensors format.
    """

    name: str
    items: tuple[WriteItem, ...]
    is_safetensors: bool = False

    @property
    def size(self) -> int:
        """About how many bytes it has: those of its tensors."""
        return sum(map(_tensor_bytes, self.items))

    def named_for(self, save_id: str) -> FilePlan:
        """Returns the same file with a name that no other save uses."""
        stem, dot, suffix = self.name.rpartition(".")
        return replace(self, name=f"{stem}-{save_id}{dot}{suffix}")


def new_save_id() -> str:
    """Returns what tells the files of this save from those of all others, also at the same moment."""
    return uuid.uuid4().hex[:16]


def plan_files(
    items: Sequence[WriteItem], prefix: str, *, files: int, single_file_per_rank: bool = True
) -> list[FilePlan]:
    """Shares the items of one rank out between files; there is no file without items."""
    if single_file_per_rank:
        buckets = [sorted(bucket, key=_is_tensor) for bucket in _share_out(items, files)]
    else:
        buckets = [[item] for item in items]
    return _numbered(prefix, filter(None, buckets))


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
    tensors = list(filter(_is_tensor, items))
    buckets = _share_out(tensors, files) if single_file_per_rank else [[item] for item in tensors]
    parts = [sorted(part, key=_element_size, reverse=True) for bucket in buckets for part in _apart(bucket)]
    objects = list(filterfalse(_is_tensor, items))
    rest = [objects] if single_file_per_rank else [[item] for item in objects]
    plans = _numbered(prefix, parts, is_safetensors=True)
    return plans + _numbered(prefix, filter(None, rest), first=len(plans))


def _numbered(
    prefix: str, buckets: Iterable[Sequence[WriteItem]], *, first: int = 0, is_safetensors: bool = False
) -> list[FilePlan]:
    return [
        FilePlan(f"{prefix}{n}{SUFFIX}", tuple(bucket), is_safetensors)
        for n, bucket in enumerate(buckets, start=first)
    ]


def _is_tensor(item: WriteItem) -> bool:
    return item.tensor_data is not None


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
    for n, item in enumerate(filterfalse(_is_tensor, items)):
        buckets[n % count].append(item)
    by_fill = [(0, n) for n in range(count)]
    for item in sorted(filter(_is_tensor, items), key=_tensor_bytes, reverse=True):
        fill, n = heapq.heappop(by_fill)
        buckets[n].append(item)
        heapq.heappush(by_fill, (fill + _tensor_bytes(item), n))
    return buckets

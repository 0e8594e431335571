"""Which bytes of sharded tensors make whole ones, in the order in which a file has them; pure functions."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

__all__ = ["Band", "bands_of", "reads_of", "windows"]


@dataclass(frozen=True, slots=True)
class Band:
    """A part of a tensor whose elements follow one after the other.

    Attributes:
        name: The name of the tensor.
        dtype: The type of its elements.
        offsets: Where the part begins in the tensor.
        sizes: Its shape, with as many dimensions as the tensor.
    """

    name: str
    dtype: torch.dtype
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.sizes) * self.dtype.itemsize


def bands_of(name: str, dtype: torch.dtype, sizes: Sequence[int], *, limit: int) -> Iterator[Band]:
    """Cuts a tensor into parts of at most ``limit`` bytes, in the order of their elements.

    Args:
        name: The name of the tensor.
        dtype: The type of its elements.
        sizes: Its shape.
        limit: Bytes, an element at least.
    """
    if not sizes or 0 in sizes:
        if 0 not in sizes:
            yield Band(name, dtype, (), ())
        return
    # The first dimension of which several steps fit; those before it are walked through one by one.
    steps = [math.prod(sizes[n + 1 :]) * dtype.itemsize for n in range(len(sizes))]
    cut = next(n for n, step in enumerate(steps) if step <= limit)
    most = limit // steps[cut]
    for outer in itertools.product(*map(range, sizes[:cut])):
        for at in range(0, sizes[cut], most):
            inner = sizes[cut + 1 :]
            count = min(most, sizes[cut] - at)
            yield Band(name, dtype, (*outer, at, *(0 for _ in inner)), (*(1 for _ in outer), count, *inner))


def windows(bands: Iterable[Band], *, limit: int) -> Iterator[list[Band]]:
    """Puts parts together up to ``limit`` bytes, in their order."""
    window: list[Band] = []
    total = 0
    for band in bands:
        if window and total + band.size > limit:
            yield window
            window, total = [], 0
        window.append(band)
        total += band.size
    if window:
        yield window


def reads_of(band: Band, number: int, stored: TensorStorageMetadata) -> Iterator[ReadItem]:
    """Yields what has to be read of each stored chunk of the tensor.

    Args:
        band: The part that is wanted.
        number: Tells the parts of one plan apart.
        stored: Where the chunks are in the tensor.
    """
    end = [at + count for at, count in zip(band.offsets, band.sizes, strict=True)]
    for chunk in stored.chunks:
        chunk_end = [at + count for at, count in zip(chunk.offsets, chunk.sizes, strict=True)]
        start = [max(pair) for pair in zip(band.offsets, chunk.offsets, strict=True)]
        counts = [min(pair) - at for *pair, at in zip(end, chunk_end, start, strict=True)]
        if all(count > 0 for count in counts):
            yield ReadItem(
                LoadItemType.TENSOR,
                MetadataIndex(band.name, index=number),
                torch.Size(at - begin for at, begin in zip(start, band.offsets, strict=True)),
                MetadataIndex(band.name, chunk.offsets),
                torch.Size(at - begin for at, begin in zip(start, chunk.offsets, strict=True)),
                torch.Size(counts),
            )

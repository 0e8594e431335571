"""Parts of tensors in the order of their elements, for what reads tensors that are larger than memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch.distributed.checkpoint.storage import StorageReader


@dataclass(frozen=True, slots=True)
class Band:
    """A part of a tensor whose elements follow one after the other."""

    name: str
    dtype: torch.dtype
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.sizes) * self.dtype.itemsize


def bands_of(
    name: str,
    dtype: torch.dtype,
    sizes: Sequence[int],
    *,
    limit: int,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Band]:
    """Cuts a tensor into parts of at most ``limit`` bytes, in the order of their elements.

    ``start`` and ``stop`` say which elements are wanted, ``None`` all from there on.
    """
    steps = [math.prod(sizes[n + 1 :]) for n in range(len(sizes))]
    most = limit // dtype.itemsize
    stop = math.prod(sizes) if stop is None else stop
    while start < stop:
        # The first dimension of which a step begins here and fits.
        fits = (n for n, step in enumerate(steps) if not start % step and step <= min(most, stop - start))
        cut = next(fits, None)
        if cut is None:
            yield Band(name, dtype, (), ())
            return
        at = [start // step % size for step, size in zip(steps[: cut + 1], sizes, strict=False)]
        count = min(sizes[cut] - at[cut], (stop - start) // steps[cut], most // steps[cut])
        inner = sizes[cut + 1 :]
        yield Band(name, dtype, (*at, *(0 for _ in inner)), (*(1 for _ in range(cut)), count, *inner))
        start += count * steps[cut]


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
    """Yields what has to be read of each stored chunk of the tensor."""
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


def dtype_of(stored: TensorStorageMetadata) -> torch.dtype:
    """Returns the type of the elements of a stored tensor."""
    dtype = stored.properties.dtype
    assert isinstance(dtype, torch.dtype)  # noqa: S101 - For the type checker.
    return dtype


def read_bands(
    reader: StorageReader, bands: Sequence[Band], stored: Mapping[str, TensorStorageMetadata]
) -> list[torch.Tensor]:
    """Reads parts of tensors, each into memory of its own."""
    planner = BandPlanner([torch.empty(band.sizes, dtype=band.dtype) for band in bands])
    items = [item for number, band in enumerate(bands) for item in reads_of(band, number, stored[band.name])]
    reader.read_data(LoadPlan(items), planner).wait()
    return planner.tensors


class BandPlanner(DefaultLoadPlanner):
    """Has a tensor for each part that is read."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        super().__init__()
        self.tensors = tensors

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        tensor = self.tensors[read_item.dest_index.index or 0]
        for dimension, (at, count) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            tensor = tensor.narrow(dimension, at, count)
        return tensor

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        pass

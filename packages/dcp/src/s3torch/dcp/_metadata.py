"""The metadata of a checkpoint: read without running code, shared between ranks, with facts of its files.

Each item has a note where stock torch ignores it: the CRCs of what stands before the bytes of its tensor, of
each MiB of these, and of what stands behind them; of objects, and of what was transformed, of each MiB.
"""

from __future__ import annotations

import io
import math
import re
import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from s3torch.core.errors import ChecksumMismatchError, S3Error
from s3torch.core.transfer import combine_crcs, compute_crc, encoded_crc, is_computable, piece_algorithm
from s3torch.dcp._known import UnsafeError, check_depth
from s3torch.dcp._unpickler import SafeUnpickler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch.distributed import ProcessGroup

T = TypeVar("T")
METADATA_NAME = ".metadata"
# The attribute of torch's own storage entries with the facts of the file.
_NOTE = "file_facts"
# That with the checksums of an item, and what it begins with: the number of the algorithm, and the sizes of
# a piece, of the head and of the tail.
CHECKSUMS = "piece_checksums"
_CHECKSUMS_HEAD = struct.Struct("<B3I")
# What reading a value of another kind than was expected may raise.
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_CHECKED = {"state_dict_metadata", "storage_data"}
_TOO_LARGE = 2**63
# How many bytes the checksums have that this package notes.
CRC_WIDTHS = {"CRC64NVME": 8, "CRC32C": 4, "CRC32": 4}
_ALGORITHMS = tuple(CRC_WIDTHS)
_SEAL = re.compile(rb"#s3torch:(\w+)=([A-Za-z0-9+/]+=*)\Z")
_LONGEST_SEAL = 64
_SHOWN = 200


class CheckpointError(S3Error):
    """The checkpoint is not whole, or does not have what the state dict asks for.

    A save raises it instead of committing a checkpoint with holes; a load raises it instead of returning
    wrong tensors.
    """


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the writer of a file knows of it: its bytes, and algorithm and checksum where there is one."""

    size: int
    checksum: tuple[str, str] | None = None

    @classmethod
    def of(cls, note: Mapping[str, Any]) -> FileFacts:
        """Reads what ``note`` has returned, perhaps from JSON."""
        algorithm, value = note["checksum"] or ("", "")
        (size,) = sizes_of([note["size"]])
        return cls(size, (str(algorithm), str(value)) if value else None)

    def note(self) -> dict[str, Any]:
        """Returns what the metadata of a checkpoint says of them."""
        return {"size": self.size, "checksum": self.checksum}


def note_facts(info: Any, facts: FileFacts) -> None:
    """Notes the facts of a file at the place of one of its items, where stock torch ignores them."""
    setattr(info, _NOTE, facts.note())


@dataclass(frozen=True, slots=True)
class ItemChecksums:
    """The checksums of the bytes of an item.

    Attributes:
        algorithm: That of all.
        size: How many bytes a piece has; the last one before the tail has fewer.
        head: How many bytes come before the first of these pieces, a piece of their own.
        tail: How many come behind them.
        values: The CRCs of all pieces, in order.
    """

    algorithm: str
    size: int
    head: int
    tail: int
    values: bytes

    @classmethod
    def of(cls, note: Any, length: int) -> ItemChecksums | None:
        """Reads a note of an item of so many bytes; ``None`` where there is none.

        Raises:
            CheckpointError: It is damaged.
        """
        if note is None:
            return None
        if type(note) is bytes and len(note) >= _CHECKSUMS_HEAD.size:
            number, size, head, tail = _CHECKSUMS_HEAD.unpack_from(note)
            within = length - head - tail
            if number < len(_ALGORITHMS) and size and within >= 0:
                algorithm = _ALGORITHMS[number]
                count = -(-within // size) + (head > 0) + (tail > 0)
                if len(note) == _CHECKSUMS_HEAD.size + count * CRC_WIDTHS[algorithm]:
                    return cls(algorithm, size, head, tail, note[_CHECKSUMS_HEAD.size :])
        raise CheckpointError("what the metadata notes of the checksums of an item is damaged")

    def note(self) -> bytes:
        """Returns what the metadata of a checkpoint says: of a type that every pickle may have, and short."""
        number = _ALGORITHMS.index(self.algorithm)
        return _CHECKSUMS_HEAD.pack(number, self.size, self.head, self.tail) + self.values

    def borders(self, length: int) -> list[int]:
        """Lists where the pieces of an item of so many bytes end."""
        stop = length - self.tail
        found = [self.head] if self.head else []
        if stop > self.head:
            found += [*range(self.head + self.size, stop, self.size), stop]
        if self.tail:
            found.append(length)
        return found

    def pieces(self, length: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yields begin, end and CRC of each piece that has some of these bytes of the item."""
        width = CRC_WIDTHS[self.algorithm]
        behind = length - self.tail
        if start == self.head and stop == behind <= start + self.size and stop > start:
            # Most tensors are one piece.
            at = width if self.head else 0
            yield start, stop, int.from_bytes(self.values[at : at + width], "big")
            return
        borders = [0, *self.borders(length)] if start < stop else [0]
        for number in range(max(bisect_right(borders, start) - 1, 0), len(borders) - 1):
            if borders[number] >= stop:
                break
            value = self.values[number * width : (number + 1) * width]
            yield borders[number], borders[number + 1], int.from_bytes(value, "big")

    def whole(self, length: int) -> int:
        """Returns the CRC of all bytes of the item."""
        crc = 0
        for start, stop, value in self.pieces(length, 0, length):
            crc = combine_crcs(self.algorithm, crc, value, stop - start) if start else value
        return crc


def sealed(body: bytes) -> bytes:
    """Returns the metadata with its checksum behind it, where the readers of pickles do not look."""
    return body + _seal(piece_algorithm(), body)


def is_intact(body: bytes) -> bool:
    """Whether metadata has the checksum that stands behind it; one without any counts as intact."""
    match = _SEAL.search(body, max(0, len(body) - _LONGEST_SEAL))
    if match is None:
        return True
    algorithm = match[1].decode()
    if algorithm not in CRC_WIDTHS or not is_computable(algorithm):
        return True
    return _seal(algorithm, body[: match.start()]) == match[0]


def _seal(algorithm: str, body: bytes) -> bytes:
    value = encoded_crc(algorithm, compute_crc(algorithm, memoryview(body)))
    return f"#s3torch:{algorithm}={value}".encode()


def decode_metadata(body: bytes, *, uri: str, safe_globals: Iterable[Any] = ()) -> Metadata:
    """Reads metadata, and runs nothing that is in it.

    ``safe_globals`` may be in it beyond what torch writes and ``torch.serialization.add_safe_globals`` has.

    Raises:
        ChecksumMismatchError: It has another checksum than the one that was written behind it.
        CheckpointError: It is damaged, or has something that is not allowed.
    """
    if not is_intact(body):
        raise ChecksumMismatchError(
            f"{uri} is damaged: it does not have the checksum that was written with it"
        )
    try:
        metadata = SafeUnpickler(io.BytesIO(body), safe_globals=safe_globals).load()
        if isinstance(metadata, Metadata):
            _check(metadata)
    except UnsafeError as exc:
        raise CheckpointError(
            f"{uri} contains {exc}, so it was not read"
            + (
                "; if you trust who wrote it, give it to the reader as safe_globals=[...] or to "
                "torch.serialization.add_safe_globals"
                if exc.found
                else ""
            )
        ) from exc
    except Exception as exc:
        raise CheckpointError(
            f"{uri} is damaged and cannot be read as the metadata of a checkpoint: {exc}"
        ) from exc
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"{uri} is not the metadata of a checkpoint, but a {type(metadata).__name__}")
    if getattr(metadata, "storage_meta", None) is None:
        # Old releases of torch do not write it.
        metadata.storage_meta = StorageMeta()
    return metadata


def _check(metadata: Metadata) -> None:
    """Checks that what is in metadata has the types that torch and this package rely on."""
    for name, stored in _entries(metadata.state_dict_metadata, str):
        if type(stored) is TensorStorageMetadata:
            _check_tensor(name, stored)
        elif type(stored) is not BytesStorageMetadata:
            raise ValueError(f"{name} is a {type(stored).__name__}")
    for index, info in _entries(metadata.storage_data or {}, MetadataIndex):
        offset = index.offset
        if type(index.fqn) is not str or not (offset is None or _are_sizes(offset)):
            raise ValueError(f"a place of {index.fqn!r}"[:_SHOWN])
        if type(info) is not _StorageInfo or type(info.relative_path) is not str:
            raise ValueError(f"the place of {index.fqn} has no file")
        if not _are_sizes((info.offset, info.length)):
            raise ValueError(f"{index.fqn} is {info.length!r} bytes at {info.offset!r}"[:_SHOWN])
    notes = [vars(info) for info in (metadata.storage_data or {}).values()]
    check_depth([notes, *(value for name, value in vars(metadata).items() if name not in _CHECKED)])


def _check_tensor(name: str, stored: TensorStorageMetadata) -> None:
    sizes = stored.size
    if type(stored.properties) is not TensorProperties or type(stored.properties.dtype) is not torch.dtype:
        raise ValueError(f"{name} has no type")
    if not _are_sizes(sizes) or type(stored.chunks) is not list:
        raise ValueError(f"{name} has the shape {sizes!r}"[:_SHOWN])
    for chunk in stored.chunks:
        if type(chunk) is not ChunkStorageMetadata or not (
            _are_sizes(chunk.sizes)
            and _are_sizes(chunk.offsets)
            and len(chunk.sizes) == len(chunk.offsets) == len(sizes)
        ):
            raise ValueError(f"a part of {name} is not a part of a tensor of the shape {tuple(sizes)}")


def _entries(values: Any, kind: type) -> Iterable[tuple[Any, Any]]:
    if type(values) is not dict or not set(map(type, values)) <= {kind}:
        raise ValueError(f"something other than a map by {kind.__name__}")
    return values.items()


def _are_sizes(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(one) is int and 0 <= one < _TOO_LARGE for one in values)


def sizes_of(values: Any) -> tuple[int, ...]:
    """Returns numbers that can be offsets, or the shape of a tensor.

    Raises:
        ValueError: They cannot.
    """
    sizes = tuple(values)
    if not _are_sizes(sizes) or math.prod(filter(None, sizes)) >= _TOO_LARGE:
        raise ValueError(f"{values!r} are no sizes"[:_SHOWN])
    return sizes


def unlike_tiles(tensor: TensorStorageMetadata) -> str | None:
    """Tells how parts of a tensor fail to be all of it, each element once; ``None`` if they do not."""
    parts = [(tuple(one.offsets), tuple(one.sizes)) for one in tensor.chunks if 0 not in one.sizes]
    there, wanted = sum(math.prod(sizes) for _, sizes in parts), math.prod(tensor.size)
    if there != wanted:
        return f"{there} of the {wanted} elements"
    # Sorted along the dimension in which there are most, each part is compared with few others.
    starts = [len(set(column)) for column in zip(*(offsets for offsets, _ in parts), strict=True)]
    along = starts.index(max(starts)) if starts else 0
    near: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for offsets, sizes in sorted(parts, key=lambda part: part[0][along : along + 1]):
        near = [one for one in near if one[0][along] + one[1][along] > offsets[along]] if offsets else near
        for others, counts in near:
            where = zip(offsets, sizes, others, counts, strict=True)
            if all(at < other + count and other < at + size for at, size, other, count in where):
                return f"overlapping parts, at {others} and {offsets},"
        near.append((offsets, sizes))
    return None


def file_facts(metadata: Metadata) -> dict[str, FileFacts]:
    """Returns what the metadata notes of the files, by their names; nothing when another library wrote it.

    Raises:
        CheckpointError: The notes are damaged.
    """
    try:
        return {
            info.relative_path: FileFacts.of(note)
            for info in (metadata.storage_data or {}).values()
            if isinstance(note := getattr(info, _NOTE, None), dict)
        }
    except MALFORMED as exc:
        raise CheckpointError(f"what the metadata notes of a file is damaged: {exc!r}"[:_SHOWN]) from exc


def file_names(metadata: Metadata) -> set[str]:
    """Returns the names of all files of a checkpoint, relative to it."""
    return {str(info.relative_path) for info in (metadata.storage_data or {}).values()}


def shared(fetch: Callable[[], T], group: ProcessGroup | None) -> T:
    """Returns what the first rank of the group has fetched, on all of its ranks.

    All of them must call; without a group the caller is alone. An error of one rank is raised on all.
    """
    if group is None:
        return fetch()
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    if dist.get_rank(group) == 0:
        outcome, error = _outcome(fetch)
    dist.broadcast_object_list(outcome, src=dist.get_global_rank(group, 0), group=group)
    found, failure = outcome
    if failure is not None:
        raise error or failure
    return cast("T", found)


def everywhere(work: Callable[[], T], group: ProcessGroup | None) -> list[T]:
    """Does something on each rank of the group, as ``shared``; returns the results of all on all of them."""
    if group is None:
        return [work()]
    outcome, error = _outcome(work)
    outcomes: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, outcome, group=group)
    failures = [failure for _, failure in outcomes if failure is not None]
    if failures:
        raise error or failures[0]
    return [found for found, _ in outcomes]


def _outcome(work: Callable[[], Any]) -> tuple[list[Any], Exception | None]:
    """Returns what other ranks are told, a result and an error, and the error as it was raised."""
    try:
        return [work(), None], None
    except Exception as exc:  # noqa: BLE001 - The other ranks would wait for ever.
        return [None, _portable(exc)], exc


def _portable(error: Exception) -> S3Error:
    """Returns an error that can be pickled, as those of S3 can."""
    return error if isinstance(error, S3Error) else CheckpointError(f"another rank: {error!r}")

"""Objects of a listing, millions of them, in a few arrays instead of several Python objects; and summaries.

An object takes its key and 42 bytes, 17 of them for the usual ETag, and the version, if one is chosen. All of
it is in one buffer, which forked processes share without copying, which a file can hold, and which other
processes map into their memory.
"""

from __future__ import annotations

import json
import mmap
import pickle
import re
import struct
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, overload

from s3torch.core import ObjectInfo, S3BucketKeyData
from s3torch.datasets.sources._sources import VersionedInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Self

_MD5 = re.compile(r'"[0-9a-f]{32}"')
_MD5_LENGTH = 16
_LONGEST_ETAG = 255
_MOST_CLASSES = 255
_TOO_LARGE = 1 << 63
# Of these arrays, in this order; ``records`` has ETag, key and version of each object, and ``versions`` how
# long the last is, unless no object has one.
_ARRAYS: tuple[tuple[str, Literal["Q", "q", "B"]], ...] = (
    *(("ends", "Q"), ("sizes", "q"), ("times", "q")),
    *(("classes", "B"), ("versions", "B"), ("records", "B")),
)
_HEAD = struct.Struct("<8sQ")
_MAGIC = b"s3table2"


class ObjectTable(Sequence[S3BucketKeyData]):
    """An immutable sequence of objects, each made when it is asked for.

    Its pickles and files are for other processes of the same job only: they may hold pickled objects.
    """

    def __init__(self, buffer: Any) -> None:
        magic, length = _HEAD.unpack_from(buffer)
        if magic != _MAGIC:
            raise ValueError("this is not a table of objects")
        view = memoryview(buffer)
        place = _HEAD.size + length
        head = json.loads(bytes(view[_HEAD.size : place]))
        columns: dict[str, memoryview[int]] = {}
        for (name, kind), size in zip(_ARRAYS, head["lengths"], strict=True):
            columns[name] = view[place : place + size].cast(kind)
            place += size
        self._buffer = buffer
        self._columns = columns
        self._buckets: list[str] = head["buckets"]
        self._bucket_starts: list[int] = head["bucket_starts"]
        self._storage: list[str | None] = head["storage"]
        self._odd: dict[int, S3BucketKeyData] = pickle.loads(view[place:])  # noqa: S301 - our own bytes

    @classmethod
    def of(cls, objects: Iterable[S3BucketKeyData]) -> Self:
        """Builds a table; consumes the objects once."""
        if isinstance(objects, cls):
            return objects
        builder = _Builder()
        for item in objects:
            builder.add(item)
        return cls(builder.finish())

    @classmethod
    def mapped(cls, file: BinaryIO) -> Self:
        """Maps a file that has ``buffer``; processes that map it share the memory."""
        return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    @property
    def buffer(self) -> memoryview:
        """The whole table, for ``mapped``."""
        return memoryview(self._buffer)

    @cached_property
    def digest(self) -> str:
        """Differs between tables that differ in objects, sizes, ETags or their order."""
        digest = sha256(json.dumps([self._buckets, self._bucket_starts]).encode())
        for name in ("ends", "sizes", "versions", "records"):
            digest.update(self._columns[name])
        for index, item in sorted(self._odd.items()):
            info = item.object_info
            facts = (getattr(info, "size", None), getattr(info, "etag", None))
            digest.update(repr((index, item.bucket, item.key, *facts)).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._columns["ends"])

    @overload
    def __getitem__(self, index: int) -> S3BucketKeyData: ...
    @overload
    def __getitem__(self, index: slice) -> list[S3BucketKeyData]: ...
    def __getitem__(self, index: int | slice) -> S3BucketKeyData | list[S3BucketKeyData]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        count = len(self)
        if not -count <= index < count:
            raise IndexError(index)
        index %= count
        if index in self._odd:
            return self._odd[index]
        columns = self._columns
        start = columns["ends"][index - 1] if index else 0
        end = columns["ends"][index]
        behind = end - (columns["versions"][index] if columns["versions"] else 0)
        etag, key = _unpack(bytes(columns["records"][start:behind]))
        bucket = self._buckets[bisect_right(self._bucket_starts, index) - 1]
        size = columns["sizes"][index]
        if size < 0:
            return S3BucketKeyData(bucket, key)
        storage, time = self._storage[columns["classes"][index]], columns["times"][index]
        if behind < end:
            version = bytes(columns["records"][behind:end]).decode("ascii")
            info = VersionedInfo(key, etag, size, time, storage, version_id=version)
            return S3BucketKeyData(bucket, key, info)
        return S3BucketKeyData(bucket, key, ObjectInfo(key, etag, size, time, storage))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (bytes(self._buffer),))


class _Builder:
    def __init__(self) -> None:
        self._ends, self._sizes, self._times = array("Q"), array("q"), array("q")
        self._classes, self._versions = array("B"), array("B")
        self._records = bytearray()
        self._buckets: list[str] = []
        self._bucket_starts: list[int] = []
        self._storage: dict[str | None, int] = {None: 0}
        self._odd: dict[int, S3BucketKeyData] = {}

    def add(self, item: S3BucketKeyData) -> None:
        bucket, key, info = item
        if not self._is_plain(item):
            self._odd[len(self._ends)] = item
            key, info = "", None
        elif not self._buckets or self._buckets[-1] != bucket:
            self._buckets.append(bucket)
            self._bucket_starts.append(len(self._ends))
        if info is None:
            self._records += b"\0"
            self._sizes.append(-1)
            self._times.append(0)
            self._classes.append(0)
        else:
            self._records += _pack_etag(info.etag)
            self._sizes.append(info.size)
            self._times.append(info.last_modified)
            self._classes.append(self._storage.setdefault(info.storage_class, len(self._storage)))
        # A key that came from Python may have lone surrogates.
        self._records += key.encode("utf-8", "surrogatepass")
        if isinstance(info, VersionedInfo):
            self._versions.extend(bytes(len(self._ends) - len(self._versions)))
            self._versions.append(len(info.version_id))
            self._records += info.version_id.encode("ascii")
        self._ends.append(len(self._records))

    def _is_plain(self, item: S3BucketKeyData) -> bool:
        """Whether the arrays can hold the item; others are kept as they are."""
        info = item.object_info
        if info is None:
            return True
        version = info.version_id if isinstance(info, VersionedInfo) else "0"
        return (
            type(info) in {ObjectInfo, VersionedInfo}
            and info.restore_status is None
            and version.isascii()
            and 0 < len(version) < _LONGEST_ETAG
            and info.key == item.key
            and type(info.size) is int
            and 0 <= info.size < _TOO_LARGE
            and type(info.last_modified) is int
            and abs(info.last_modified) < _TOO_LARGE
            and isinstance(info.etag, str)
            and len(info.etag) < _LONGEST_ETAG
            and info.etag.isascii()
            and (info.storage_class in self._storage or len(self._storage) < _MOST_CLASSES)
        )

    def finish(self) -> bytearray:
        if self._versions:
            self._versions.extend(bytes(len(self._ends) - len(self._versions)))
        columns: list[array[int] | bytearray] = [self._ends, self._sizes, self._times]
        columns += [self._classes, self._versions, self._records]
        head = {
            "lengths": [memoryview(column).nbytes for column in columns],
            "buckets": self._buckets,
            "bucket_starts": self._bucket_starts,
            "storage": list(self._storage),
        }
        text = json.dumps(head).encode()
        buffer = bytearray(_HEAD.pack(_MAGIC, len(text)) + text)
        for column in columns:
            buffer += memoryview(column).cast("B")
            # Both copies of all columns at a time would be twice the memory.
            del column[:]
        return buffer + pickle.dumps(self._odd)


def _pack_etag(etag: str) -> bytes:
    """Half the bytes for an ETag that is an MD5 sum, as most are."""
    if _MD5.fullmatch(etag):
        return b"\xff" + bytes.fromhex(etag[1:-1])
    return bytes([len(etag)]) + etag.encode("ascii")


def _unpack(record: bytes) -> tuple[str, str]:
    if record[0] == _LONGEST_ETAG:
        place = 1 + _MD5_LENGTH
        etag = f'"{record[1:place].hex()}"'
    else:
        place = 1 + record[0]
        etag = record[1:place].decode("ascii")
    return etag, record[place:].decode("utf-8", "surrogatepass")


_QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SHOWN = 8
_BAR = 30


@dataclass(frozen=True, slots=True, repr=False)
class DatasetSummary:
    """How many objects there are, and how large; ``print`` shows it as a table.

    Attributes:
        objects: How many.
        bytes: All their bytes.
        unknown_sizes: How many have a size that is not known yet; ``bytes`` does not count them.
        quantiles: The sizes of objects at ``"min"``, ``"5%"``, ``"25%"``, ``"median"``, ``"75%"``, ``"95%"``,
            ``"max"``; empty without sizes.
        histogram: How many objects have at least so many bytes and less than twice as many, in order; 0 for
            empty ones.
        suffixes: How many objects have each suffix, the most frequent first; ``""`` for none.
        estimated_samples: How many samples there are; an estimate for shards, ``None`` where it is unknown.
    """

    objects: int
    bytes: int
    unknown_sizes: int
    quantiles: Mapping[str, int]
    histogram: Mapping[int, int]
    suffixes: Mapping[str, int]
    estimated_samples: int | None = None

    def __repr__(self) -> str:
        lines = [f"{self.objects:,} objects, {_human(self.bytes)}"]
        if self.estimated_samples not in {None, self.objects}:
            lines[0] += f", about {self.estimated_samples:,} samples"
        if self.unknown_sizes:
            lines.append(f"{self.unknown_sizes:,} of unknown size")
        if self.quantiles:
            lines.append("sizes: " + ", ".join(f"{name} {_human(at)}" for name, at in self.quantiles.items()))
        most = max(self.histogram.values(), default=0)
        for low, count in self.histogram.items():
            lines.append(f"  from {_human(low):>10} {'#' * -(-count * _BAR // most):<{_BAR}} {count:,}")
        shown = [f"{suffix or 'none'} {count:,}" for suffix, count in self.suffixes.items()][:_SHOWN]
        if len(self.suffixes) > _SHOWN:
            shown.append("…")
        if shown:
            lines.append("suffixes: " + ", ".join(shown))
        return "\n".join(lines)


def describe_objects(
    objects: Iterable[S3BucketKeyData], *, estimated_samples: int | None = None
) -> DatasetSummary:
    """Summarises objects from their listing, without a request.

    ``estimated_samples`` is how many samples they have, where that is known or can be estimated.
    """
    sizes = array("Q")
    suffixes: Counter[str] = Counter()
    unknown = 0
    for item in objects:
        name = item.key.rpartition("/")[2]
        suffixes[f".{name.rpartition('.')[2].lower()}" if "." in name[1:] else ""] += 1
        if item.object_info is None:
            unknown += 1
        else:
            sizes.append(item.object_info.size)
    ordered = array("Q", sorted(sizes))
    # A size belongs to the highest power of two that is not above it.
    powers = Counter(1 << size.bit_length() >> 1 for size in ordered)
    return DatasetSummary(
        objects=len(sizes) + unknown,
        bytes=sum(sizes),
        unknown_sizes=unknown,
        quantiles={
            name: ordered[round(part * (len(ordered) - 1))] for name, part in _QUANTILES.items() if ordered
        },
        histogram=dict(sorted(powers.items())),
        suffixes=dict(suffixes.most_common()),
        estimated_samples=estimated_samples,
    )


def _human(count: int) -> str:
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"

"""What ``torch.save`` writes around the bytes of a tensor, made without it.

An archive of ``torch.save`` is a ZIP file that stores its records uncompressed. Made here it has one tensor,
whose bytes can go from its own memory to S3, with one write for all that stands before and one for all that
stands behind. ``torch.save`` takes about forty small writes for the same, and copies.

The record of the tensor has no CRC-32, as after ``torch.serialization.set_crc32_options(False)``: it would
take as long as to send the bytes, ``torch.load`` does not look at it, and uploads carry a better checksum.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import sys
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch._utils import _rebuild_tensor_v2, _rebuild_tensor_v3
from torch.storage import UntypedStorage, _new_dtypes

from s3torch.dcp.archives import STORAGES, TensorLayout

__all__ = ["ArchiveFrame", "archive_frame"]

_FOLDER = "archive"
_VERSION = b"3\n"
_PROTOCOL = 2
# torch maps storages into memory, and wants them aligned.
_ALIGNMENT = 64
_PADDING = b"FB"
_ZIP64 = 1
_NAMES_ARE_UTF8 = 0x0800
_LIMIT = 0xFFFFFFFF
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_EXTRA = struct.Struct("<2H")
_SIZES = struct.Struct("<2Q")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")

_STORAGE_OF = {dtype: getattr(torch, name) for name, dtype in STORAGES.items()}
# Types that have no storage class of their own, as those of 8 bits; torch knows them by name.
_UNTYPED = frozenset(_new_dtypes())


@dataclass(frozen=True, slots=True)
class ArchiveFrame:
    """An archive without the bytes of its tensor.

    Attributes:
        head: What stands before them.
        tail: What stands behind them.
        layout: Where they are.
    """

    head: bytes
    tail: bytes
    layout: TensorLayout


@lru_cache(maxsize=256)
def archive_frame(dtype: torch.dtype, sizes: tuple[int, ...]) -> ArchiveFrame | None:
    """Makes what stands around the bytes of a contiguous tensor on the CPU.

    Args:
        dtype: The type of its elements.
        sizes: Its shape; it has some elements.

    Returns:
        ``None`` for types that torch describes in another way; ``torch.save`` knows how.
    """
    if dtype not in _STORAGE_OF and dtype not in _UNTYPED:
        return None
    records = _Records()
    records.add("data.pkl", _description(dtype, sizes))
    records.add("byteorder", sys.byteorder.encode())
    records.add("version", _VERSION)
    start = records.begin("data/0", math.prod(sizes) * dtype.itemsize)
    return ArchiveFrame(bytes(records.head), records.tail(), TensorLayout(start, dtype, sizes))


def _description(dtype: torch.dtype, sizes: tuple[int, ...]) -> bytes:
    """Pickles how torch makes the tensor again, as ``torch.save`` does."""
    body = io.BytesIO()
    _Pickler(body, _PROTOCOL).dump(_Tensor(dtype, sizes))
    return body.getvalue()


@dataclass(frozen=True, slots=True)
class _Storage:
    kind: type
    count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: torch.dtype
    sizes: tuple[int, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        count = math.prod(self.sizes)
        common: tuple[Any, ...] = (
            0,
            self.sizes,
            TensorLayout(0, self.dtype, self.sizes).strides,
            False,
            OrderedDict(),
        )
        if self.dtype in _UNTYPED:
            whole = _Storage(UntypedStorage, count * self.dtype.itemsize)
            return _rebuild_tensor_v3, (whole, *common, self.dtype)
        return _rebuild_tensor_v2, (_Storage(_STORAGE_OF[self.dtype], count), *common)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any, /) -> Any:
        return ("storage", obj.kind, "0", "cpu", obj.count) if isinstance(obj, _Storage) else None


class _Records:
    """The records of a ZIP file, the last of which has its content elsewhere."""

    def __init__(self) -> None:
        self.head = bytearray()
        self._entries = bytearray()
        self._count = 0
        self._size = 0

    def add(self, name: str, content: bytes) -> None:
        """Adds a small record with its content."""
        self._put(name, len(content), zlib.crc32(content), padding=b"")
        self.head += content

    def begin(self, name: str, size: int) -> int:
        """Adds a record whose content follows the head; returns where it begins, which is aligned."""
        extra = _EXTRA.size + (_EXTRA.size + _SIZES.size if size >= _LIMIT else 0)
        unaligned = len(self.head) + _LOCAL_HEADER.size + len(self._full(name)) + extra
        fill = -unaligned % _ALIGNMENT
        self._put(name, size, 0, padding=_EXTRA.pack(int.from_bytes(_PADDING, "little"), fill) + b"Z" * fill)
        self._size = size
        return len(self.head)

    def tail(self) -> bytes:
        """Returns the directory of the archive, and the records that tell where it is."""
        at = len(self.head) + self._size
        count, size = self._count, len(self._entries)
        end64 = _END64.pack(b"PK\x06\x06", _END64.size - 12, 0x031E, 45, 0, 0, count, count, size, at)
        locator = _LOCATOR.pack(b"PK\x06\x07", 0, at + size, 1)
        end = _END.pack(b"PK\x05\x06", 0, 0, count, count, size, min(at, _LIMIT), 0)
        return bytes(self._entries) + end64 + locator + end

    def _put(self, name: str, size: int, crc: int, *, padding: bytes) -> None:
        extra = b""
        if size >= _LIMIT:
            extra = _EXTRA.pack(_ZIP64, _SIZES.size) + _SIZES.pack(size, size)
            size = _LIMIT
        full, position = self._full(name), len(self.head)
        about = (0, _NAMES_ARE_UTF8, 0, 0, 0, crc, size, size, len(full))
        self.head += _LOCAL_HEADER.pack(b"PK\x03\x04", *about, len(extra + padding)) + full + extra + padding
        self._entries += _ENTRY.pack(b"PK\x01\x02", 0, *about, len(extra), 0, 0, 0, 0, position)
        self._entries += full + extra
        self._count += 1

    @staticmethod
    def _full(name: str) -> bytes:
        return f"{_FOLDER}/{name}".encode()

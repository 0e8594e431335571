"""Where the bytes of a tensor are inside the archive that ``torch.save`` has made of it.

An archive stores the bytes of a tensor as they are in memory, uncompressed, so that a load can fetch them, or
some of them, straight into another tensor. The writer of this package notes the place in the metadata of the
checkpoint; for files of others it is read from the head of the archive.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import sys
from dataclasses import dataclass
from typing import Any

import torch

__all__ = [
    "HEAD_SIZE",
    "STORAGES",
    "TensorLayout",
    "find_content",
    "noted_layout",
    "parse_archive",
    "tensor_of",
]

# The head of an archive with one tensor has about 1,000 bytes.
HEAD_SIZE = 4096

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_SIGNATURE = b"PK\x03\x04"
STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """A contiguous tensor inside the bytes of an item.

    Attributes:
        start: Where its bytes begin, counted from the beginning of the item.
        dtype: The type of its elements.
        sizes: Its shape.
    """

    start: int
    dtype: torch.dtype
    sizes: tuple[int, ...]

    @property
    def stop(self) -> int:
        """Where its bytes end."""
        return self.start + math.prod(self.sizes) * self.dtype.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        """The distance of neighbours along each dimension, in elements."""
        return tuple(math.prod(self.sizes[n + 1 :]) for n in range(len(self.sizes)))

    def note(self) -> dict[str, Any] | None:
        """Returns what the metadata of a checkpoint says of it; nothing where bytes are in another order."""
        if sys.byteorder != "little":
            return None
        return {"start": self.start, "dtype": str(self.dtype).removeprefix("torch."), "sizes": self.sizes}


def noted_layout(note: Any, length: int) -> TensorLayout | None:
    """Reads what the writer has noted; ``None`` for what does not fit into an item of this length."""
    if not isinstance(note, dict) or sys.byteorder != "little":
        return None
    try:
        start, sizes = int(note["start"]), tuple(int(size) for size in note["sizes"])
        dtype = getattr(torch, note["dtype"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    if start < 0 or not isinstance(dtype, torch.dtype) or any(size < 0 for size in sizes):
        return None
    layout = TensorLayout(start, dtype, sizes)
    return layout if layout.stop <= length else None


def tensor_of(content: Any, layout: TensorLayout) -> torch.Tensor:
    """Makes a tensor of its bytes; of a writable buffer it is a view."""
    if not content:
        return torch.empty(layout.sizes, dtype=layout.dtype)
    if memoryview(content).readonly:
        content = bytearray(content)
    return torch.frombuffer(content, dtype=layout.dtype).view(layout.sizes)


def parse_archive(head: memoryview, length: int) -> TensorLayout | None:
    """Finds the tensor in an archive of ``torch.save``.

    Args:
        head: The first bytes of the archive; the tensor itself may be missing.
        length: The length of the whole archive.

    Returns:
        ``None`` for anything but one contiguous tensor with the byte order of this machine; only
        ``torch.load`` knows what that is.
    """
    data = bytes(head[:HEAD_SIZE])
    try:
        root, pickled = _first_record(data)
        if data[_record(data, f"{root}/byteorder") :][: len(sys.byteorder)] != sys.byteorder.encode():
            return None
        tensor = _TensorUnpickler(io.BytesIO(data[pickled:])).load()
        if not isinstance(tensor, _Tensor) or not tensor.is_contiguous:
            return None
        layout = TensorLayout(_record(data, f"{root}/data/{tensor.key}"), tensor.dtype, tensor.sizes)
    except (_OtherArchiveError, pickle.UnpicklingError, EOFError, struct.error, TypeError, ValueError):
        return None
    return layout if layout.stop <= length else None


def find_content(head: bytes) -> int | None:
    """Tells where the bytes of the only tensor begin in an archive, whatever its type."""
    try:
        root, _ = _first_record(head)
        return _record(head, f"{root}/data/0")
    except (_OtherArchiveError, struct.error):
        return None


class _OtherArchiveError(Exception):
    """The archive is of a kind that is not read here."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    key: str
    dtype: torch.dtype
    count: int
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        expected = TensorLayout(0, self.dtype, self.sizes).strides
        pairs = zip(self.sizes, self.strides, expected, strict=True)
        in_order = all(size == 1 or is_ == should for size, is_, should in pairs)
        return in_order and self.offset == 0 and math.prod(self.sizes) == self.count


class _TensorUnpickler(pickle.Unpickler):
    """Reads the description of a tensor and runs nothing."""

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _describe
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise _OtherArchiveError(f"{module}.{name}")

    def persistent_load(self, pid: Any, /) -> Any:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise _OtherArchiveError(kind)
        return str(key), dtype, int(count)


def _describe(storage: Any, offset: int, sizes: Any, strides: Any, *rest: Any) -> _Tensor:
    if len(rest) > 2 and rest[2]:
        raise _OtherArchiveError("a tensor with metadata")
    key, dtype, count = storage
    return _Tensor(key, dtype, count, offset, tuple(sizes), tuple(strides))


def _first_record(data: bytes) -> tuple[str, int]:
    """Returns the folder of the archive and where its pickled description begins."""
    signature, *_, name_size, extra_size = _LOCAL_HEADER.unpack_from(data)
    name = data[_LOCAL_HEADER.size :][:name_size].decode("utf-8", "replace")
    if signature != _SIGNATURE or not name.endswith("/data.pkl"):
        raise _OtherArchiveError(name)
    return name.removesuffix("/data.pkl"), _LOCAL_HEADER.size + name_size + extra_size


def _record(data: bytes, name: str) -> int:
    """Returns where the content of a record begins."""
    wanted, position = name.encode(), 0
    while (position := data.find(_SIGNATURE, position)) >= 0:
        _, _, _, method, *_, name_size, extra_size = _LOCAL_HEADER.unpack_from(data, position)
        begin = position + _LOCAL_HEADER.size
        if data[begin : begin + name_size] == wanted and method == 0:
            return int(begin + name_size + extra_size)
        position += 1
    raise _OtherArchiveError(f"no record {name}")

"""Tensors as bytes: in memory, and in the archives of ``torch.save``.

An archive is a ZIP file that stores its records uncompressed: the bytes of a tensor are as they are in
memory, so that a load can fetch them, or some of them, straight into another tensor. The writer of this
package notes the place in the metadata of the checkpoint; for files of others it is read from the head of
the archive.

What stands around a tensor is made here without ``torch.save``, which takes about forty small writes for it,
and copies: its bytes go from its own memory to S3, with one write for all before them and one for all behind.
The record of the tensor has no CRC-32, as after ``torch.serialization.set_crc32_options(False)``: it would
take as long as to send the bytes, ``torch.load`` does not look at it, and uploads carry a better checksum.

Accelerators reach memory that torch calls pinned without the processor. It is expensive to get, and torch
keeps what was freed for whoever asks for as much. So copies are made in pieces of one size, and the memory of
a piece is freed when its copy has ended: the accelerator tells that by an event.
"""

from __future__ import annotations

import ctypes
import io
import math
import pickle
import struct
import sys
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch._utils import _rebuild_tensor_v2, _rebuild_tensor_v3
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.storage import UntypedStorage, _new_dtypes

from s3torch.core.ranges import MIB
from s3torch.dcp._unpickler import SafeUnpickler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# The most bytes of one copy.
PIECE = 8 * MIB
# The attribute of torch's own storage entries where our writer notes more; stock torch ignores it.
NOTE = "tensor_layout"
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
_FOLDER = "archive"
_VERSION = b"3\n"
_PROTOCOL = 2
# torch maps storages into memory, and wants them aligned.
_ALIGNMENT = 64
_PADDING = b"FB"
_ZIP64 = 1
_NAMES_ARE_UTF8 = 0x0800
_LIMIT = 0xFFFFFFFF
_ENTRY = struct.Struct("<4s6H3L5H2L")
_EXTRA = struct.Struct("<2H")
_SIZES = struct.Struct("<2Q")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_STORAGE_OF = {dtype: getattr(torch, name) for name, dtype in STORAGES.items()}
# Types that have no storage class of their own, as those of 8 bits; torch knows them by name.
_UNTYPED = frozenset(_new_dtypes())


def memory_of(tensor: torch.Tensor) -> memoryview:
    """Returns the bytes of a contiguous tensor on the CPU; they live no longer than the tensor."""
    window = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())
    window.owner = tensor  # type: ignore[attr-defined] # The view keeps the window alive, it the tensor.
    return memoryview(window).cast("B")


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Returns the elements of a tensor in order; without a copy where they are so on the CPU."""
    if not tensor.nbytes:
        return memoryview(b"")
    return memory_of(tensor.detach().cpu().resolve_conj().resolve_neg().contiguous())


def tensor_of(content: Any, dtype: torch.dtype, sizes: tuple[int, ...]) -> torch.Tensor:
    """Returns the tensor with these elements; of a writable buffer it is a view."""
    if not content:
        return torch.empty(sizes, dtype=dtype)
    if memoryview(content).readonly:
        content = bytearray(content)
    return torch.frombuffer(content, dtype=dtype).view(sizes)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the bytes of a tensor are just its elements, in order."""
    return bool(
        type(tensor) is torch.Tensor
        and tensor.layout == torch.strided
        and tensor.nbytes
        and tensor.is_contiguous()
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def is_on_accelerator(tensor: torch.Tensor) -> bool:
    """Whether copies to and from the memory of a tensor go on by themselves."""
    kind = tensor.device.type
    if kind in {"cpu", "meta"}:
        return False
    here = torch.accelerator.current_accelerator(check_available=True)
    # What shares the memory of the host (MPS) gains nothing.
    return here is not None and here.type == kind and kind != "mps"


def pinned(size: int) -> torch.Tensor:
    """Returns bytes on the host that an accelerator reaches without the processor."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


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
        start, sizes = note["start"], tuple(note["sizes"])
        dtype = getattr(torch, note["dtype"])
    except (AttributeError, KeyError, TypeError):
        return None
    if not all(type(size) is int and 0 <= size <= sys.maxsize for size in (start, *sizes)):
        return None
    if dtype not in _STORAGE_OF and dtype not in _UNTYPED:
        return None
    layout = TensorLayout(start, dtype, sizes)
    return layout if layout.stop <= length else None


def storage_entry(
    path: str, offset: int, length: int, layout: TensorLayout | None, descriptors: list[str] | None = None
) -> _StorageInfo:
    """Returns what the metadata of a checkpoint says of an item in a file, with a note of its layout."""
    entry = _StorageInfo(path, offset, length, transform_descriptors=descriptors or None)
    if layout is not None:
        setattr(entry, NOTE, layout.note())
    return entry


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
        tensor = _TensorUnpickler(io.BytesIO(data[pickled:]), safe_globals=None).load()
        if not isinstance(tensor, _Tensor) or not tensor.is_contiguous:
            return None
        layout = TensorLayout(_record(data, f"{root}/data/{tensor.key}"), tensor.dtype, tensor.sizes)
        is_inside = layout.stop <= length
    except Exception:  # noqa: BLE001 - Whatever is wrong with it, torch.load tells.
        return None
    return layout if is_inside else None


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


class _TensorUnpickler(SafeUnpickler):
    """Reads the description of a tensor."""

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.may_call(_describe)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return super().find_class(module, name)
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

    Returns:
        ``None`` for types that torch describes in another way; ``torch.save`` knows how.
    """
    if dtype not in _STORAGE_OF and dtype not in _UNTYPED:
        return None
    records = {
        "data.pkl": _description(dtype, sizes),
        "byteorder": sys.byteorder.encode(),
        "version": _VERSION,
    }
    head, tail = _records_around(records, math.prod(sizes) * dtype.itemsize)
    return ArchiveFrame(head, tail, TensorLayout(len(head), dtype, sizes))


def _description(dtype: torch.dtype, sizes: tuple[int, ...]) -> bytes:
    """Pickles how torch makes the tensor again, as ``torch.save`` does."""
    count, strides = math.prod(sizes), TensorLayout(0, dtype, sizes).strides
    common: tuple[Any, ...] = (0, sizes, strides, False, OrderedDict())
    if dtype in _UNTYPED:
        storage = _Storage(UntypedStorage, count * dtype.itemsize)
        call = _Call(_rebuild_tensor_v3, (storage, *common, dtype))
    else:
        call = _Call(_rebuild_tensor_v2, (_Storage(_STORAGE_OF[dtype], count), *common))
    body = io.BytesIO()
    _Pickler(body, _PROTOCOL).dump(call)
    return body.getvalue()


@dataclass(frozen=True, slots=True)
class _Storage:
    kind: type
    count: int


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[..., torch.Tensor]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any, /) -> Any:
        return ("storage", obj.kind, "0", "cpu", obj.count) if isinstance(obj, _Storage) else None


def _records_around(records: Mapping[str, bytes], size: int) -> tuple[bytes, bytes]:
    """Returns a ZIP file without the content of its last record, which follows the head and is aligned."""
    head, directory = bytearray(), bytearray()
    for name, content in {**records, "data/0": None}.items():
        full, count = f"{_FOLDER}/{name}".encode(), size if content is None else len(content)
        extra = padding = b""
        if count >= _LIMIT:
            extra = _EXTRA.pack(_ZIP64, _SIZES.size) + _SIZES.pack(count, count)
        if content is None:
            fill = -(len(head) + _LOCAL_HEADER.size + len(full + extra) + _EXTRA.size) % _ALIGNMENT
            padding = _EXTRA.pack(int.from_bytes(_PADDING, "little"), fill) + b"Z" * fill
        crc, count = zlib.crc32(content or b""), min(count, _LIMIT)
        about = (0, _NAMES_ARE_UTF8, 0, 0, 0, crc, count, count, len(full))
        directory += _ENTRY.pack(b"PK\x01\x02", 0, *about, len(extra), 0, 0, 0, 0, len(head)) + full + extra
        head += _LOCAL_HEADER.pack(_SIGNATURE, *about, len(extra + padding)) + full + extra + padding
        head += content or b""
    at, count = len(head) + size, len(records) + 1
    end64 = _END64.pack(b"PK\x06\x06", _END64.size - 12, 0x031E, 45, 0, 0, count, count, len(directory), at)
    locator = _LOCATOR.pack(b"PK\x06\x07", 0, at + len(directory), 1)
    end = _END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), min(at, _LIMIT), 0)
    return bytes(head), bytes(directory) + end64 + locator + end

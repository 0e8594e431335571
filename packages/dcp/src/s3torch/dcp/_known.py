"""What pickles may name and call: plain values, torch's metadata, and what is often kept beside tensors.

What makes values is called with arguments that were checked, so that it makes no more than they have, and
changes nothing that others share.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import datetime as dt
import decimal
import math
import pathlib
import pickle
import sys
import types
import uuid
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint import filesystem as torch_filesystem
from torch.distributed.checkpoint import metadata as torch_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Deeper than anything that torch's planners write, and far from the end of any stack.
_DEEPEST = 100
_LARGEST_KEY = 1000
_NO_ITEMS: tuple[Any, ...] = ()
_SCALARS = {bool, bytes, complex, float, int, str, type(None), torch.device, torch.dtype}
_SCALARS |= {dt.date, dt.datetime, dt.time, dt.timedelta, decimal.Decimal}
_PATHS = {pathlib.PosixPath, pathlib.PurePath, pathlib.PurePosixPath, pathlib.PureWindowsPath}
_FACTORIES = (bool, dict, float, int, list, set, str, tuple)


class UnsafeError(pickle.UnpicklingError):
    """A pickle has something that is not known to be harmless.

    Attributes:
        found: The name of what it is, where it has one.
    """

    def __init__(self, message: str, found: str | None = None) -> None:
        super().__init__(message)
        self.found = found


def items_of(make: Callable[[Any], Any]) -> Callable[..., Any]:
    """Makes a collection of items that are there already, each of which can be hashed."""

    def call(items: Any = (), /) -> Any:
        if type(items) not in {list, tuple}:
            raise UnsafeError(f"a collection made of a {type(items).__name__}")
        for item in items:
            check_key(item)
        return make(items)

    return call


def _bytearray(content: Any = b"", /) -> bytearray:
    if type(content) is not bytes:
        raise UnsafeError(f"a bytearray made of a {type(content).__name__}")
    return bytearray(content)


def _bytes() -> bytes:
    return b""


def _encode(text: str, encoding: str) -> bytes:
    """Makes bytes, which the second protocol of pickle writes as text."""
    if encoding not in {"latin1", "latin-1"}:
        raise UnsafeError(f"text in the encoding {encoding}")
    return codecs.latin_1_encode(text)[0]


def _ordered(*items: Any) -> collections.OrderedDict[Any, Any]:
    if items:
        raise UnsafeError("an OrderedDict made of items")
    return collections.OrderedDict()


def _counter(counts: Any = None, /) -> collections.Counter[Any]:
    if type(counts) not in {dict, type(None)}:
        raise UnsafeError(f"a Counter made of a {type(counts).__name__}")
    return collections.Counter(counts)


def _defaultdict(factory: Any = None, /) -> collections.defaultdict[Any, Any]:
    if not any(factory is known for known in (None, *_FACTORIES)):
        raise UnsafeError(f"a defaultdict of a {type(factory).__name__}")
    return collections.defaultdict(factory)


def _deque(items: Any = (), most: int | None = None, /) -> collections.deque[Any]:
    if type(items) not in {list, tuple}:
        raise UnsafeError(f"a deque made of a {type(items).__name__}")
    return collections.deque(items, most)


def _path(make: Callable[..., Any]) -> Callable[..., Any]:
    def call(*parts: Any) -> Any:
        if not all(type(part) is str for part in parts):
            raise UnsafeError("a path that is not made of text")
        return make(*parts)

    return call


def member_of(owner: type[Enum]) -> Callable[[Any], Enum]:
    """Finds a member of an enumeration by its value."""

    def call(value: Any, /) -> Enum:
        for member in owner.__members__.values():
            if type(member.value) is type(value) and type(value) in _SCALARS and member.value == value:
                return member
        raise UnsafeError(f"{owner.__qualname__} has no member {value!r}"[:200])

    return call


def _member_by_name(owner: Any, name: Any, /) -> Any:
    """Finds a member of an enumeration by its name, as some releases of Python write it."""
    if not (isinstance(owner, type) and issubclass(owner, Enum) and type(name) is str):
        raise UnsafeError("builtins.getattr of something other than an enumeration", "builtins.getattr")
    return owner.__members__[name]


def _array(kind: Any, shape: Any, _: Any, /) -> Any:
    """Makes what numpy fills with the state that follows."""
    numpy = sys.modules["numpy"]
    if kind is not numpy.ndarray or shape != (0,):
        raise UnsafeError(f"an array of the shape {shape}"[:200])
    return numpy.ndarray((0,), "b")


def _numpy_dtype(text: Any, *_: Any) -> Any:
    """Makes a type of its own, because the state that follows would change those that all share."""
    dtype = sys.modules["numpy"].dtype(text, False, True) if type(text) is str else None  # noqa: FBT003
    # Of times numpy needs more than it is told here, and ends the process without that.
    if dtype is None or dtype.kind not in "biufcSUO":
        raise UnsafeError("a type of numpy that is not of numbers, text or objects")
    return dtype


def _numpy_scalar(dtype: Any, data: Any, /) -> Any:
    numpy = sys.modules["numpy"]
    if not isinstance(dtype, numpy.dtype) or dtype.hasobject or type(data) is not bytes:
        raise UnsafeError("a scalar of numpy that is not made of bytes")
    return numpy.frombuffer(data, dtype, 1)[0]


CALLS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "builtins.bytearray": _bytearray,
    "builtins.bytes": _bytes,
    "builtins.complex": complex,
    "builtins.frozenset": items_of(frozenset),
    "builtins.getattr": _member_by_name,
    "builtins.range": range,
    "builtins.set": items_of(set),
    "builtins.slice": slice,
    "collections.Counter": _counter,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _defaultdict,
    "collections.deque": _deque,
    "decimal.Decimal": decimal.Decimal,
    "torch.Size": items_of(torch.Size),
    "torch.device": torch.device,
    "torch.serialization._get_layout": torch.serialization._get_layout,
    "types.SimpleNamespace": types.SimpleNamespace,
}
CALLS |= {
    f"datetime.{one.__name__}": one for one in (dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone)
}
CALLS |= {
    f"numpy.{core}.multiarray.{name}": call
    for core in ("core", "_core")
    for name, call in (("_reconstruct", _array), ("scalar", _numpy_scalar))
}
CALLS["numpy.dtype"] = _numpy_dtype
# Where these classes live depends on the release of Python; a path of another system becomes a pure one.
CALLS |= {
    f"{module}.{name}": _path(
        getattr(pathlib, name.replace("Windows", "PureWindows").replace("PurePure", "Pure"))
    )
    for module in ("pathlib", "pathlib._local", "pathlib._abc")
    for name in ("PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
}
# The classes whose instances are made empty, and get their attributes then.
CLASSES = {
    f"{one.__module__}.{one.__qualname__}": one
    for one in (
        torch_metadata.BytesStorageMetadata,
        torch_metadata.ChunkStorageMetadata,
        torch_metadata.Metadata,
        torch_metadata.MetadataIndex,
        torch_metadata.StorageMeta,
        torch_metadata.TensorProperties,
        torch_metadata.TensorStorageMetadata,
        torch_filesystem._StorageInfo,
        argparse.Namespace,
        uuid.UUID,
    )
}
CLASSES["torch.distributed.checkpoint._fsspec_filesystem._StorageInfo"] = torch_filesystem._StorageInfo
MADE_EMPTY = set(map(id, CLASSES.values()))
PLAIN_STATE = {*CLASSES.values(), collections.OrderedDict, types.SimpleNamespace}
# What may be named, without being called.
VALUES = {f"builtins.{one.__name__}": one for one in _FACTORIES}
TORCH_VALUES = (torch.dtype, torch.layout, torch.memory_format)


def rebuild(function: Any, *rest: Any) -> Any:
    """Makes a tensor of a class of its own, from a tensor."""
    if not isinstance(function, types.FunctionType) or function.__module__ != torch._utils.__name__:
        raise UnsafeError("a tensor that is not made by torch")
    return torch._tensor._rebuild_from_type_v2(function, *rest)


def check_key(key: Any) -> None:
    """Hashing goes as deep as a value, in C and without an end."""
    if type(key) in _SCALARS:
        return
    waiting, seen = [(key, 0)], 0
    while waiting:
        one, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST or seen > _LARGEST_KEY:
            raise UnsafeError("a key that is too large")
        if type(one) in {tuple, torch.Size, frozenset}:
            waiting += [(item, depth + 1) for item in one]
        elif type(one) is torch_metadata.MetadataIndex:
            waiting += [(item, depth + 1) for item in vars(one).values()]
        elif type(one) not in _SCALARS and type(one) not in _PATHS and not isinstance(one, Enum):
            raise UnsafeError(f"a key that is a {type(one).__name__}")


def check_depth(value: Any) -> None:
    """Checks how deep a value is, whatever it refers to more than once.

    Raises:
        UnsafeError: Deeper than anything that is walked through with functions that call themselves.
    """
    level, seen = [value], set[int]()
    for _ in range(_DEEPEST):
        level = [one for one in level if id(one) not in seen]
        seen.update(map(id, level))
        items = chain.from_iterable(map(_contents, level))
        level = [one for one in items if type(one) not in _SCALARS]
        if not level:
            return
    raise UnsafeError(f"values that are more than {_DEEPEST} levels deep")


def _contents(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return chain(value, value.values())
    if isinstance(value, list | tuple | set | frozenset | collections.deque):
        return value if len(value) else _NO_ITEMS
    return vars(value).values() if type(value) in PLAIN_STATE and hasattr(value, "__dict__") else _NO_ITEMS


def set_numpy_state(target: Any, state: Any) -> None:
    """Fills an array, or gives a type its byte order; numpy itself believes whatever it is told."""
    numpy = sys.modules["numpy"]
    if isinstance(target, numpy.dtype):
        _, order, *names, size, alignment, flags = state
        if (
            names != [None, None, None]
            or size not in {-1, target.itemsize}
            or alignment not in {-1, target.alignment}
            or flags not in {0, target.flags}
        ):
            raise UnsafeError("a structured type of numpy")
        target.__setstate__((3, order, None, None, None, size, alignment, target.flags))
    elif type(target) is numpy.ndarray and target.shape == (0,):
        _, shape, dtype, in_order, data = state
        expected = list if dtype == numpy.dtype("O") else bytes
        size = math.prod(shape) * (1 if expected is list else dtype.itemsize)
        if (
            not isinstance(dtype, numpy.dtype)
            or type(data) is not expected
            or len(data) != size
            or min(shape, default=0) < 0
        ):
            raise UnsafeError("an array of numpy that is not as large as its content")
        target.__setstate__((1, shape, dtype, in_order, data))
    else:
        raise UnsafeError(f"attributes of a {type(target).__qualname__}")

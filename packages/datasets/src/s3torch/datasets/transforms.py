"""Functions that make samples and labels: of unread readers, or of the parts of a shard's sample.

The decoders take an unread reader, which ``S3MapDataset`` and ``S3IterableDataset`` give to a transform, or
the ``bytes`` of a part of a sample of ``S3ShardDataset``. All can be pickled, so they work in spawned
workers::

    S3MapDataset.from_prefix(uri, transform=ImageTensor())
    S3ShardDataset.from_prefix(uri, transform=DecodeParts({"jpg": ImageTensor(), "cls": decode_text}))

``PathLabel``, ``RegexLabel`` and ``ClassIndex`` make labels of keys, with numbers that are the same on every
rank, and ``WithLabel`` adds one to a sample.
"""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, TypeVar

import torch

from s3torch.core import S3Reader
from s3torch.core.errors import ConfigurationError
from s3torch.datasets._opening import identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from PIL.Image import Image

__all__ = [
    "ClassIndex",
    "Compose",
    "DecodeParts",
    "ImageTensor",
    "Images",
    "PathLabel",
    "RawTensor",
    "RegexLabel",
    "WithLabel",
    "decode_json",
    "decode_npy",
    "decode_text",
    "identity",
    "read_bytes",
]

T = TypeVar("T")

# Those whose samples are whole bytes, and how many a pixel has.
_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3, "HSV": 3}


def read_bytes(source: S3Reader | bytes) -> bytes:
    """Returns the bytes as they came."""
    if isinstance(source, S3Reader):
        with source:
            return source.read()
    return source


def decode_text(source: S3Reader | bytes) -> str:
    """Decodes UTF-8."""
    return read_bytes(source).decode()


def decode_json(source: S3Reader | bytes) -> Any:
    """Decodes a JSON document."""
    return json.loads(read_bytes(source))


def decode_npy(source: S3Reader | bytes) -> Any:
    """Decodes an array in the ``.npy`` format; one of Python objects, which could run code, is refused."""
    import numpy as np

    return np.load(io.BytesIO(read_bytes(source)), allow_pickle=False)


@dataclass(frozen=True, slots=True)
class Compose:
    """Applies functions one after the other; the first takes what the dataset gives."""

    steps: tuple[Callable[[Any], Any], ...]

    def __init__(self, *steps: Callable[[Any], Any]) -> None:
        object.__setattr__(self, "steps", steps)

    def __call__(self, value: Any) -> Any:
        """Returns what the last one returns."""
        for step in self.steps:
            value = step(value)
        return value


@dataclass(frozen=True, slots=True)
class DecodeParts:
    """Decodes parts of samples of shards, by their suffix without its dot; other parts stay as they are."""

    decoders: Mapping[str, Callable[[Any], Any]]

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Returns another ``dict`` of the sample."""
        decoders = self.decoders
        return {name: decoders[name](part) if name in decoders else part for name, part in sample.items()}


@dataclass(frozen=True, slots=True)
class RawTensor:
    """Makes a tensor of the bytes themselves, without copying them.

    Bytes that do not fit type and shape raise ``ConfigurationError``.

    Attributes:
        dtype: The type of its elements, whose byte order is that of this machine.
        shape: Its shape, in which one length may be -1; ``None`` for one dimension.
        writable: The tensor may be changed in place; this copies bytes that had come before they were asked
            for. Otherwise it shares memory with ``bytes`` and must not be changed; collating, ``.to(device)``
            and other operations that make new tensors are fine.
    """

    dtype: torch.dtype = torch.uint8
    shape: tuple[int, ...] | None = None
    writable: bool = False

    def __call__(self, source: S3Reader | bytes) -> torch.Tensor:
        """Returns the tensor."""
        if not self.writable:
            tensor = _shared(read_bytes(source))
        elif isinstance(source, S3Reader):
            with source:
                buffer = bytearray(source.size)
                source.readinto(buffer)
            tensor = _shared(buffer)
        else:
            tensor = _shared(bytearray(source))
        return self._shaped(tensor)

    def _shaped(self, tensor: torch.Tensor) -> torch.Tensor:
        count = tensor.numel()
        fixed = math.prod(length for length in self.shape or (-1,) if length != -1) * self.dtype.itemsize
        free = self.shape is None or -1 in self.shape
        if (count % fixed if free and fixed else count != fixed) or (free and not fixed):
            raise ConfigurationError(f"{count} bytes do not make {self.dtype} of shape {self.shape}")
        return tensor.view(self.dtype) if self.shape is None else tensor.view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class Images:
    """Decodes images to ``PIL.Image.Image``, in any format that Pillow knows; needs the extra ``images``.

    They are converted to ``mode``, as in ``"RGB"`` or ``"L"``; ``None`` keeps that of the file.
    """

    mode: str | None = "RGB"

    def __call__(self, source: S3Reader | bytes) -> Image:
        """Returns the image, decoded."""
        try:
            from PIL import Image
        except ImportError as exc:
            raise ConfigurationError('images need Pillow; pip install "s3torch-datasets[images]"') from exc
        file: BinaryIO = source if isinstance(source, S3Reader) else io.BytesIO(source)
        with file, Image.open(file) as image:
            # Opening reads the head alone.
            image.load()
            return image.copy() if self.mode in {None, image.mode} else image.convert(self.mode)


@dataclass(frozen=True, slots=True)
class ImageTensor:
    """Decodes images to tensors of ``uint8``: channels, height, width; needs the extra ``images``.

    They are converted to ``mode``, which has a byte for each channel.
    """

    mode: str = "RGB"

    def __post_init__(self) -> None:
        if self.mode not in _CHANNELS:
            raise ConfigurationError(f"mode must be one of {', '.join(_CHANNELS)}, got {self.mode!r}")

    def __call__(self, source: S3Reader | bytes) -> torch.Tensor:
        """Returns the tensor."""
        image = Images(self.mode)(source)
        pixels = _shared(image.tobytes()).view(image.height, image.width, _CHANNELS[self.mode])
        return pixels.permute(2, 0, 1).contiguous()


@dataclass(frozen=True, slots=True)
class PathLabel:
    """Takes a component of the key: by default the folder, as in ``train/cat/1.jpg``.

    ``part`` counts from 0, or from the end for negative ones; -1 is the name of the file. A key without such
    a component raises ``ConfigurationError``.
    """

    part: int = -2

    def __call__(self, key: str) -> str:
        """Returns the label of a key."""
        parts = key.split("/")
        if not -len(parts) <= self.part < len(parts):
            raise ConfigurationError(f"the key {key!r} has no component {self.part}")
        return parts[self.part]


@dataclass(frozen=True, slots=True)
class RegexLabel:
    """Takes what a group of a regular expression, as in ``"class_([0-9]+)"``, matches anywhere in the key.

    ``group`` is its number or its name. A key that does not match raises ``ConfigurationError``.
    """

    pattern: str
    group: int | str = 1

    def __post_init__(self) -> None:
        try:
            compiled = re.compile(self.pattern)
        except re.error as exc:
            raise ConfigurationError(f"{self.pattern!r} is not a regular expression: {exc}") from exc
        known = range(compiled.groups + 1) if isinstance(self.group, int) else compiled.groupindex
        if self.group not in known:
            raise ConfigurationError(f"{self.pattern!r} has no group {self.group!r}")

    def __call__(self, key: str) -> str:
        """Returns the label of a key."""
        found = re.search(self.pattern, key)
        label: str | None = None if found is None else found[self.group]
        if label is None:
            raise ConfigurationError(f"the key {key!r} does not match {self.pattern!r}")
        return label


@dataclass(frozen=True, slots=True)
class ClassIndex:
    """Numbers for labels, in the order of the sorted labels, so that ranks with the same listing agree.

    It is called with a label and raises ``ConfigurationError`` for one that it does not have.

    Attributes:
        classes: The labels, sorted; the place of each is its number.
        class_to_idx: The number of each label.
    """

    classes: tuple[str, ...]
    class_to_idx: Mapping[str, int] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(sorted(set(self.classes))))
        object.__setattr__(self, "class_to_idx", {label: at for at, label in enumerate(self.classes)})

    @classmethod
    def from_keys(cls, keys: Iterable[str], label: Callable[[str], str]) -> ClassIndex:
        """Collects the labels of some keys."""
        return cls(tuple({label(key) for key in keys}))

    def __len__(self) -> int:
        return len(self.classes)

    def __call__(self, label: str) -> int:
        """Returns the number of a label."""
        number = self.class_to_idx.get(label)
        if number is None:
            raise ConfigurationError(f"unknown label {label!r}; there are {len(self.classes)}")
        return number


@dataclass(frozen=True, slots=True)
class WithLabel(Generic[T]):
    """A transform whose samples are pairs: what ``transform`` returns, and the label of the key.

    With an ``index``, labels are numbers.
    """

    transform: Callable[[S3Reader], T]
    label: Callable[[str], str] = PathLabel()
    index: ClassIndex | None = None

    def __call__(self, reader: S3Reader) -> tuple[T, str | int]:
        """Returns value and label."""
        label = self.label(reader.key)
        return self.transform(reader), label if self.index is None else self.index(label)


def _shared(data: bytes | bytearray) -> torch.Tensor:
    """Makes a tensor that shares memory with the bytes."""
    # Python has only one object for each of the shortest ones, which nobody may come to change.
    if len(data) < 2:
        return torch.tensor(list(data), dtype=torch.uint8)
    _accept_read_only()
    return torch.frombuffer(data, dtype=torch.uint8)


@cache
def _accept_read_only() -> None:
    """Takes the warning of torch about memory that is not writable, which comes once in a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(b"\0\0", dtype=torch.uint8)

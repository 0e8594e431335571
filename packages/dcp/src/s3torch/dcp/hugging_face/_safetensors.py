"""The layout of Hugging Face: safetensors files, and an index that tells which file has which tensor.

A file is the length of its header in 8 bytes, the header as JSON, and the bytes of the tensors. It is read
and written here without the safetensors library, whose functions hold whole files in memory.
https://github.com/huggingface/safetensors describes the format.
"""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint._hf_utils import _metadata_fn

from s3torch.core import S3Client, parse_s3_uri
from s3torch.core.errors import ConfigurationError, RangeNotSatisfiableError
from s3torch.core.ranges import KIB, MIB
from s3torch.core.transfer import compute_crc
from s3torch.dcp._metadata import MALFORMED, CheckpointError, FileFacts, sizes_of
from s3torch.dcp._tensors import TensorLayout, storage_entry
from s3torch.dcp.loading._checking import HEAD_ALGORITHM, Head
from s3torch.dcp.saving._values import HostValues

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from torch.distributed.checkpoint.filesystem import _StorageInfo

    from s3torch.core import PutOptions
    from s3torch.core.transfer import ObjectRange, ObjectSource

LENGTH_SIZE = 8
_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8
# What the reference implementation takes.
_LONGEST_HEADER = 100_000_000
_LONGEST_TEXT = 300
_METADATA = "__metadata__"
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Enough for the header of a file with about 1,000 tensors.
_FIRST = 128 * KIB
_STEP = 4 * MIB
INDEX_NAME = _metadata_fn
# What we add to the metadata of an index; others have entries of their own there, too.
_FILES_NOTE = "s3torch_files"
_PIECES_NOTE = "s3torch_pieces"
# As much as torch's own storage writer copies ahead from an accelerator.
_COPIED_AHEAD = 10_000_000


@dataclass(frozen=True, slots=True)
class FileTensor(TensorLayout):
    """A tensor in a file."""

    name: str

    def entry(self, file: str) -> _StorageInfo:
        """Returns what the metadata of a checkpoint says of it."""
        layout = TensorLayout(0, self.dtype, self.sizes)
        return storage_entry(file, self.start, self.stop - self.start, layout)


@dataclass(frozen=True, slots=True)
class FileHeader:
    """What is in a file, and what is needed to verify that."""

    tensors: tuple[FileTensor, ...]
    metadata: Mapping[str, str]
    head: Head


def make_header(
    tensors: Iterable[tuple[str, torch.dtype, Iterable[int]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, list[FileTensor]]:
    """Returns the beginning of a file, up to the bytes of the tensors, and where each of those belongs.

    Raises:
        CheckpointError: The format has no such type, or two tensors have one name.
    """
    content: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    placed: list[FileTensor] = []
    position = 0
    for name, dtype, sizes in tensors:
        if dtype not in _NAMES:
            raise CheckpointError(f"the safetensors format cannot hold {name}, a tensor of {dtype}")
        if name in content or name == _METADATA:
            raise CheckpointError(f"a safetensors file cannot hold two tensors with the name {name}")
        tensor = FileTensor(position, dtype, tuple(sizes), name)
        content[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(tensor.sizes),
            "data_offsets": [position, tensor.stop],
        }
        placed.append(tensor)
        position = tensor.stop
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    begin = LENGTH_SIZE + len(text)
    moved = [replace(one, start=begin + one.start) for one in placed]
    return _LENGTH.pack(len(text)) + text, moved


def header_length(head: bytes, *, where: str) -> int:
    """Returns how many bytes a file has before its tensors.

    Raises:
        CheckpointError: It is no safetensors file.
    """
    length = _LENGTH.unpack_from(head)[0] if len(head) >= LENGTH_SIZE else 0
    if not 2 <= length <= _LONGEST_HEADER:
        raise CheckpointError(f"{where} is not a safetensors file: its header would have {length} bytes")
    return int(LENGTH_SIZE + length)


def parse_header(head: bytes, *, where: str, size: int | None = None) -> FileHeader:
    """Reads the header of a file.

    Raises:
        CheckpointError: It is damaged, or has a tensor of a type that torch does not have.
    """
    begin = header_length(head, where=where)
    try:
        content = parse_json(head[LENGTH_SIZE:begin])
        metadata = {str(name): str(text) for name, text in content.pop(_METADATA, {}).items()}
        tensors = [_tensor(name, entry, begin) for name, entry in content.items()]
    except MALFORMED as exc:
        raise CheckpointError(f"the header of {where} is damaged: {short(exc)}") from exc
    except CheckpointError as exc:
        raise CheckpointError(f"{where} cannot be read: {exc}") from exc
    tensors.sort(key=lambda one: (one.start, one.stop))
    _check_places(tensors, begin, size, where)
    end = tensors[-1].stop if tensors else begin
    crc = compute_crc(HEAD_ALGORITHM, memoryview(head)[:begin])
    return FileHeader(tuple(tensors), metadata, Head(begin, end, crc))


def _check_places(tensors: Sequence[FileTensor], begin: int, size: int | None, where: str) -> None:
    """The bytes of the tensors follow one after the other, without gaps, up to the end of the file."""
    position = begin
    for tensor in tensors:
        if tensor.start != position:
            raise CheckpointError(
                f"the header of {where} is damaged: {tensor.name} is not where it should be"
            )
        position = tensor.stop
    if size is not None and size != position:
        raise CheckpointError(f"{where} is damaged: it has {size} bytes, its header promises {position}")


def _tensor(name: str, entry: Mapping[str, Any], begin: int) -> FileTensor:
    start, stop = sizes_of(entry["data_offsets"])
    if entry["dtype"] not in _DTYPES:
        raise CheckpointError(
            f"{name} is of the type {entry['dtype']}, which this release of torch does not have"
        )
    tensor = FileTensor(begin + start, _DTYPES[entry["dtype"]], sizes_of(entry["shape"]), name)
    if tensor.stop != begin + stop:
        raise ValueError(f"{name} is a tensor of {tensor.stop - tensor.start} bytes in {stop - start} bytes")
    return tensor


def parse_json(text: str | bytes) -> Any:
    """Reads JSON in which no name may be there twice."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def short(error: BaseException) -> str:
    """Returns what an error says, which may be as long as a file."""
    return repr(error)[:_LONGEST_TEXT]


def read_headers(files: Mapping[str, ObjectSource]) -> dict[str, FileHeader]:
    """Reads the headers, with one request for each that is not very long.

    Raises:
        NotFoundError: A file is missing.
        CheckpointError: A file is not in the format.
    """
    heads = _read({name: (source, 0, _FIRST) for name, source in files.items()})
    lengths = {name: header_length(head, where=name) for name, head in heads.items()}
    while longer := {
        name: (files[name], len(head), min(lengths[name], len(head) + _STEP))
        for name, head in heads.items()
        if len(head) < min(lengths[name], files[name].known_size or 0)
    }:
        heads |= {name: heads[name] + more for name, more in _read(longer).items()}
    return {name: parse_header(head, where=name, size=files[name].known_size) for name, head in heads.items()}


def _read(wanted: Mapping[str, tuple[ObjectSource, int, int]]) -> dict[str, bytes]:
    ranges = {name: source.start(start, stop) for name, (source, start, stop) in wanted.items()}
    try:
        return {name: _bytes_of(pending) for name, pending in ranges.items()}
    finally:
        for pending in ranges.values():
            pending.cancel()


def _bytes_of(pending: ObjectRange) -> bytes:
    try:
        return bytes(pending.wait())
    except RangeNotSatisfiableError:
        # The object is empty.
        return b""


def save_file(
    tensors: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    options: PutOptions | None = None,
    client: S3Client | None = None,
) -> None:
    """Saves tensors as one safetensors file, as ``safetensors.torch.save_file`` does.

    The tensors are sent from their memory, part by part; the file appears when it is complete.

    Args:
        tensors: The tensors by name, on any device. Those that share memory are stored once each.
        path: The URI of the file.
        metadata: Texts that are stored with them.
        options: How the object is stored.
        client: Serves the requests; ``None`` makes one from the environment.

    Raises:
        CheckpointError: A value is no tensor, or of a type that the format does not have.
    """
    bucket, key = parse_s3_uri(path)
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            kind = type(tensor).__name__
            raise CheckpointError(f"{name!r} is a {kind}; a safetensors file holds only tensors")
    # The widest elements first, so that each tensor is aligned.
    names = sorted(tensors, key=lambda name: -tensors[name].itemsize)
    described = ((name, tensors[name].dtype, tensors[name].shape) for name in names)
    header, _ = make_header(described, metadata)
    size = len(header) + sum(tensor.nbytes for tensor in tensors.values())
    with (client or S3Client()).put_object(bucket, key, options=options, expected_size=size) as writer:
        writer.write(header)
        for value in HostValues(names, tensors.__getitem__, ahead=_COPIED_AHEAD):
            value.send_elements(writer)


@dataclass(frozen=True, slots=True)
class Index:
    """What an index tells.

    Attributes:
        weight_map: The name of the file of each tensor.
        facts: Sizes and checksums of the files by their names, where our writer has noted them.
        checksums: What it has noted of the pieces of the tensors, by their names.
    """

    weight_map: Mapping[str, str]
    facts: Mapping[str, FileFacts] = field(default_factory=dict)
    checksums: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def files(self) -> set[str]:
        """The names of all files."""
        return set(self.weight_map.values())


def file_count(numbers: Mapping[str, int] | None) -> int:
    """Returns how many files there are, from the number of the file for each tensor; ``None`` for one.

    Raises:
        ConfigurationError: A number is out of range. It is also a ``ValueError``.
    """
    found = set((numbers or {}).values())
    for number in found:
        if not isinstance(number, int) or number < 1:
            raise ConfigurationError(f"the numbers of files begin with 1, got {number!r}")
    return max(found, default=1)


def make_index(index: Index, *, total_size: int) -> bytes:
    """Returns the bytes of an index."""
    metadata: dict[str, Any] = {"total_size": total_size}
    if index.facts:
        metadata[_FILES_NOTE] = {name: facts.note() for name, facts in sorted(index.facts.items())}
    if index.checksums:
        notes = sorted(index.checksums.items())
        metadata[_PIECES_NOTE] = {name: base64.b64encode(note).decode() for name, note in notes}
    content = {"metadata": metadata, "weight_map": dict(sorted(index.weight_map.items()))}
    return json.dumps(content, indent=2).encode()


def parse_index(body: bytes, *, uri: str) -> Index:
    """Reads an index.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        content = parse_json(body)
        weight_map = dict(content["weight_map"])
        metadata = content.get("metadata") or {}
        facts = {name: FileFacts.of(entry) for name, entry in (metadata.get(_FILES_NOTE) or {}).items()}
        notes = (metadata.get(_PIECES_NOTE) or {}).items()
        pieces = {name: base64.b64decode(note, validate=True) for name, note in notes}
        if not set(map(type, weight_map.values())) <= {str}:
            raise TypeError("the name of a file is not a string")
    except MALFORMED as exc:
        raise CheckpointError(f"{uri} is damaged: {short(exc)}") from exc
    return Index(weight_map, facts, pieces)

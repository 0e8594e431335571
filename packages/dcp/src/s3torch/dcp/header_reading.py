"""Reads the headers of many safetensors files at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.core.errors import RangeNotSatisfiableError
from s3torch.core.ranges import KIB, MIB
from s3torch.dcp.tensor_files import FileHeader, header_length, parse_header

if TYPE_CHECKING:
    from collections.abc import Mapping

    from s3torch.core.transfer.source import ObjectRange, ObjectSource

__all__ = ["read_headers"]

# Enough for the header of a file with about 1,000 tensors.
_FIRST = 128 * KIB
_STEP = 4 * MIB


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

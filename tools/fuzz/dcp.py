"""Looks for bytes with which reading a checkpoint fails in another way than with our own error.

It fuzzes the metadata of checkpoints, objects beside tensors, the heads of archives, safetensors headers and
indexes, and is run by hand, for hours::

    pip install atheris
    python tools/fuzz/dcp.py -max_total_time=3600 CORPUS

The first byte chooses what the rest is read as. What was found is written to a file by atheris; a run that
ends without one has found nothing. It also fails when a pickle has changed a class or a type of numpy.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["s3torch.dcp"]):
    import s3torch.dcp._metadata as metadata
    import s3torch.dcp._tensors as tensors
    import s3torch.dcp._unpickler as unpickler
    import s3torch.dcp.hugging_face._reader as reader
    import s3torch.dcp.hugging_face._safetensors as safetensors

import numpy as np
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

CLASSES = (
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
    ChunkStorageMetadata,
    _StorageInfo,
)


def read_metadata(body: bytes) -> None:
    """Reads metadata as a reader does."""
    found = metadata.decode_metadata(body, uri="fuzz")
    metadata.file_facts(found)
    for info in (found.storage_data or {}).values():
        tensors.noted_layout(getattr(info, tensors.NOTE, None), info.length)


def read_object(body: bytes) -> None:
    """Reads the pickle of an object."""
    try:
        unpickler.SafeUnpickler(io.BytesIO(body), tensors=True).load()
    except Exception as exc:
        # As the storage reader does.
        raise metadata.CheckpointError("damaged") from exc


def read_archive(body: bytes) -> None:
    """Finds the tensor in an archive."""
    tensors.parse_archive(memoryview(body), len(body))


def read_header(body: bytes) -> None:
    """Reads the header of a safetensors file, and what it notes of the parts of tensors."""
    head = safetensors.parse_header(body, where="fuzz", size=len(body))
    reader.metadata_of({"file": head}, None, where="fuzz")


def read_index(body: bytes) -> None:
    """Reads an index."""
    safetensors.parse_index(body, uri="fuzz")


READERS = (read_metadata, read_object, read_archive, read_header, read_index)


def shared_state() -> list[object]:
    """Returns what a pickle could change for everybody."""
    values: list[object] = [dict(vars(kind)) for kind in CLASSES]
    values += [(one.name, one.value) for one in _MEM_FORMAT_ENCODING]
    return [*values, np.dtype("f4").str, np.dtype("f4").flags, np.arange(2).tobytes()]


def seeds() -> list[bytes]:
    """Returns an honest input of each kind."""
    chunk = ChunkStorageMetadata(torch.Size([0]), torch.Size([4]))
    tensor = TensorStorageMetadata(TensorProperties(), torch.Size([4]), [chunk])
    place = MetadataIndex("t", torch.Size([0]), 0)
    entry = tensors.storage_entry("__0_0.distcp", 0, 900, tensors.TensorLayout(64, torch.float32, (4,)))
    body = Metadata({"t": tensor}, planner_data={"t": ("t",)}, storage_data={place: entry})
    archive = io.BytesIO()
    torch.save(torch.ones(4), archive)
    header, _ = safetensors.make_header(
        [("t", torch.float32, (4,))],
        {"DCP_SHARDING_INFO": json.dumps({"t": {"saved_offsets": [0], "global_shape": [4]}})},
    )
    index = safetensors.Index(
        {"t": "a.safetensors"}, {"a.safetensors": metadata.FileFacts(3, ("CRC32", "x"))}
    )
    values = [np.arange(3), np.float32(1), {"a": [1.5, None, b"x"]}, torch.Size([1]), _MEM_FORMAT_ENCODING(0)]
    return [
        *(b"\0" + pickle.dumps(body, protocol) for protocol in (2, 4)),
        *(b"\1" + pickle.dumps(value, protocol) for value in values for protocol in (2, 4)),
        b"\2" + archive.getvalue(),
        b"\3" + header + bytes(16),
        b"\4" + safetensors.make_index(index, total_size=16),
    ]


SEEDS = seeds()
# Pickling, too, notes something at classes.
BEFORE = shared_state()


def test_one_input(data: bytes) -> None:
    """Reads one input; called by atheris."""
    if not data:
        return
    with suppress(metadata.CheckpointError):
        READERS[data[0] % len(READERS)](data[1:])
    if shared_state() != BEFORE:
        raise AssertionError("what everybody uses was changed")


def main() -> None:
    """Writes the seeds into the first folder that is named, and runs."""
    named = [Path(one) for one in sys.argv[1:] if not one.startswith("-")]
    for folder in [one for one in named[:1] if not one.is_file()]:
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(SEEDS):
            (folder / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

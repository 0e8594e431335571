"""Flips each bit of each file of a checkpoint, one after the other, and loads it: it is right, or it raises.

``python tools/flip_bits.py`` takes some minutes. ``--step 8`` flips only each eighth bit. With ``--wire`` the
bit is flipped in the answer to the first GET of the file, and is right in those that follow. The checkpoint
is in the memory of this process, and has tensors, views and objects in two files.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.errors import S3Error
from s3torch.core.transports.memory import MemoryStore
from s3torch.dcp import S3StorageReader, S3StorageWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDPOINT = "http://flipped.invalid"
CONFIG = S3ClientConfig(transport="memory", endpoint=ENDPOINT)
PATH = "s3://bucket/checkpoint"


def state(*, filled: bool) -> dict[str, object]:
    """Returns what is saved, or the same with nothing in it."""
    if not filled:
        return {
            "a": torch.zeros(30),
            "b": torch.zeros(5, dtype=torch.int16),
            "t": torch.zeros(4, 3),
            "o": None,
        }
    turned = torch.arange(12.0).view(3, 4).t()
    return {"a": torch.arange(30.0), "b": torch.arange(5).short(), "t": turned, "o": {"step": 3}}


def is_right() -> bool | None:
    """Whether what is loaded is what was saved; ``None`` where the load raises."""
    loaded, expected = state(filled=False), state(filled=True)
    try:
        dcp.load(loaded, storage_reader=S3StorageReader("us-east-1", PATH, CONFIG))
    except (CheckpointException, S3Error):
        return None
    same = (torch.equal(loaded[name], expected[name]) for name in "abt")  # type: ignore[arg-type] # Tensors.
    return all(same) and loaded["o"] == expected["o"]


@contextmanager
def damaged(store: MemoryStore, key: str, bit: int, *, on_the_wire: bool) -> Iterator[None]:
    """Flips a bit of a file, in the store, or only in the answer to the first GET."""
    found = store.get("bucket", key)
    body = bytearray(found.data)
    body[bit // 8] ^= 1 << bit % 8
    if not on_the_wire:
        store.put("bucket", key, bytes(body))
        yield
        store.put("bucket", key, found.data)
        return
    answers, get = [replace(found, data=bytes(body))], store.get

    def first_damaged(bucket: str, name: str, *args: Any, **options: Any) -> Any:
        is_asked = name == key and options.get("operation") == "GetObject"
        return answers.pop() if is_asked and answers else get(bucket, name, *args, **options)

    # What a network would do.
    with patch.object(store, "get", first_damaged):
        yield


def main() -> int:
    """Flips the bits, and returns how many were loaded unseen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=int, default=1, help="flip only each bit of so many")
    parser.add_argument("--wire", action="store_true", help="flip bits on their way, not in the store")
    arguments = parser.parse_args()
    step = arguments.step
    warnings.simplefilter("ignore")
    logging.disable()
    store = MemoryStore.at(ENDPOINT)
    store.create_bucket("bucket")
    dcp.save(state(filled=True), storage_writer=S3StorageWriter("us-east-1", PATH, CONFIG, thread_count=2))
    pages = S3Client("us-east-1", s3client_config=CONFIG).list_objects("bucket", "checkpoint/")
    wrong = 0
    for key in [info.key for page in pages for info in page.object_info]:
        body, raised = store.get("bucket", key).data, 0
        bits = range(0, 8 * len(body), step)
        for bit in bits:
            with damaged(store, key, bit, on_the_wire=arguments.wire):
                found = is_right()
            raised += found is None
            if found is False:
                wrong += 1
                print(f"{key}: bit {bit} was loaded unseen")
        print(f"{key}: {len(bits)} bits flipped, {raised} loads raised, the others were right")
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(), 1))

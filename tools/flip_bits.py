"""Flips each bit of each file of a checkpoint, one after the other, and loads it: it is right, or it raises.

With ``--wire`` the bit is flipped in the answer to a GET, each bit of each answer in turn, and is right when
it is asked for again. ``--step 8`` flips only each eighth bit, ``--after 4`` begins with the fifth: so a run
can be cut into shorter ones. All 48,000 bits of the files take two and a half minutes of one processor, and
so do the 43,000 of the answers. The checkpoint is in the memory of this process, and has tensors, views and
objects in two files.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from s3torch.core import S3ClientConfig
from s3torch.core.errors import S3Error
from s3torch.core.transports.memory import MemoryStore
from s3torch.core.transports.memory._service import Service
from s3torch.dcp import S3StorageReader, S3StorageWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3torch.core.ranges import ByteRange
    from s3torch.core.requests import Answer, Request

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
            "o": {"step": None},
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
def stored(store: MemoryStore, key: str, bit: int) -> Iterator[None]:
    """Flips a bit of a file in the store."""
    found = store.get("bucket", key)
    store.put("bucket", key, _flipped(found.data, bit))
    yield
    store.put("bucket", key, found.data)


@contextmanager
def answered(change: Callable[[Request[Any], Answer], Answer]) -> Iterator[None]:
    """Does to the answers to GETs what a network would do."""
    real = Service.answer

    def changed(service: Service, request: Request[Any], body: bytes) -> Answer:
        answer = real(service, request, body)
        return change(request, answer) if request.operation == "GetObject" else answer

    with patch.object(Service, "answer", changed):
        yield


def answers() -> dict[tuple[str, ByteRange | None], int]:
    """Returns which GETs a load sends, and how many bytes their answers have."""
    found: dict[tuple[str, ByteRange | None], int] = {}

    def count(request: Request[Any], answer: Answer) -> Answer:
        found[request.key, request.byte_range] = answer.length
        return answer

    with answered(count):
        if not is_right():
            raise SystemExit("the checkpoint cannot be loaded as it is")
    return dict(sorted(found.items(), key=str))


@contextmanager
def sent(place: tuple[str, ByteRange | None], bit: int) -> Iterator[None]:
    """Flips a bit in the first answer to a GET."""
    left = [place]

    def flip(request: Request[Any], answer: Answer) -> Answer:
        if (request.key, request.byte_range) not in left:
            return answer
        left.clear()
        return answer._replace(body=_flipped(answer.body or b"", bit))

    with answered(flip):
        yield
    if left:
        raise SystemExit(f"nobody asked for {place}")


def _flipped(data: bytes, bit: int) -> bytes:
    body = bytearray(data)
    body[bit // 8] ^= 1 << bit % 8
    return bytes(body)


def main() -> int:
    """Flips the bits, and returns how many were loaded unseen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--step", type=int, default=1, help="flip only each bit of so many")
    parser.add_argument("--after", type=int, default=0, help="leave so many out at the beginning")
    parser.add_argument("--wire", action="store_true", help="flip bits on their way, not in the store")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    store = MemoryStore.at(ENDPOINT)
    store.create_bucket("bucket")
    dcp.save(state(filled=True), storage_writer=S3StorageWriter("us-east-1", PATH, CONFIG, thread_count=2))
    asked = answers()
    sizes = {key: len(store.get("bucket", key).data) for key, _ in asked}
    places = [
        (f"{key}, {byte_range}", size, partial(sent, (key, byte_range)))
        for (key, byte_range), size in asked.items()
    ]
    if not arguments.wire:
        places = [(key, size, partial(stored, store, key)) for key, size in sizes.items()]
    wrong = 0
    for name, size, damaged in places:
        found = Counter[bool | None]()
        for bit in range(arguments.after, 8 * size, arguments.step):
            with damaged(bit):
                outcome = is_right()
            found[outcome] += 1
            if outcome is False:
                print(f"{name}: bit {bit} was loaded unseen")
        wrong += found[False]
        print(
            f"{name}: {found.total()} bits flipped, {found[None]} loads raised, {found[True]} were right",
            flush=True,
        )
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(), 1))

"""How fast are objects read, written and listed?"""

from __future__ import annotations

import os
import random
from typing import Any

from libraries import cases
from measure import MIB, Question, main
from read_object import KEY, SIZE, prepare
from small_objects import COUNT, PREFIX
from small_objects import SIZE as SMALL

STEP = 16 * MIB
RANGES = 200
RANGE = 64 * 1024
LISTED = int(os.environ.get("BENCH_KEYS", "100000"))
MANY = "many/"
# It is touched before it is measured: what is asked is what the library costs.
_target = bytearray()


def readinto(library: Any) -> None:
    """Reads the large object into memory that was touched before."""
    if not _target:
        _target.extend(b"\1" * SIZE)
    library.readinto(KEY, _target)


def tail_then_forward(library: Any) -> None:
    """Reads as ``torch.load`` does: the end first, then all in order."""
    with library.open(KEY, sparse=False) as file:
        file.seek(-MIB, os.SEEK_END)
        file.read(MIB)
        file.seek(0)
        while file.read(STEP):
            pass


def sparse(library: Any) -> None:
    """Reads short ranges here and there."""
    chance = random.Random(0)  # noqa: S311 - Where to read.
    with library.open(KEY, sparse=True) as file:
        for _ in range(RANGES):
            file.seek(chance.randrange(SIZE - RANGE))
            file.read(RANGE)


def write(library: Any) -> None:
    """Writes an object in pieces, as a checkpoint comes."""
    library.write("written", [memoryview(os.urandom(STEP))] * (SIZE // STEP))


def small(library: Any) -> None:
    """Lists and reads the small objects, one after the other."""
    _expect(sum(1 for _ in library.each(PREFIX)), COUNT)


def listing(library: Any) -> None:
    """Lists many keys."""
    _expect(sum(1 for _ in library.keys(MANY)), LISTED)


def _expect(found: int, wanted: int) -> None:
    if found != wanted:
        raise SystemExit(f"got {found}, expected {wanted}")


_MIB = SIZE // MIB
_LARGE: dict[str, Any] = {
    "units": SIZE / 1e9,
    "unit": "GB",
    "size": SIZE,
    "prepare": prepare,
    "only_gets": True,
}
QUESTIONS = (
    Question(
        f"read() of {_MIB} MiB", cases("read", lambda library: library.read(KEY)), work="read", **_LARGE
    ),
    Question(f"readinto() of {_MIB} MiB", cases("readinto", readinto), work="readinto", **_LARGE),
    Question(
        f"the end of {_MIB} MiB first, then all in order",
        cases("open", tail_then_forward),
        work="tail, then forward",
        **_LARGE,
    ),
    Question(
        f"{RANGES} ranges of {RANGE // 1024} KiB of {_MIB} MiB, by seek and read",
        cases("open", sparse),
        work="sparse ranges",
        **{**_LARGE, "units": RANGES, "unit": "ranges", "size": RANGES * RANGE},
    ),
    Question(
        f"write() of {_MIB} MiB in pieces of 16 MiB",
        cases("write", write),
        work="write",
        **{**_LARGE, "prepare": lambda _: None, "only_gets": False},
    ),
    Question(
        f"{COUNT} objects of 100 KiB, listed and read one at a time",
        cases("each", small),
        work="small",
        units=COUNT,
        unit="objects",
        size=COUNT * SMALL,
        objects=((PREFIX, COUNT, SMALL),),
    ),
    Question(
        f"a listing of {LISTED:,} keys",
        cases("keys", listing),
        work="listing",
        units=LISTED,
        unit="keys",
        objects=((MANY, LISTED, 0),),
        on=("memory",),
    ),
)

if __name__ == "__main__":
    main(*QUESTIONS)

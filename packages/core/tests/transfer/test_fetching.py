"""Which requests fetch pieces that are known beforehand, and that all bytes get where they are wanted."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core import TruncatedError
from s3torch.core._memory import MemoryBudget
from s3torch.core.ranges import plan_parts
from s3torch.core.transfer import fetch

DATA = bytes(n * 7 % 251 for n in range(5000))


@dataclass(eq=False)
class Wanted:
    start: int
    stop: int
    held: int = 0
    data: bytearray = field(init=False)

    def __post_init__(self):
        self.data = bytearray(self.stop - self.start)

    def open(self):
        return memoryview(self.data)


class File:
    """Answers at once."""

    bucket, key, part_size = "bucket", "key", 100

    def __init__(self, limit=10**9):
        self.asked = []
        self.shared = MemoryBudget(limit)

    def budget(self):
        return self.shared

    def start(self, start, stop, into):
        self.asked.append((start, stop))
        found = DATA[start:stop]
        into[: len(found)] = found

        class Done:
            def wait(self):
                return into[: len(found)]

            def cancel(self):
                pass

            def add_done_callback(self, fn):
                fn()

        return Done()


@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 900)), max_size=12),
    st.sampled_from([None, 0, 50, float("inf")]),
    st.sampled_from([0, 150, 10**9]),
)
def test_every_piece_gets_its_bytes(places, gap, limit):
    pieces = [Wanted(start, start + size) for start, size in places]
    file = File(limit)
    parts = plan_parts(pieces, part_size=100, max_gap=gap)
    with closing(fetch([(file, parts)])) as arrived:
        assert sorted(map(id, arrived)) == sorted(map(id, pieces))
    for piece in pieces:
        assert piece.data == DATA[piece.start : piece.stop]
    assert all(stop - start <= 100 for start, stop in file.asked)
    ends = [0, *(stop for _, stop in file.asked)]
    assert all(start >= end for (start, _), end in zip(file.asked, ends, strict=False)), "fetched twice"
    assert file.shared.used == 0


@pytest.mark.parametrize(
    ("places", "gap", "expected"),
    [
        ([(0, 10), (20, 30)], 10, [(0, 30)]),
        ([(0, 10), (20, 30)], 9, [(0, 10), (20, 30)]),
        ([(0, 250)], 0, [(0, 100), (100, 200), (200, 250)]),
        # What is left of the first goes with the second.
        ([(0, 210), (215, 225)], 10, [(0, 100), (100, 200), (200, 225)]),
        # A gap before a large piece is not fetched.
        ([(0, 100), (110, 210)], 10, [(0, 100), (110, 210)]),
        ([(0, 10), (0, 10), (5, 8)], 0, [(0, 10)]),
    ],
)
def test_requests(places, gap, expected):
    parts = plan_parts([Wanted(*place) for place in places], part_size=100, max_gap=gap)
    assert [(part.start, part.stop) for part in parts] == expected


def test_a_file_that_ends_too_early():
    parts = plan_parts([Wanted(4950, 5050)], part_size=100, max_gap=None)
    with closing(fetch([(File(), parts)])) as arrived, pytest.raises(TruncatedError, match="4950 to 5050"):
        list(arrived)


def test_what_has_failed_is_told():
    parts = plan_parts([Wanted(0, 10), Wanted(4950, 5050)], part_size=100, max_gap=None)
    file = File()
    with closing(fetch([(file, parts)])) as arrived:
        with pytest.raises(TruncatedError):
            list(arrived)
        assert arrived.failed == (file, parts[1])


def test_memory_that_is_kept_counts_until_it_is_dropped(monkeypatch):
    monkeypatch.setattr("s3torch.core.transfer._window.FETCH_IN_FLIGHT", 250)
    parts = plan_parts(
        [Wanted(at, at + 100, held=100) for at in range(0, 1000, 100)], part_size=100, max_gap=0
    )
    file = File()
    with closing(fetch([(file, parts)])) as arrived:
        arrived.start_more()
        assert len(file.asked) == 2
        kept = [(next(arrived), arrived.keep())[1] for _ in range(2)]
        assert kept == [100, 100]
        # All that may be held is kept, so there is one in flight at a time.
        next(arrived)
        arrived.start_more()
        assert len(file.asked) == 4
        for size in kept:
            arrived.drop(size)
        next(arrived)
        assert len(file.asked) == 5
        assert len(list(arrived)) == 6

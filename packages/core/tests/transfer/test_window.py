"""What one caller has on its way: never more than fits, and always the one that it waits for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core._memory import MemoryBudget
from s3torch.core.ranges import split_range
from s3torch.core.transfer import InOrder, RangeSource, Wanted, receive
from s3torch.core.transfer._window import Window

DATA = bytes(range(200))
PART = 5 * 2**20


class Pending:
    def __init__(self, source, start, stop, into):
        self.source, self.range, self.into = source, (start, stop), into
        source.flying.append(self.range)
        source.most = max(source.most, sum(b - a for a, b in source.flying))

    def wait(self):
        # It is on its way until it has arrived: an interrupted wait leaves it there.
        if self.range[0] not in self.source.failing:
            self.source.flying.remove(self.range)
        if self.range[0] in self.source.failing:
            raise ConnectionError(self.range)
        data = memoryview(DATA)[slice(*self.range)]
        if self.into is not None:
            self.into[:] = data
        return data

    def cancel(self):
        self.source.flying.remove(self.range)
        self.source.cancelled.append(self.range)


class Source(RangeSource):
    bucket, key, part_size, known_size = "bucket", "key", 10, len(DATA)

    def __init__(self, limit=10**9, failing=()):
        self.shared = MemoryBudget(limit)
        self.failing = failing
        self.flying, self.cancelled, self.most = [], [], 0

    def budget(self):
        return self.shared

    def start(self, start, stop, into=None):
        return Pending(self, start, stop, into)


@pytest.mark.promise(3)
@given(
    start=st.integers(0, 199),
    size=st.integers(1, 200),
    limit=st.integers(0, 300),
    others=st.integers(0, 100),
)
def test_all_bytes_arrive_within_the_budget(start, size, limit, others):
    source = Source(limit)
    held = source.shared.reserve(others)
    stop = min(start + size, 200)
    found = bytearray(stop - start)
    view = memoryview(found)
    parts = split_range(start, stop, source.part_size)
    receive(
        source, (Wanted(part.start, part.stop, view[part.start - start :][: len(part)]) for part in parts)
    )
    assert found == DATA[start:stop]
    assert source.most <= max(10, limit - others)
    held.release()
    assert (source.flying, source.shared.used) == ([], 0)


def test_the_limit_of_a_window():
    budget, window = MemoryBudget(100), Window(30, requests=2)
    first = window.admit(50, budget)
    assert first is not None
    assert window.admit(1, budget) is None
    first.release()
    first.release()
    held = [window.admit(10, budget), window.admit(10, budget)]
    assert window.admit(10, budget) is None, "there are two already"
    assert budget.used == 20
    for admission in held:
        admission.release()
    assert (window.is_empty, budget.used) == (True, 0)
    assert window.admit(1, None) is not None
    assert window.admit(1, None) is None, "without a budget there is one at a time"


@pytest.mark.parametrize("how", ["error", "close"])
def test_what_is_not_wanted_any_more_is_cancelled(how):
    source = Source(failing=[20])
    wanted = (Wanted(at, at + 10) for at in range(0, 200, 10))
    arrived = InOrder(source, wanted, limit=50)
    assert [bytes(next(arrived)) for _ in range(2)] == [DATA[:10], DATA[10:20]]
    if how == "error":
        with pytest.raises(ConnectionError):
            next(arrived)
    else:
        arrived.close()
    assert source.flying == []
    assert source.cancelled
    assert source.shared.used == 0

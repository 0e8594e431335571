from __future__ import annotations

import pytest

from s3torch.core.memory import MemoryBudget
from s3torch.core.ranges import MIB
from s3torch.core.transfer._pace import Pace
from s3torch.core.transfer.window import Window
from s3torch.testing.faults import Fault

PART = 8 * MIB


def test_it_begins_with_four_parts():
    assert Pace(10, PART).limit == 4 * PART


@pytest.mark.parametrize(
    ("gbps", "seconds", "expected"),
    [(8, 0.1, 100_000_000), (0.8, 1, 100_000_000), (8, 0.001, 4 * PART), (1, 0.1, 4 * PART)],
)
def test_it_is_throughput_times_duration(gbps, seconds, expected):
    pace = Pace(gbps, PART)
    pace.took(PART, seconds)
    assert pace.limit == expected


def test_the_fastest_of_the_last_parts_counts():
    pace = Pace(8, PART)
    for seconds in (0.3, 0.1, 0.2):
        pace.took(PART, seconds)
    assert pace.limit == 100_000_000
    for _ in range(64):
        pace.took(PART, 0.2)
    assert pace.limit == 200_000_000


def test_less_than_a_part_tells_nothing():
    pace = Pace(8, PART)
    pace.took(PART - 1, 5)
    assert pace.limit == 4 * PART


def test_a_window_keeps_to_it():
    window, pace, budget = Window(), Pace(8, PART), MemoryBudget(100 * PART)
    admitted = [window.admit(PART, budget, pace=pace) for _ in range(5)]
    assert [one is not None for one in admitted] == [True] * 4 + [False]
    pace.took(PART, 0.1)
    admitted.append(window.admit(PART, budget, pace=pace))
    assert admitted[-1] is not None
    for one in admitted:
        if one is not None:
            one.release()


def test_behind_latency_more_is_on_its_way(wire):
    wire.proxy.add(Fault(latency=0.1), method="GET")
    client = wire.client()
    bucket, key = wire.stock(2 * 5 * MIB + 1)
    with client.get_object(bucket, key) as reader:
        assert reader.read() == wire.content(2 * 5 * MIB + 1)
    pace = client._handle.get().pace
    assert (pace is not None) == (wire.transport == "crt")
    assert pace is None or pace.limit >= 125_000_000

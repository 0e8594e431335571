"""The bytes in flight, and the buffers that hold them."""

from __future__ import annotations

import gc
import itertools
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core._memory import (
    BufferPool,
    Memory,
    MemoryBudget,
    default_memory_limit,
    new_bytes,
)
from s3torch.core._resources import available_memory
from s3torch.core.ranges import GIB, MIB
from s3torch.testing.faults import Fault


@pytest.mark.promise(3)
@given(st.lists(st.integers(0, 50)))
def test_the_budget_is_never_exceeded_by_asking(counts):
    budget = MemoryBudget(100)
    held = []
    for count in counts:
        used = budget.used
        reservation = budget.try_reserve(count)
        assert (reservation is not None) is (used + count <= 100)
        if reservation is not None:
            held.append(reservation)
            assert budget.used == used + count
    for reservation in held:
        reservation.release()
        reservation.release()
    assert budget.used == 0


def test_who_waits_gets_more_than_there_is():
    budget = MemoryBudget(10)
    reservation = budget.reserve(25)
    assert (budget.used, budget.try_reserve(1)) == (25, None)
    reservation.release()
    assert budget.try_reserve(10) is not None


def test_a_dropped_reservation_gives_back():
    budget = MemoryBudget(10)
    reservation = budget.reserve(7)
    assert budget.used == 7
    del reservation
    gc.collect()
    assert budget.used == 0


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def most(budget):
    """How many can be reserved at a time."""
    taken = []
    while len(taken) < 100 and (one := budget.try_reserve(1)) is not None:
        taken.append(one)
    return len(taken)


def test_a_store_that_asks_to_slow_down_gets_fewer_requests_at_a_time():
    clock = Clock()
    budget = MemoryBudget(1000, clock=clock)
    assert most(budget) == 100
    seen = []
    for _ in range(6):
        for _ in range(3):  # However many are refused in a second.
            budget.slow_down()
        seen.append(most(budget))
        clock.now += 1
    assert seen[0] == 16
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 1
    # Whoever waits for a request of its own gets it.
    waiting = [budget.reserve(1) for _ in range(3)]
    assert budget.try_reserve(1) is None
    del waiting


def test_it_gets_more_again_step_by_step():
    clock = Clock()
    budget = MemoryBudget(1000, clock=clock)
    for _ in range(6):
        budget.slow_down()
        clock.now += 1
    seen = []
    while not seen or seen[-1] < 100:
        seen.append(most(budget))
        clock.now += 2
    assert len(seen) > 20
    assert {after - before for before, after in itertools.pairwise(seen[:-1])} == {1}


def test_a_refusal_of_the_store_reaches_the_budget(wire):
    limit = 300 * MIB + 1  # That of no other test, which would share it.
    bucket, key = wire.stock(10)
    wire.proxy.add(Fault.slow_down(), method="GET", times=1)
    assert wire.client(memory_limit=limit).get_object(bucket, key).read() == wire.content(10)
    assert 16 <= most(Memory.of_this_process(limit).budget) < 32


def test_what_has_no_bytes_is_no_request():
    budget = MemoryBudget(1000, clock=Clock())
    budget.slow_down()
    empty = [budget.reserve(0) for _ in range(100)]
    assert most(budget) == 16
    del empty
    assert most(budget) == 16


def test_the_budget_counts_right_under_threads():
    budget = MemoryBudget(1000)

    def work():
        for _ in range(2000):
            reservation = budget.try_reserve(7)
            if reservation is not None:
                reservation.release()
            budget.reserve(3).release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.used == 0


@pytest.mark.parametrize("size", [1, 1000, 2 * MIB - 1, 2 * MIB, 5 * MIB + 3])
def test_a_buffer_is_writable_and_of_the_size(size):
    pool = BufferPool()
    buffer = pool.take(size)
    assert (len(buffer), buffer.readonly, buffer.format, buffer.c_contiguous) == (size, False, "B", True)
    buffer[0], buffer[-1] = 1, 2
    pool.give(buffer)
    assert pool.take(size) is buffer
    assert pool.take(size) is not buffer


def test_the_pool_keeps_no_more_than_its_limit():
    pool = BufferPool(limit=100)
    first, second = pool.take(60), pool.take(60)
    pool.give(first)
    pool.give(second)
    assert pool.take(60) is first
    assert pool.take(60) is not second


def test_a_cleared_pool_is_empty_and_takes_again():
    pool = BufferPool(limit=100)
    buffer = pool.take(60)
    pool.give(buffer)
    pool.clear()
    assert pool.take(60) is not buffer
    pool.give(buffer)
    assert pool.take(60) is buffer


@pytest.mark.parametrize("size", [0, 1, 2, 4095, 3 * MIB])
def test_new_bytes_are_filled_through_the_view(size):
    data, view = new_bytes(size)
    view[:] = bytes(size)
    if size:
        view[-1] = 7
    view.release()
    expected = bytes(max(0, size - 1)) + b"\7" * bool(size)
    assert type(data) is bytes
    assert data == expected
    assert hash(data) == hash(expected)


def test_new_bytes_live_as_long_as_the_view():
    _, view = new_bytes(100)
    gc.collect()
    view[:] = b"x" * 100
    assert bytes(view) == b"x" * 100


def test_no_bytes_object_is_shared():
    first, one = new_bytes(1)
    second, two = new_bytes(1)
    one[0], two[0] = 1, 2
    assert (first, second, b"\1", b"\2") == (b"\1", b"\2", b"\1", b"\2")


def test_clients_with_the_same_limit_share_one_budget():
    assert Memory.of_this_process(64 * MIB) is Memory.of_this_process(64 * MIB)
    assert Memory.of_this_process(64 * MIB) is not Memory.of_this_process(65 * MIB)
    assert Memory.of_this_process(None).budget.limit == default_memory_limit()


def test_a_forked_child_has_a_budget_of_its_own(in_child):
    budget = Memory.of_this_process(64 * MIB).budget
    held = budget.reserve(5)
    assert in_child(lambda: Memory.of_this_process(64 * MIB).budget.used) == 0
    held.release()


@pytest.mark.parametrize("ranks", ["", "many", "0", "1", "2", "8", "100000"])
def test_the_default_limit_is_shared_between_ranks(monkeypatch, ranks):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = default_memory_limit()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    limit = default_memory_limit()
    assert 64 * MIB <= limit <= alone <= 2 * GIB
    assert alone <= max(64 * MIB, available_memory() // 8)


def test_a_pool_that_is_not_used_frees_its_buffers():
    pool = BufferPool(idle_seconds=0.01)
    for _ in range(3):
        pool.give(pool.take(10))
        assert pool.kept in {0, 10}
        while pool.kept:
            time.sleep(0.001)


def test_closing_a_client_frees_the_buffers(client):
    with client.put_object("bucket", "key") as writer:
        writer.write(b"data")
    pool = client._handle.get().memory.pool
    assert pool.kept
    client.close()
    assert pool.kept == 0


@pytest.mark.timeout(30)
@pytest.mark.parametrize("what", ["budget", "pool"])
def test_the_garbage_collector_may_give_back_at_any_moment(what):
    # Readers and writers give back in __del__, which runs where the collector does: inside these calls, too.
    budget, pool = MemoryBudget(10**9), BufferPool()

    class Dropped:
        def __init__(self):
            self.cycle = self
            self.held = budget.reserve(1)

        def __del__(self):
            self.held.release()
            pool.give(memoryview(bytearray(3)))

    old = gc.get_threshold()
    try:
        # Each turn lets the collector run a little later, so that it hits every allocation of the call.
        for later in range(10):
            gc.disable()
            gc.collect(0)
            Dropped()
            buffer = memoryview(bytearray(100 + later))
            gc.set_threshold(gc.get_count()[0] + later)
            gc.enable()
            if what == "pool":
                pool.give(buffer)
            else:
                budget.try_reserve(1).release()
    finally:
        gc.enable()
        gc.set_threshold(*old)
    gc.collect(1)
    assert budget.used == 0

"""The order of an epoch, and what is left of it, for any number of ranks and workers."""

from __future__ import annotations

import json
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.order._epoch import (
    ConsumedPrefix,
    ConsumedShares,
    EpochPosition,
    Permutation,
    Place,
    WorkerShard,
    even_length,
    pick,
)
from s3torch.datasets.order._state import ObjectState


@given(st.integers(0, 400), st.integers(), st.integers(0, 9))
def test_a_permutation_has_every_number_once(count, seed, epoch):
    order = Permutation(count, seed=seed, epoch=epoch)
    assert sorted(order) == list(range(count))
    assert list(order) == list(Permutation(count, seed=seed, epoch=epoch))


def test_a_large_permutation_needs_no_memory_and_has_every_number_once():
    count = 100_003
    order = Permutation(count, seed=1, epoch=2)
    numbers = list(order)
    assert len(set(numbers)) == count
    assert (min(numbers), max(numbers)) == (0, count - 1)
    # Neighbours are as far apart as in a random order: a third of the range.
    distance = sum(abs(a - b) for a, b in pairwise(numbers)) / count
    assert 0.32 < distance / count < 0.35
    assert Permutation(10**7, seed=0, epoch=0)[9_999_999] < 10**7


def test_the_order_depends_on_seed_and_epoch_and_never_changes():
    orders = [list(Permutation(8, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    # States that were saved by an older release rely on these.
    assert orders[0] == list(Permutation(8, seed=0, epoch=0))
    assert orders[0][-2:] == Permutation(8, seed=0, epoch=0)[6:]
    assert Permutation(8, seed=0, epoch=0)[-1] == orders[0][7]


teams = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 12))


def read(consumed, count, ranks, workers, batch, batches):
    """Takes so many batches in turn from the workers of each rank, as a loader does."""
    seen = []
    for rank in range(ranks):
        waiting = []
        for worker in range(workers):
            position = EpochPosition(0, consumed, WorkerShard(Place(rank, ranks), Place(worker, workers)))
            mine = list(position.within(count, uneven="keep"))
            waiting.append([mine[at : at + batch] for at in range(0, len(mine), batch)])
        turn = [queue[number] for number in range(count + 1) for queue in waiting if number < len(queue)]
        seen += [place for taken in turn[:batches] for place in taken]
    return seen


@given(st.integers(0, 120), st.lists(teams, max_size=4), st.integers(1, 4), st.integers(1, 4))
def test_each_sample_is_seen_once_whoever_reads_the_rest(count, interrupted, ranks, workers):
    consumed, seen = (), []
    for team in interrupted:
        seen += read(consumed, count, *team)
        consumed = EpochPosition(consumed=consumed).extended(ConsumedPrefix(*team))
    rest = read(consumed, count, ranks, workers, 3, count + 1)
    assert sorted(seen + rest) == list(range(count))
    # Whoever reads it, what is left comes in the same global order.
    assert list(EpochPosition(consumed=consumed).within(count, uneven="keep")) == sorted(rest)


@given(
    st.integers(0, 120),
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=6), max_size=4),
    st.integers(1, 4),
)
def test_each_sample_is_seen_once_after_workers_that_took_different_numbers(count, interrupted, ranks):
    consumed, seen = (), []
    for taken in interrupted:
        for share, number in enumerate(taken):
            position = EpochPosition(0, consumed, WorkerShard(Place(share, len(taken))))
            seen += islice(position.within(count, uneven="keep"), number)
        consumed = (*consumed, ConsumedShares(taken))
        position = EpochPosition(0, consumed)
        state = ObjectState({}, position=position).to_dict()
        assert ObjectState.from_dict(json.loads(json.dumps(state)), {}).resumed() == position
    rest = read(consumed, count, ranks, 2, 3, count + 1)
    assert sorted(seen + rest) == list(range(count))
    assert list(EpochPosition(consumed=consumed).within(count, uneven="keep")) == sorted(rest)


@pytest.mark.parametrize("wrong", [(), (1, -1), (1.5,), "ab"])
def test_wrong_shares_are_refused(wrong):
    with pytest.raises(ConfigurationError):
        ConsumedShares(wrong)


@given(st.integers(0, 60), teams, st.integers(1, 5), st.sampled_from(["pad", "drop"]))
def test_uneven_tails_are_made_even(count, team, ranks, uneven):
    consumed = EpochPosition().extended(ConsumedPrefix(*team))
    left = list(EpochPosition(consumed=consumed).within(count, uneven="keep"))
    parts = [
        list(
            EpochPosition(consumed=consumed, shard=WorkerShard(Place(rank, ranks))).within(
                count, uneven=uneven
            )
        )
        for rank in range(ranks)
    ]
    length = even_length(len(left), ranks, uneven)
    assert {len(part) for part in parts} == {length // ranks}
    together = [parts[number % ranks][number // ranks] for number in range(length)]
    assert together == [left[number % len(left)] for number in range(length)]


@given(st.integers(0, 50), st.integers(1, 20))
def test_prefixes_without_gaps_become_one(first, second):
    consumed = EpochPosition().extended(ConsumedPrefix(batches=first))
    assert EpochPosition(consumed=consumed).extended(ConsumedPrefix(2, 1, 3, second)) == (
        ConsumedPrefix(batches=first + 6 * second),
    )


@given(st.sets(st.integers(0, 40)), st.integers(0, 40))
def test_picking_from_a_stream(places, count):
    stream = iter(range(count))
    chosen = sorted(places)
    assert list(pick(stream, iter(chosen))) == [place for place in chosen if place < count]
    if chosen and chosen[-1] < count:
        assert next(stream, count) == chosen[-1] + 1


def test_a_state_is_small_and_comes_back():
    position = EpochPosition(3, (ConsumedPrefix(2, 3, 4, 5),), WorkerShard(Place(1, 2), Place(0, 3)), 10**9)
    state = ObjectState({"seed": 1}, position=position).to_dict()
    assert len(repr(state)) < 300
    assert ObjectState.from_dict(state, {"seed": 1}).resumed() == position
    for wrong, order in ((state, {"seed": 2}), ({}, {}), ({**state, "version": 9}, {"seed": 1})):
        with pytest.raises(ConfigurationError):
            ObjectState.from_dict(wrong, order)
    with pytest.raises(ConfigurationError, match="ResumableLoader"):
        position.for_shard(WorkerShard())


@pytest.mark.parametrize("wrong", [{"ranks": 0}, {"workers": True}, {"batch_size": 0}, {"batches": -1}])
def test_a_wrong_prefix_is_refused(wrong):
    with pytest.raises(ConfigurationError):
        ConsumedPrefix(**wrong)

"""An epoch of shards that is interrupted, and goes on with other numbers of ranks and workers."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3torch.core.errors import ConfigurationError
from s3torch.datasets import merge_states
from s3torch.datasets.order._epoch import Place, StridedShard, WorkerShard, covers_all
from s3torch.datasets.order._state import (
    BlockProgress,
    ConsumedPieces,
    Cursor,
    Mark,
    Remainder,
    ShardState,
    ShareProgress,
    piece_number,
)
from s3torch.datasets.shards._pipeline import ShardRun


class Piece:
    """Samples that tell where they are from."""

    size = 1

    def __init__(self, shard, number, count):
        self.place = shard, number
        self.count = count

    def prefetch(self):
        """Nothing is on its way."""

    def close(self):
        """Nothing is open."""

    def samples(self, position):
        for number in range(position, self.count):
            yield number + 1, (*self.place, number)


class Shards:
    """A store of shards, and how many samples each of their pieces has."""

    def __init__(self, counts):
        self.counts = counts
        self.opened = []

    def open(self, place):
        self.opened.append(place)
        self.place = place
        return _Opened(place, self.counts[place])

    def samples(self):
        return sorted(
            (shard, piece, number)
            for shard, counts in enumerate(self.counts)
            for piece, count in enumerate(counts)
            for number in range(count)
        )


class _Opened:
    def __init__(self, place, counts):
        self.place = place
        self.counts = counts

    def pieces(self):
        return [Piece(self.place, number, count) for number, count in enumerate(self.counts)]

    def close(self):
        """Nothing is open."""


def read(shards, state, share, buffer, stop):
    """What one worker yields until it stops, and how far it is then."""
    run = ShardRun(
        count=len(shards.counts),
        open_shard=shards.open,
        ahead=1,
        tolerate=lambda _: False,
        report=str,
        share=share,
        consumed=state.consumed,
        seed=1,
        epoch=state.epoch,
        buffer=buffer,
    )
    seen, progress = [], state.shares[share]
    for after, sample in islice(run.samples(progress), stop):
        progress = after
        seen.append(sample)
    return seen, progress


def interrupted(shards, state, teams, stops, buffer):
    """What all workers of all ranks yield, and their states, merged."""
    seen, states = [], []
    for rank in teams:
        begun = state.taken_up(rank)
        for share in rank:
            taken, begun.shares[share] = read(shards, begun, share, buffer, next(stops))
            seen += taken
        states.append(json.loads(json.dumps(begun.to_dict())))
    return seen, ShardState.from_dict(merge_states(states))


def teams_of(workers):
    """The shares of all ranks, of which each has so many workers."""
    ranks = len(workers)
    return [
        [WorkerShard(Place(rank, ranks), Place(number, count)).strided for number in range(count)]
        for rank, count in enumerate(workers)
    ]


layouts = st.builds(lambda ranks, workers: [workers] * ranks, st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=300)
@given(
    counts=st.lists(st.lists(st.integers(0, 6), max_size=4), max_size=7),
    before=st.lists(layouts, max_size=4),
    last=layouts,
    buffer=st.integers(1, 6),
    data=st.data(),
)
def test_each_sample_comes_once_whoever_goes_on(counts, before, last, buffer, data):
    shards = Shards(counts)
    state = ShardState({})
    seen = []
    stops = iter(lambda: data.draw(st.integers(0, 12)), None)
    for workers in before:
        taken, state = interrupted(shards, state, teams_of(workers), stops, buffer)
        seen += taken
    rest, state = interrupted(shards, state, teams_of(last), iter(lambda: 999, None), buffer)
    assert sorted(seen + rest) == shards.samples()
    # Nothing is left, for whomever.
    assert interrupted(shards, state, [[StridedShard()]], iter([999]), buffer)[0] == []


@given(
    counts=st.lists(st.lists(st.integers(0, 6), max_size=4), max_size=7),
    first=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    data=st.data(),
)
def test_ranks_may_have_different_numbers_of_workers(counts, first, data):
    shards = Shards(counts)
    stops = iter(lambda: data.draw(st.integers(0, 12)), None)
    seen, state = interrupted(shards, ShardState({}), teams_of(first), stops, 3)
    rest, _ = interrupted(shards, state, teams_of([2, 2]), iter([999] * 4), 3)
    assert sorted(seen + rest) == shards.samples()


@given(
    counts=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3), max_size=7),
    workers=st.integers(1, 3),
    buffer=st.integers(1, 6),
    data=st.data(),
)
def test_the_same_workers_go_on_in_the_same_order(counts, workers, buffer, data):
    shards = Shards(counts)
    stops = iter(lambda: data.draw(st.integers(0, 9)), None)
    _, before = interrupted(shards, ShardState({}), teams_of([2]), stops, buffer)
    ((*team,),) = teams_of([workers])
    begun = before.taken_up(team)
    for share in team:
        whole, _ = read(shards, begun, share, buffer, 999)
        stop = data.draw(st.integers(0, 20))
        taken, progress = read(shards, begun, share, buffer, stop)
        begun.shares[share] = progress
        again = ShardState.from_dict(json.loads(json.dumps(begun.to_dict()))).taken_up([share])
        rest, _ = read(shards, again, share, buffer, 999)
        assert taken + rest == whole


@given(shards=st.integers(0, 40), pieces=st.integers(1, 8), step=st.integers(1, 9))
def test_equal_shards_are_shared_out_evenly(shards, pieces, step):
    shares = [0] * step
    for shard in range(shards):
        for piece in range(pieces):
            shares[piece_number(shard, piece, pieces) % step] += 1
    assert max(shares) - min(shares) <= 1


def test_shards_that_were_taken_are_not_opened_again():
    shards = Shards([[3]] * 20)
    _, state = interrupted(shards, ShardState({}), teams_of([2]), iter([27, 24]), 2)
    shards.opened.clear()
    interrupted(shards, state, teams_of([3]), iter([99] * 3), 2)
    # Each had at most a sample of a block left, with which its replay begins.
    assert min(shards.opened) >= 15


def test_a_state_does_not_grow_with_the_epoch():
    shards = Shards([[5]] * 60)
    state = ShardState({})
    sizes = set()
    for workers in [2, 3] * 8:
        _, state = interrupted(shards, state, teams_of([workers]), iter([8] * workers), 4)
        sizes.add(len(state.consumed))
    assert max(sizes) <= 3


def test_the_state_of_one_rank_is_not_enough_for_others():
    shards = Shards([[2]] * 9)
    first, second = teams_of([2, 2])
    states = []
    for team in (first, second):
        begun = ShardState({}).taken_up(team)
        for share in team:
            begun.noted([Mark(share, read(shards, begun, share, 1, 1)[1], "digest")])
        states.append(begun)
    assert states[0].taken_up(first).shares == states[0].shares
    with pytest.raises(ConfigurationError, match="merge_states"):
        states[0].taken_up([StridedShard()])
    merged = merge(states)
    assert covers_all(merged.shares)
    merged.taken_up([StridedShard()])
    other = ShardState({}, epoch=1)
    for wrong in ([states[0], other], [states[0], merge([states[0].taken_up(first)])]):
        wrong[1].shares = {first[0]: ShareProgress(taken=9)}
        with pytest.raises(ConfigurationError):
            merge(wrong)


def merge(states):
    return ShardState.from_dict(merge_states([state.to_dict() for state in states]))


def test_what_each_was_to_yield_is_divided_as_well():
    begun = ShardState({}).taken_up(teams_of([2])[0])
    begun.shares[StridedShard(0, 2)] = ShareProgress(taken=10, block=BlockProgress(end=Cursor(3)))
    begun.shares[StridedShard(1, 2)] = ShareProgress(turn=1, taken=7)
    after = begun.taken_up([StridedShard(1, 3)], quota=20)
    # 23 are left, of which each of three yields eight.
    assert after.quota == 8
    assert after.consumed[0].ends[StridedShard(0, 2)] == Cursor(3)
    # The other began anew, so it had all of its first turn.
    assert after.consumed[0].ends[StridedShard(1, 2)] > Cursor(10**9)


def test_positions_are_those_that_were_consumed_last():
    consumed = [
        ConsumedPieces({StridedShard(0, 2): Cursor(2, 0, 7), StridedShard(1, 2): Cursor(1, 0, 5)}),
        ConsumedPieces({StridedShard(): Cursor(1, 0, 6)}),
    ]
    left = Remainder(consumed)
    assert left.first_shard == 1
    found = {shard: left.position(shard, 0, shard) for shard in range(4)}
    assert found == {0: None, 1: 6, 2: 7, 3: 0}


def test_a_block_that_has_changed_is_refused():
    shards = Shards([[9]])
    begun = ShardState({}).taken_up([StridedShard()])
    _, begun.shares[StridedShard()] = read(shards, begun, StridedShard(), 5, 2)
    changed = Shards([[3]])
    for team in ([StridedShard()], [StridedShard(0, 2)]):
        state = begun.taken_up(team)
        with pytest.raises(ConfigurationError, match="no longer have the samples"):
            read(changed, state, team[0], 5, 1)

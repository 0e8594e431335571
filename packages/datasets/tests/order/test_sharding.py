"""Every object is read exactly once, whatever the numbers of ranks and workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.order._epoch import EpochPosition, Place, WorkerShard, pick


def indices(shard, count):
    """What a worker with this shard reads of so many objects."""
    return list(EpochPosition(shard=shard).within(count, uneven="keep"))


counts = st.integers(0, 200)
# The number of workers of each rank; ranks may have different ones.
worlds = st.lists(st.integers(1, 5), min_size=1, max_size=6)


def shards_of(world: list[int]) -> list[WorkerShard]:
    return [
        WorkerShard(Place(rank, len(world)), Place(worker, workers))
        for rank, workers in enumerate(world)
        for worker in range(workers)
    ]


@given(counts, worlds)
def test_every_object_goes_to_exactly_one_worker(count, world):
    parts = [indices(shard, count) for shard in shards_of(world)]
    assert sorted(index for part in parts for index in part) == list(range(count))


@given(counts, worlds)
def test_the_rule_is_rank_first_then_worker(count, world):
    for shard in shards_of(world):
        expected = [
            index
            for index in range(count)
            if index % len(world) == shard.rank.index
            and index // len(world) % shard.worker.size == shard.worker.index
        ]
        assert indices(shard, count) == expected
        assert [index for index in range(count) if index in shard.strided] == expected


@given(counts, st.integers(1, 6))
def test_ranks_differ_by_one_object_at_most(count, size):
    sizes = [len(indices(WorkerShard(Place(rank, size)), count)) for rank in range(size)]
    assert max(sizes) - min(sizes) <= 1


@given(counts)
def test_one_worker_of_one_rank_reads_everything_in_order(count):
    assert indices(WorkerShard(), count) == list(range(count))


def test_selecting_takes_no_more_of_the_listing_than_it_yields():
    listing = iter(range(100))
    chosen = pick(listing, EpochPosition(shard=WorkerShard(Place(1, 2))).positions())
    assert [next(chosen), next(chosen)] == [1, 3]
    assert next(listing) == 4


@pytest.mark.parametrize(("index", "size"), [(0, 0), (-1, 2), (2, 2)])
def test_a_place_outside_its_size_is_refused(index, size):
    with pytest.raises(ConfigurationError, match=f"index {index} of size {size}"):
        Place(index, size)

"""Loaders of shards that stop in mid-epoch and go on with other ranks and workers, on a store in memory."""

from __future__ import annotations

import json
from itertools import chain, islice
from operator import itemgetter

import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from s3torch.core.errors import ConfigurationError
from s3torch.datasets import ResumableLoader, S3MapDataset, S3Sampler, S3ShardDataset, merge_states

KEYS = [[f"{shard}-{number}" for number in range(shard % 4 + 3)] for shard in range(9)]
ALL = sorted(chain.from_iterable(KEYS))

# Three workers are more than some machines have cores for.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def make(memory, store, make_tar):
    for shard, keys in enumerate(KEYS):
        store.put("data", f"train/{shard}.tar", make_tar([(f"{key}.txt", key.encode()) for key in keys]))

    def make_dataset(**options):
        defaults = {
            "region": "us-east-1",
            "s3client_config": memory,
            "transform": itemgetter("__key__"),
            "shuffle": True,
            "shuffle_buffer": 4,
        }
        return S3ShardDataset.from_prefix("s3://data/train/", **(defaults | options))

    return make_dataset


def loader_of(dataset, workers, *, context="fork", batch_size=2, **options):
    start = {"num_workers": workers, "multiprocessing_context": context} if workers else {}
    return DataLoader(dataset, batch_size=batch_size, collate_fn=list, **start, **options)


def copied(state):
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("persistent", [False, True])
def test_a_loader_goes_on_with_other_workers(make, persistent):
    def loader(workers, batch_size):
        options = {"persistent_workers": True} if persistent and workers else {}
        return ResumableLoader(loader_of(make(), workers, batch_size=batch_size, **options))

    seen, state = [], None
    for workers, batch_size, stop in ((2, 2, 5), (0, 3, 2), (3, 2, 99)):
        resumed = loader(workers, batch_size)
        if state is not None:
            resumed.load_state_dict(copied(state))
            assert resumed.state_dict() == state
        for batch in islice(resumed, stop):
            seen += batch
        state = resumed.state_dict()
    assert sorted(seen) == ALL
    # The epoch after the one that was resumed is whole again, and has its own order.
    resumed.set_epoch(1)
    second = [key for batch in resumed for key in batch]
    assert sorted(second) == ALL
    assert state["epoch"] == 0
    assert resumed.state_dict()["epoch"] == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_workers_go_on_with_the_same_batches(make, workers):
    whole = list(ResumableLoader(loader_of(make(), workers)))
    for stop in (0, 1, 4, 7, len(whole)):
        first = ResumableLoader(loader_of(make(), workers))
        taken = list(islice(first, stop))
        second = ResumableLoader(loader_of(make(), workers))
        second.load_state_dict(copied(first.state_dict()))
        rest = list(second)
        # Workers begin with the first of them again, whoever was next.
        assert sorted(chain.from_iterable(taken + rest)) == ALL
        if workers == 0:
            assert taken + rest == whole


@pytest.mark.parametrize(("ranks", "others"), [((2, 0), (3, 0)), ((2, 2), (1, 3)), ((1, 2), (3, 0))])
def test_ranks_go_on_as_others(make, ranks, others):
    def loaders(ranks, workers):
        datasets = (make(rank=rank, world_size=ranks) for rank in range(ranks))
        return [ResumableLoader(loader_of(dataset, workers)) for dataset in datasets]

    seen, states = [], []
    # Ranks need not be at the same place.
    for rank, loader in enumerate(loaders(*ranks)):
        seen += chain.from_iterable(islice(loader, 3 + rank))
        states.append(copied(loader.state_dict()))
    state = merge_states(states)
    for loader in loaders(*others):
        loader.load_state_dict(state)
        seen += chain.from_iterable(loader)
    assert sorted(seen) == ALL


@pytest.mark.parametrize("workers", [0, 2])
def test_states_of_the_end_of_an_epoch_go_on_with_the_next(make, workers):
    def loaders(ranks):
        return [
            ResumableLoader(loader_of(make(rank=rank, world_size=ranks), workers)) for rank in range(ranks)
        ]

    first, expected = loaders(2), loaders(2)
    for loader in first:
        list(loader)
    states = [copied(loader.state_dict()) for loader in first]
    for loader in expected:
        loader.set_epoch(1)
    second = [list(loader) for loader in expected]
    for again, state in zip(loaders(2), states, strict=True):
        again.load_state_dict(state)
        assert again.state_dict() == state
        assert list(again) == second[states.index(state)]
        assert again.state_dict()["epoch"] == 1
    merged, seen = merge_states(states), []
    for again in loaders(3):
        again.load_state_dict(merged)
        seen += chain.from_iterable(again)
    assert sorted(seen) == ALL
    # Where one rank has something left, the epoch is not over.
    late = loaders(2)[0]
    next(iter(late))
    seen = []
    for again in loaders(3):
        again.load_state_dict(merge_states([copied(late.state_dict()), states[1]]))
        seen += chain.from_iterable(again)
    assert 0 < len(seen) == len(set(seen)) < len(ALL)
    # Nothing is left of the epoch for who says that it is that.
    again = loaders(2)[0]
    again.load_state_dict(states[0])
    again.set_epoch(0)
    assert list(again) == []


def test_workers_that_stay_begin_anew_after_an_early_break(make):
    loader = ResumableLoader(loader_of(make(), 2, persistent_workers=True))
    for _ in range(2):
        first = next(iter(loader))
        state = loader.state_dict()
        assert sorted(chain.from_iterable(loader)) == ALL
        again = ResumableLoader(loader_of(make(), 0))
        again.load_state_dict(state)
        assert sorted(chain(first, chain.from_iterable(again))) == ALL


def test_a_rank_alone_does_not_know_what_is_left(make):
    loader = ResumableLoader(loader_of(make(rank=0, world_size=2), 0))
    next(iter(loader))
    other = ResumableLoader(loader_of(make(), 0))
    other.load_state_dict(loader.state_dict())
    with pytest.raises(ConfigurationError, match="merge_states"):
        list(other)
    with pytest.raises(ConfigurationError, match="none"):
        merge_states([])


def test_samples_per_worker_are_what_is_left_of_them(make):
    options = {"samples_per_worker": 30}
    first = [ResumableLoader(loader_of(make(rank=rank, world_size=2, **options), 0)) for rank in range(2)]
    seen = [key for loader in first for batch in islice(loader, 6) for key in batch]
    state = merge_states([loader.state_dict() for loader in first])
    parts = []
    for rank in range(3):
        loader = ResumableLoader(loader_of(make(rank=rank, world_size=3, **options), 0))
        loader.load_state_dict(state)
        parts.append(list(chain.from_iterable(loader)))
    # 60 in all, of which 24 were taken.
    assert [len(part) for part in parts] == [12, 12, 12]
    # All come before any comes again.
    assert len(set(seen)) == 24
    assert set(seen).union(*parts) == set(ALL)


def test_pinned_memory_and_single_samples(make):
    with pytest.warns(UserWarning, match="pin_memory"):
        batches = list(ResumableLoader(loader_of(make(), 0, pin_memory=True)))
    assert sorted(chain.from_iterable(batches)) == ALL
    single = ResumableLoader(DataLoader(make(), batch_size=None))
    taken = list(islice(single, 5))
    again = ResumableLoader(loader_of(make(), 2))
    again.load_state_dict(single.state_dict())
    assert sorted(taken + list(chain.from_iterable(again))) == ALL


def test_the_loader_itself_stays_as_it_was(make):
    loader = loader_of(make(), 0)
    collate = loader.collate_fn
    assert sorted(chain.from_iterable(ResumableLoader(loader))) == ALL
    assert loader.collate_fn is collate
    assert sorted(chain.from_iterable(loader)) == ALL
    persistent = loader_of(make(), 1, persistent_workers=True)
    list(persistent)
    with pytest.raises(ConfigurationError, match="without its ResumableLoader"):
        list(ResumableLoader(persistent))


# torchdata calls what torch has deprecated.
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("workers", [0, 2])
def test_states_of_torchdata_can_be_divided_anew(make, workers):
    def loader(dataset, **options):
        start = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}
        return StatefulDataLoader(dataset, batch_size=2, collate_fn=list, **start, **options)

    first = loader(make())
    seen = list(chain.from_iterable(islice(first, 5)))
    state = merge_states([first.state_dict()])
    dataset = make()
    dataset.load_state_dict(state)
    assert sorted(seen + list(chain.from_iterable(loader_of(dataset, 3)))) == ALL
    if workers:
        rare = loader(make(), snapshot_every_n_steps=4)
        list(islice(rare, 3))
        with pytest.raises(ConfigurationError, match="snapshot_every_n_steps"):
            merge_states([rare.state_dict()])


def test_states_of_other_datasets_are_the_same_on_all_ranks(memory, fill):
    fill(*"abcdefgh")
    dataset = S3MapDataset.from_prefix("s3://data/", s3client_config=memory, transform=itemgetter(0))
    parts = [S3Sampler(dataset, rank=rank, world_size=2) for rank in range(2)]
    assert merge_states([part.state_after(2) for part in parts]) == parts[0].state_after(2)
    with pytest.raises(ConfigurationError, match="same point"):
        merge_states([parts[0].state_after(2), parts[1].state_after(3)])

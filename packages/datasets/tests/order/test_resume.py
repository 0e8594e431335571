"""Datasets and loaders that stop in the middle of an epoch and go on, on a store in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from operator import methodcaller

import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from s3torch.core import S3Client
from s3torch.core.errors import ConfigurationError, NotFoundError
from s3torch.datasets import ResumableLoader, S3IterableDataset, S3MapDataset, S3Sampler, merge_states

KEYS = [f"train/{number:02}" for number in range(23)]
DATA = [key.encode() for key in KEYS]
# So many that workers are at different places after equal numbers of batches.
GONE = KEYS[1:12:2]
LEFT = sorted(key.encode() for key in KEYS if key not in GONE)


@pytest.fixture
def make(memory, fill):
    fill(*KEYS)

    def make_dataset(cls=S3IterableDataset, **options):
        defaults = {"region": "us-east-1", "transform": methodcaller("read"), "s3client_config": memory}
        return cls.from_prefix("s3://data/train/", **(defaults | options))

    return make_dataset


@pytest.fixture
def lenient(memory, fill):
    """Makes datasets of objects some of which are not there, and left out."""
    fill(*(key for key in KEYS if key not in GONE))

    def make_dataset(**options):
        defaults = {"transform": methodcaller("read"), "s3client_config": memory, "on_error": "skip"}
        return S3IterableDataset.from_objects([f"s3://data/{key}" for key in KEYS], **defaults, **options)

    return make_dataset


def ranks_of(make, count, **options):
    return [make(enable_sharding=True, rank=rank, world_size=count, **options) for rank in range(count)]


def test_the_shuffled_order_is_the_same_for_any_number_of_ranks(make):
    alone = list(make(shuffle=True, seed=5))
    assert alone != DATA
    assert sorted(alone) == DATA
    for count in (2, 3):
        parts = [list(dataset) for dataset in ranks_of(make, count, shuffle=True, seed=5)]
        assert parts == [alone[rank::count] for rank in range(count)]


def test_an_epoch_has_its_own_order_and_one_listing_serves_all(make, listings):
    dataset = make(shuffle=True)
    first = list(dataset)
    dataset.set_epoch(1)
    assert list(dataset) != first
    dataset.set_epoch(0)
    assert list(dataset) == first
    assert listings() == 1


@pytest.mark.parametrize(("uneven", "length"), [("pad", 6), ("drop", 5), ("keep", None)])
def test_ranks_get_equal_numbers_where_that_was_asked_for(make, uneven, length):
    lengths = {len(list(dataset)) for dataset in ranks_of(make, 4, uneven=uneven)}
    assert lengths == ({length} if length else {5, 6})


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_dataset_goes_on_where_it_was(make, shuffle):
    whole = list(make(shuffle=shuffle))
    dataset = make(shuffle=shuffle)
    samples = iter(dataset)
    taken = [next(samples) for _ in range(9)]
    state = json.loads(json.dumps(dataset.state_dict()))
    other = make(shuffle=shuffle)
    other.load_state_dict(state)
    assert taken + list(other) == whole
    assert list(other) == whole
    parts = ranks_of(make, 2, shuffle=shuffle)
    for part in parts:
        part.load_state_dict(state)
    assert [list(part) for part in parts] == [whole[9::2], whole[10::2]]


# Three workers are more than some machines have cores for.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_plain_loader_resumes_with_other_workers(make, shuffle, persistent):
    def loader(workers, batch):
        dataset = make(shuffle=shuffle, enable_sharding=True)
        return ResumableLoader(
            DataLoader(
                dataset,
                batch_size=batch,
                num_workers=workers,
                multiprocessing_context="fork" if workers else None,
                persistent_workers=persistent and workers > 0,
                collate_fn=list,
            )
        )

    seen, state = [], None
    for workers, batch, stop in ((2, 2, 3), (0, 3, 1), (3, 2, 99)):
        resumed = loader(workers, batch)
        if state is not None:
            resumed.load_state_dict(json.loads(json.dumps(state)))
            assert resumed.state_dict() == state
        for number, samples in enumerate(resumed, 1):
            seen += samples
            if number == stop:
                break
        state = resumed.state_dict()
    assert sorted(seen) == DATA
    # The epoch after the one that was resumed is whole again, and has its own order.
    resumed.set_epoch(1)
    second = [sample for batch in resumed for sample in batch]
    assert sorted(second) == DATA
    assert state["epoch"] == 0
    assert resumed.state_dict()["epoch"] == 1


@pytest.mark.parametrize("workers", [0, 2])
# torchdata calls what torch has deprecated.
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
def test_torchdata_resumes_exactly(make, workers, cls):
    def loader():
        if cls is S3MapDataset:
            dataset = make(cls)
            options = {"sampler": S3Sampler(dataset, seed=3)}
        else:
            dataset, options = make(shuffle=True, seed=3, enable_sharding=True), {}
        return StatefulDataLoader(
            dataset,
            batch_size=2,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            collate_fn=list,
            **options,
        )

    first = loader()
    batches = iter(first)
    seen = [next(batches) for _ in range(5)]
    state = first.state_dict()
    rest = list(batches)
    again = loader()
    again.load_state_dict(state)
    assert list(again) == rest
    assert sorted(sample for batch in seen + rest for sample in batch) == DATA


def test_a_sampler_resumes_with_other_ranks(make):
    dataset = make(S3MapDataset)
    whole = list(S3Sampler(dataset, seed=1))
    loaders = [
        ResumableLoader(
            DataLoader(dataset, batch_size=2, sampler=S3Sampler(dataset, seed=1, rank=rank, world_size=2))
        )
        for rank in range(2)
    ]
    for loader in loaders:
        batches = iter(loader)
        for _ in range(3):
            next(batches)
    assert loaders[0].state_dict() == loaders[1].state_dict()
    parts = [S3Sampler(dataset, seed=1, uneven="keep", rank=rank, world_size=3) for rank in range(3)]
    for part in parts:
        part.load_state_dict(loaders[0].state_dict())
    assert [len(part) for part in parts] == [4, 4, 3]
    assert [list(part) for part in parts] == [whole[12 + rank :: 3] for rank in range(3)]
    assert sum(len(list(part)) for part in parts) == len(DATA)
    with pytest.raises(ConfigurationError, match="the sampler has"):
        S3Sampler(dataset, seed=2).load_state_dict(loaders[0].state_dict())


def test_a_loader_that_cannot_be_resumed_is_refused(make):
    with pytest.raises(ConfigurationError, match="S3Sampler"):
        ResumableLoader(DataLoader(make(S3MapDataset)))
    with pytest.raises(ConfigurationError, match="uneven"):
        make(uneven="stretch")
    with pytest.raises(ConfigurationError, match="on_error"):
        make(on_error="ignore")


@pytest.mark.parametrize("workers", [0, 2])
def test_missing_and_changed_objects_are_skipped_and_counted(make, memory, workers):
    loader = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    dataset = make(S3MapDataset, on_error="skip")
    strict = make(S3MapDataset)
    assert len(dataset) == len(strict) == 23
    with S3Client(s3client_config=memory) as client:
        client.delete_object("data", KEYS[3])
        with client.put_object("data", KEYS[8]) as writer:
            writer.write(b"changed")
    batches = list(DataLoader(dataset, batch_size=5, collate_fn=list, **loader))
    expected = [sample for number, sample in enumerate(DATA) if number not in {3, 8}]
    assert [sample for batch in batches for sample in batch] == expected
    assert dataset.skipped == 2
    with pytest.raises(NotFoundError):
        strict.__getitems__([2, 3])
    uris = ["s3://data/none", f"s3://data/{KEYS[0]}"]
    stream = S3IterableDataset.from_objects(
        uris, s3client_config=memory, transform=methodcaller("read"), on_error="skip"
    )
    samples = iter(stream)
    assert next(samples) == DATA[0]
    # What was skipped is not tried again after a resume.
    assert stream.state_dict()["taken"] == 2
    assert stream.skipped == 1


# Three workers are more than some machines have cores for.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_loader_that_leaves_objects_out_resumes_with_other_workers(lenient):
    def loader(workers, batch):
        dataset = lenient(shuffle=True, enable_sharding=True)
        start = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}
        return ResumableLoader(DataLoader(dataset, batch_size=batch, collate_fn=list, **start))

    seen, state = [], None
    for workers, batch, stop in ((2, 2, 3), (0, 3, 1), (3, 1, 2), (1, 2, 99)):
        resumed = loader(workers, batch)
        if state is not None:
            resumed.load_state_dict(json.loads(json.dumps(state)))
        for samples in islice(resumed, stop):
            seen += samples
        state = resumed.state_dict()
    assert sorted(seen) == LEFT


@pytest.mark.filterwarnings("ignore:several workers")
def test_ranks_that_leave_objects_out_merge_their_states(lenient):
    def loaders(ranks):
        datasets = ranks_of(lenient, ranks)
        return [ResumableLoader(DataLoader(dataset, batch_size=2, collate_fn=list)) for dataset in datasets]

    first = loaders(2)
    seen = [sample for loader in first for batch in islice(loader, 3) for sample in batch]
    states = [loader.state_dict() for loader in first]
    with pytest.raises(ConfigurationError, match="merge_states"):
        loaders(2)[0].load_state_dict(states[0])
    for loader in loaders(3):
        loader.load_state_dict(json.loads(json.dumps(merge_states(states))))
        seen += [sample for batch in loader for sample in batch]
    assert sorted(seen) == LEFT
    repeated = ResumableLoader(
        DataLoader(lenient(), batch_size=2, num_workers=2, multiprocessing_context="fork", collate_fn=list)
    )
    next(iter(repeated))
    with pytest.raises(ConfigurationError, match="repeat every sample"):
        repeated.state_dict()


def loader_of(make, kind, workers):
    options = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}
    if kind == "map":
        dataset = make(S3MapDataset)
        options["sampler"] = S3Sampler(dataset, seed=3)
    else:
        dataset = make(shuffle=kind == "shuffled", seed=3, enable_sharding=True)
    return ResumableLoader(DataLoader(dataset, batch_size=4, collate_fn=list, **options))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["map", "listed", "shuffled"])
def test_a_state_of_the_end_of_an_epoch_goes_on_with_the_next(make, kind, workers):
    first, expected = (loader_of(make, kind, workers) for _ in range(2))
    for _ in first:
        pass
    state = json.loads(json.dumps(first.state_dict()))
    assert state["epoch"] == 0
    expected.set_epoch(1)
    second = list(expected)
    for others in {workers, 0}:
        again = loader_of(make, kind, others)
        again.load_state_dict(state)
        assert again.state_dict() == state
        batches = list(again)
        assert sorted(sample for batch in batches for sample in batch) == DATA
        assert others != workers or batches == second
        assert again.state_dict()["epoch"] == 1
    # Who says that it is the epoch that has ended gets what is left of that: nothing.
    again = loader_of(make, kind, workers)
    again.load_state_dict(state)
    again.set_epoch(0)
    assert list(again) == []
    again.set_epoch(1)
    assert list(again) == second


def test_a_dataset_that_was_read_to_its_end_goes_on_with_the_next_epoch(make):
    dataset, again = make(shuffle=True), make(shuffle=True)
    whole = list(dataset)
    again.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
    second = list(again)
    assert again.state_dict()["epoch"] == 1
    dataset.set_epoch(1)
    assert second == list(dataset) != whole
    parts = ranks_of(make, 2, shuffle=True)
    for part in parts:
        list(part)
    states = [part.state_dict() for part in parts]
    others = ranks_of(make, 3, shuffle=True)
    for other in others:
        other.load_state_dict(states[0])
    assert sorted(sample for other in others for sample in other) == DATA


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["map", "listed", "shuffled"])
def test_torchdata_goes_on_with_the_next_epoch(make, kind, workers):
    def loader():
        plain = loader_of(make, kind, workers).loader
        options = {"sampler": plain.sampler} if kind == "map" else {}
        return StatefulDataLoader(
            plain.dataset,
            batch_size=4,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            collate_fn=list,
            **options,
        )

    first, again = loader(), loader()
    list(first)
    again.load_state_dict(first.state_dict())
    for _ in range(2):
        assert sorted(sample for batch in again for sample in batch) == DATA


COPIES = """
from operator import methodcaller
from torch.utils.data import DataLoader
from s3torch.core import S3ClientConfig
from s3torch.core.transports.memory import MemoryStore
from s3torch.datasets import S3IterableDataset

store = MemoryStore.at("http://copies.memory")
store.create_bucket("data")
store.put("data", "a", b"a")
config = S3ClientConfig(transport="memory", endpoint="http://copies.memory")
for sharding in (True, False):
    dataset = S3IterableDataset.from_prefix(
        "s3://data/", s3client_config=config, transform=methodcaller("read"), enable_sharding=sharding
    )
    for workers in (0, 1, 2, 2):
        context = "fork" if workers else None
        list(DataLoader(dataset, num_workers=workers, multiprocessing_context=context))
"""


def test_workers_that_repeat_every_sample_are_told_once():
    run = subprocess.run([sys.executable, "-c", COPIES], check=True, capture_output=True, text=True)
    assert run.stderr.count("UserWarning: several workers without enable_sharding repeat every sample") == 1
    assert "enable_sharding=True" in run.stderr


def test_batches_that_were_fetched_and_not_used_are_not_counted():
    numbers = list(range(23))

    def loader():
        return ResumableLoader(DataLoader(numbers, batch_size=4, sampler=S3Sampler(numbers, seed=1)))

    whole = [batch.tolist() for batch in loader()]
    first = loader()
    batches = iter(first)
    for _ in range(3):
        next(batches)
    second = loader()
    second.load_state_dict(first.state_dict(ahead=1))
    assert not second.has_begun
    # Of the whole epoch.
    assert len(first) == len(second) == 6
    assert [batch.tolist() for batch in second] == whole[2:]
    assert len(second) == 6
    for ahead in (-1, 4):
        with pytest.raises(ConfigurationError, match="ahead must be from 0 to 3"):
            first.state_dict(ahead=ahead)
    # The epoch ends here for who says so; the next one has another order.
    third = loader()
    third.load_state_dict(first.state_dict(finished=True))
    rest = [batch.tolist() for batch in third]
    assert len(rest) == len(third) == 6
    assert rest != whole
    # As a Lightning trainer does it.
    third.batch_sampler.sampler.set_epoch(0)
    assert [batch.tolist() for batch in third] == whole

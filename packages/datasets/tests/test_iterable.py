"""What users of the iterable dataset notice, on a store in memory."""

from __future__ import annotations

import pickle
import threading
from operator import methodcaller
from typing import ClassVar

import pytest
from torch.utils.data import DataLoader

from s3torch.core import SequentialS3Reader
from s3torch.core.errors import ConfigurationError
from s3torch.datasets import S3IterableDataset
from s3torch.datasets.transforms import identity

KEYS = [f"train/{number}" for number in range(7)]
DATA = [key.encode() for key in KEYS]


@pytest.fixture
def make(memory, fill):
    fill(*KEYS)

    def make_dataset(**options):
        defaults = {"region": "us-east-1", "transform": methodcaller("read"), "s3client_config": memory}
        return S3IterableDataset.from_prefix("s3://data/train/", **(defaults | options))

    return make_dataset


@pytest.mark.parametrize("prefetch", [None, 0, 1, 3])
def test_every_epoch_yields_all_samples_in_order(make, prefetch):
    dataset = make(prefetch=prefetch)
    assert list(dataset) == list(dataset) == DATA


def test_every_epoch_lists_anew_and_not_before_it_is_read(make, fill, listings):
    dataset = make()
    assert listings() == 0
    assert list(dataset) == DATA
    fill("train/9")
    assert list(dataset) == [*DATA, b"train/9"]
    assert listings() == 2


def test_it_has_no_length(make):
    with pytest.raises(TypeError):
        len(make())


def test_a_generator_of_uris_lasts_for_every_epoch(memory, fill):
    fill(*KEYS)
    dataset = S3IterableDataset.from_objects(
        (f"s3://data/{key}" for key in reversed(KEYS)),
        region="us-east-1",
        transform=methodcaller("read"),
        s3client_config=memory,
    )
    assert list(dataset) == list(dataset) == DATA[::-1]


def test_several_iterations_do_not_disturb_each_other(make):
    dataset = make(prefetch=2)
    assert list(zip(dataset, dataset, strict=True)) == list(zip(DATA, DATA, strict=True))


class Recorded(SequentialS3Reader):
    """A reader of a user, that tells when its download starts and whether it was closed."""

    made: ClassVar[list[Recorded]] = []

    def prefetch(self):
        self.made.append(self)
        super().prefetch()


def test_the_next_downloads_are_under_way_while_a_transform_runs(make):
    Recorded.made.clear()
    samples = iter(make(reader_constructor=Recorded, prefetch=3))
    for position, expected in enumerate(DATA):
        assert next(samples) == expected
        assert [reader.key for reader in Recorded.made] == KEYS[: position + 4]


def test_dropping_an_iterator_leaves_nothing_behind(make):
    Recorded.made.clear()
    before = set(threading.enumerate())
    dataset = make(reader_constructor=Recorded, prefetch=5)
    for sample in dataset:
        assert sample == DATA[0]
        break
    assert [reader.closed for reader in Recorded.made] == [False] + [True] * 5
    dataset.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_an_error_of_a_transform_names_the_object_and_the_next_epoch_works(make):
    broken = {"train/3"}

    def read(reader):
        if reader.key in broken:
            raise ValueError("no image")
        return reader.read()

    dataset = make(transform=read)
    samples = iter(dataset)
    assert [next(samples) for _ in range(3)] == DATA[:3]
    with pytest.raises(ValueError, match="no image") as caught:
        next(samples)
    assert caught.value.__notes__ == ["while transforming s3://data/train/3"]
    broken.clear()
    assert list(dataset) == DATA


def test_readers_that_are_handed_out_can_be_pickled(make):
    readers = list(make(transform=identity))
    assert [reader.read() for reader in pickle.loads(pickle.dumps(readers))] == DATA


def test_without_sharding_every_rank_yields_everything(make):
    assert list(DataLoader(make(), batch_size=None)) == DATA


def test_given_ranks_share_the_samples_out(make):
    parts = [list(make(enable_sharding=True, rank=rank, world_size=3)) for rank in range(3)]
    assert parts == [DATA[0::3], DATA[1::3], DATA[2::3]]


def test_a_given_rank_is_pickled(make):
    dataset = make(enable_sharding=True, rank=1, world_size=2)
    assert list(pickle.loads(pickle.dumps(dataset))) == DATA[1::2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"world_size": 2},
        {"rank": 2, "world_size": 2},
        {"rank": -1, "world_size": 2},
        {"rank": "0", "world_size": 2},
        {"rank": 0, "world_size": 2, "enable_sharding": False},
    ],
)
def test_wrong_ranks_are_reported_at_once(make, wrong):
    with pytest.raises(ConfigurationError):
        make(**({"enable_sharding": True} | wrong))

"""Single indices of a map dataset, asked for one after the other, are read ahead."""

from __future__ import annotations

import threading
from operator import methodcaller

import pytest
from torch.utils.data import DataLoader

from s3torch.core import S3Client, SequentialS3Reader
from s3torch.core.errors import NotFoundError
from s3torch.datasets import S3MapDataset

KEYS = [f"train/{number:02}" for number in range(12)]
DATA = [key.encode() for key in KEYS]

made: list[Recorded] = []


class Recorded(SequentialS3Reader):
    """A reader that tells when its download is started."""

    def prefetch(self):
        made.append(self)
        super().prefetch()


@pytest.fixture
def make(memory, fill):
    fill(*KEYS)
    made.clear()

    def make_dataset(**options):
        defaults = {"transform": methodcaller("read"), "s3client_config": memory}
        return S3MapDataset.from_prefix(
            "s3://data/train/", **(defaults | {"reader_constructor": Recorded} | options)
        )

    return make_dataset


def started():
    return [reader.key for reader in made]


def test_the_next_samples_are_started_and_each_object_is_read_once(make):
    dataset = make()
    assert [dataset[index] for index in range(4)] == DATA[:4]
    assert len(started()) > 4
    assert [dataset[index] for index in range(4, 12)] == DATA[4:]
    assert started() == KEYS[2:]


def test_a_batch_and_those_that_follow_it_are_started(make):
    dataset = make()
    assert dataset.__getitems__([0, 1, 2]) == DATA[:3]
    assert started() == KEYS[:3]
    assert dataset.__getitems__([3, 4, 5]) == DATA[3:6]
    assert len(started()) > 6
    assert dataset.__getitems__(range(6, 12)) == DATA[6:]
    assert started() == KEYS
    made.clear()
    assert dataset.__getitems__([9, 2, 9]) == [DATA[9], DATA[2], DATA[9]]
    assert started() == [KEYS[9], KEYS[2], KEYS[9]]


def test_an_error_in_a_batch_drops_the_rest(make, memory):
    dataset = make(prefetch=4)
    assert len(dataset) == 12
    with S3Client(s3client_config=memory) as client:
        client.delete_object("data", KEYS[1])
    with pytest.raises(NotFoundError):
        dataset.__getitems__([0, 1, 2, 3])
    assert [reader.closed for reader in made[2:]] == [True, True]
    made.clear()
    assert dataset.__getitems__([5, 3]) == [DATA[5], DATA[3]]
    assert started() == [KEYS[5], KEYS[3]]


def test_random_indices_start_nothing(make):
    dataset = make()
    assert [dataset[index] for index in (3, 1, 2, 7, -1, 0)] == [DATA[index] for index in (3, 1, 2, 7, 11, 0)]
    assert started() == []


def test_a_jump_and_a_close_drop_what_was_started(make):
    dataset = make(prefetch=3)
    for leave in (lambda: dataset[0], dataset.close):
        made.clear()
        assert [dataset[index] for index in (4, 5, 6)] == DATA[4:7]
        assert started() == KEYS[6:9]
        leave()
        assert [reader.closed for reader in made] == [False, True, True]


def test_an_early_break_leaves_nothing_behind(make):
    dataset = make()
    for number, _ in enumerate(dataset):
        if number == 4:
            break
    assert len(made) > 5
    assert all(reader.closed for reader in made[3:])


def test_dropping_the_dataset_leaves_nothing_behind(make):
    dataset = make()
    assert [dataset[index] for index in range(4)] == DATA[:4]
    del dataset
    assert all(reader.closed for reader in made[2:])


@pytest.mark.parametrize("off", [{"prefetch": 0}, {"transform": methodcaller("tell")}])
def test_it_can_be_switched_off(make, off):
    dataset = make(**off)
    list(dataset)
    assert (started() == []) == ("prefetch" in off)


def test_threads_do_not_disturb_each_other(make):
    dataset = make()
    parts = {}

    def read(name):
        parts[name] = [dataset[index] for index in range(12)]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(parts.values()) == [DATA] * 3


def test_a_forked_child_begins_anew(make, in_child):
    dataset = make()
    assert [dataset[index] for index in range(4)] == DATA[:4]
    assert in_child(lambda: [dataset[index] for index in range(4, 12)]) == DATA[4:]
    assert [dataset[index] for index in range(4, 12)] == DATA[4:]


class Labelled(S3MapDataset):
    """A subclass, of whose single samples a loader makes batches."""

    def __getitem__(self, index):
        return index, super().__getitem__(index)


def test_batches_of_a_subclass_are_read_ahead_too(memory, fill):
    fill(*KEYS)
    made.clear()
    dataset = Labelled.from_prefix(
        "s3://data/train/",
        transform=methodcaller("read"),
        s3client_config=memory,
        reader_constructor=Recorded,
    )
    loader = DataLoader(dataset, batch_size=5, collate_fn=list)
    assert [sample for batch in loader for sample in batch] == list(enumerate(DATA))
    assert started() == KEYS
    made.clear()
    assert dataset.__getitems__([9, 3, 6]) == [(9, DATA[9]), (3, DATA[3]), (6, DATA[6])]
    assert started() == [KEYS[9], KEYS[3], KEYS[6]]


class Twice(S3MapDataset):
    """A subclass that counts in another way."""

    def __len__(self):
        return 2 * super().__len__()

    def __getitem__(self, index):
        return index % 2, super().__getitem__(index // 2)


def test_a_subclass_may_count_as_it_likes(memory, fill):
    fill(*KEYS)
    made.clear()
    dataset = Twice.from_prefix(
        "s3://data/train/",
        transform=methodcaller("read"),
        s3client_config=memory,
        reader_constructor=Recorded,
    )
    loader = DataLoader(dataset, batch_size=4, collate_fn=list)
    assert [sample for batch in loader for sample in batch] == [
        (side, data) for data in DATA for side in (0, 1)
    ]
    # The first batch was foreseen wrongly, and no other.
    assert len(made) <= 4

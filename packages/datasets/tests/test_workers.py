"""Datasets in ``DataLoader`` workers of every kind, on a real server, after the parent used the client."""

from __future__ import annotations

import os
import threading
from functools import partial
from operator import methodcaller

import pytest
from torch.utils.data import DataLoader, RandomSampler

from s3torch.core.errors import NotFoundError
from s3torch.datasets import S3IterableDataset, S3MapDataset

KEYS = [f"train/{number:02}" for number in range(11)]
DATA = [key.encode() for key in KEYS]
CONTEXTS = [None, "fork", "spawn", "forkserver"]


@pytest.fixture
def options(server):
    return {"transform": methodcaller("read"), **server.options}


def loader_of(dataset, context, *, workers, **options):
    workers = workers if context else 0
    return DataLoader(dataset, num_workers=workers, multiprocessing_context=context, **options)


# A spawned worker takes seconds to import torch, so not every kind is tried with every number of them.
@pytest.mark.promise(4)
@pytest.mark.parametrize("context", CONTEXTS)
def test_the_iterable_dataset_shares_its_samples_out_to_two_workers(server, options, context):
    dataset = S3IterableDataset.from_prefix(server.uri("train/"), enable_sharding=True, **options)
    assert list(dataset) == DATA
    # The parent is in the middle of an epoch, with open readers, when the workers start.
    samples = iter(dataset)
    assert next(samples) == DATA[0]
    loader = loader_of(dataset, context, workers=2, batch_size=None)
    assert sorted(loader) == DATA
    assert list(samples) == DATA[1:]


# With "spawn" it is tried below.
@pytest.mark.parametrize("context", [None, "fork", "forkserver"])
def test_the_map_dataset_serves_batches_from_a_worker(server, options, context):
    dataset = S3MapDataset.from_prefix(server.uri("train/"), **options)
    assert dataset[3] == DATA[3]
    loader = loader_of(dataset, context, workers=1, batch_size=3)
    assert [sample for batch in loader for sample in batch] == DATA
    assert dataset.__getitems__([10, 0]) == [DATA[10], DATA[0]]


def test_workers_stay_for_several_epochs(server, options):
    dataset = S3MapDataset.from_prefix(server.uri("train/"), **options)
    loader = DataLoader(
        dataset,
        batch_size=4,
        sampler=RandomSampler(dataset),
        num_workers=2,
        multiprocessing_context="fork",
        persistent_workers=True,
    )
    for _ in range(3):
        assert sorted(sample for batch in loader for sample in batch) == DATA


@pytest.mark.promise(4)
@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
def test_workers_may_be_forked_while_threads_read(server, options, tmp_path, cls):
    # A lock that a thread holds in that moment is never given back in the worker.
    dataset = cls.from_prefix(server.uri("train/"), hedge_after="p95", cache_dir=tmp_path, **options)
    # That is true of the import of a module, too, so all are there before.
    assert list(dataset) == DATA
    done = threading.Event()

    def read_all():
        while not done.is_set():
            assert list(dataset) == DATA

    threads = [threading.Thread(target=read_all) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        loader = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context="fork")
        for _ in range(4):
            assert [sample for batch in loader for sample in batch] == DATA
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_an_epoch_may_end_early(server, options):
    dataset = S3IterableDataset.from_prefix(server.uri("train/"), **options)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork")
    for _ in range(2):
        assert next(iter(loader)) == DATA[0]


def test_readers_travel_from_workers_unread(server):
    dataset = S3IterableDataset.from_prefix(server.uri("train/"), **server.options)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork")
    assert [(reader.key, reader.read()) for reader in loader] == list(zip(KEYS, DATA, strict=True))


LISTING = """
import os

from s3torch.core import S3BucketKeyData


def objects(client, *, bucket, log):
    with open(log, "a") as lines:
        lines.write(f"{os.getpid()}\\n")
    for page in client.list_objects(bucket, "train/"):
        for info in page.object_info:
            yield S3BucketKeyData(bucket, info.key, info)
"""


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_share_one_listing(server, options, context, tmp_path, monkeypatch):
    (tmp_path / "listing_of_a_user.py").write_text(LISTING)
    monkeypatch.syspath_prepend(tmp_path)
    from listing_of_a_user import objects

    log = tmp_path / "log"
    dataset = S3MapDataset(
        get_dataset_objects=partial(objects, bucket=server.bucket, log=str(log)), **options
    )
    loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context=context)
    if context == "fork":
        # Nobody tells a dataset that its process is about to fork.
        assert len(loader) == 3
    for _ in range(2 if context == "fork" else 1):
        assert [sample for batch in loader for sample in batch] == DATA
    assert log.read_text().split() == [str(os.getpid())]


@pytest.mark.promise(6)
@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_s3_keep_their_class(server, options, workers):
    context = "fork" if workers else None
    dataset = S3MapDataset.from_objects(server.uri("none"), **options)
    loader = DataLoader(dataset, num_workers=workers, multiprocessing_context=context)
    with pytest.raises(NotFoundError, match="none") as caught:
        list(loader)
    assert isinstance(caught.value, FileNotFoundError)
    missing = S3IterableDataset.from_prefix("s3://s3torch-no-such-bucket/", **options)
    loader = DataLoader(missing, num_workers=workers, multiprocessing_context=context)
    with pytest.raises(NotFoundError, match="s3torch-no-such-bucket"):
        list(loader)


def test_errors_of_transforms_keep_their_class_and_name_the_object(server, options):
    fail = methodcaller("no_such_method")
    dataset = S3IterableDataset.from_prefix(server.uri("train/"), **{**options, "transform": fail})
    loader = DataLoader(dataset, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(AttributeError, match="while transforming s3://.*train/00"):
        list(loader)

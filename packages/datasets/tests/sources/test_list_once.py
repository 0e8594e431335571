"""How often S3 is asked for a listing, and by whom."""

from __future__ import annotations

import gc
import os
from multiprocessing import get_context
from operator import methodcaller
from typing import TYPE_CHECKING

import pytest
import torch
from torch.utils.data import DataLoader

from s3torch.core import S3BucketKeyData, S3ClientConfig
from s3torch.datasets import S3IndexedTarDataset, S3IterableDataset, S3MapDataset, S3ShardDataset
from s3torch.datasets.sources._shared import SharedFolder, shared_pages
from s3torch.testing.faults import Fault

if TYPE_CHECKING:
    from pathlib import Path

DATA = [f"train/{number:02}".encode() for number in range(11)]

# Three workers are more than some machines have cores for.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def make(server, proxy):
    def make_dataset(cls, **options):
        places = server.options | {"endpoint": proxy.endpoint}
        return cls.from_prefix(server.uri("train/"), transform=methodcaller("read"), **(places | options))

    return make_dataset


@pytest.fixture
def listed(proxy):
    return lambda: sum("list-type" in request.query for request in proxy.requests("GET"))


# With "spawn" it is tried in test_workers.py.
@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_workers_of_a_map_dataset_list_once_though_nobody_asked_for_the_length(make, listed, context):
    loader = DataLoader(
        make(S3MapDataset), batch_size=4, sampler=range(11), num_workers=2, multiprocessing_context=context
    )
    for _ in range(2 if context == "fork" else 1):
        assert [sample for batch in loader for sample in batch] == DATA
    # The parent has it from its workers, or they from it.
    assert len(loader.dataset) == 11
    assert listed() == 1


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_that_share_the_samples_list_once_an_epoch(make, listed, persistent):
    loader = DataLoader(
        make(S3IterableDataset, enable_sharding=True),
        batch_size=None,
        num_workers=3,
        multiprocessing_context="fork",
        persistent_workers=persistent,
    )
    for epoch in range(1, 4):
        # Seeds may be the same in each epoch.
        torch.manual_seed(0)
        assert sorted(loader) == DATA
        assert listed() == epoch


@pytest.mark.parametrize("cls", [S3ShardDataset, S3IndexedTarDataset])
def test_workers_of_shards_list_once_for_all_epochs(server, seaweedfs, proxy, listed, make_tar, cls):
    bucket = seaweedfs.create_bucket()
    client = seaweedfs.client()
    for number in range(4):
        client.put_object(Bucket=bucket, Key=f"{number}.tar", Body=make_tar([(f"{number}.txt", b"x")]))
    client.close()
    dataset = cls.from_prefix(f"s3://{bucket}/", **server.options | {"endpoint": proxy.endpoint})
    sampler = {"sampler": range(4)} if cls is S3IndexedTarDataset else {}
    loader = DataLoader(
        dataset, batch_size=1, collate_fn=list, num_workers=2, multiprocessing_context="fork", **sampler
    )
    for _ in range(2):
        assert sorted(sample["__key__"] for batch in loader for sample in batch) == list("0123")
    assert listed() == 1


@pytest.mark.parametrize("options", [{"shuffle": True}, {"uneven": "pad"}])
def test_workers_that_need_the_whole_listing_list_once_for_all_epochs(make, listed, options):
    dataset = make(S3IterableDataset, enable_sharding=True, **options)
    loader = DataLoader(dataset, batch_size=None, num_workers=3, multiprocessing_context="fork")
    for epoch in range(3):
        dataset.set_epoch(epoch)
        assert sorted(loader) == DATA
    assert listed() == 1


def test_a_listing_that_fails_in_a_worker_is_made_by_the_next(make, proxy):
    rule = proxy.add(Fault.error(403, "AccessDenied"), key="train")
    dataset = make(S3MapDataset)
    loader = DataLoader(
        dataset, batch_size=4, sampler=range(11), num_workers=2, multiprocessing_context="fork"
    )
    batches = iter(loader)
    with pytest.raises(PermissionError):
        next(batches)
    # An iterator that has failed is in a cycle; when it is collected, it waits for its workers in vain.
    batches._shutdown_workers()
    proxy.remove(rule)
    assert [sample for batch in loader for sample in batch] == DATA


def test_the_folder_goes_away_with_the_dataset(make):
    dataset = make(S3MapDataset)
    loader = DataLoader(
        dataset, batch_size=4, sampler=range(11), num_workers=1, multiprocessing_context="fork"
    )
    assert not dataset._folder.path.exists()
    list(loader)
    path = dataset._folder.path
    assert path.stat().st_mode & 0o777 == 0o700
    del dataset, loader
    gc.collect()
    assert not path.exists()


def test_without_a_place_for_the_folder_every_worker_lists(make, listed, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/dev/null/none")
    for cls, options in ((S3MapDataset, {}), (S3IterableDataset, {"enable_sharding": True})):
        before = listed()
        sampler = {"sampler": range(11)} if cls is S3MapDataset else {}
        loader = DataLoader(
            make(cls, **options), batch_size=4, num_workers=2, multiprocessing_context="fork", **sampler
        )
        assert sorted(sample for batch in loader for sample in batch) == DATA
        assert listed() - before == 2


class Pages:
    """A source of five pages, two objects each, that notes who asked for which."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def page(self, client, cursor):
        number = int(cursor or 0)
        with self.log.open("a") as lines:
            lines.write(f"{number}\n")
        objects = [S3BucketKeyData("data", f"{number}{letter}") for letter in "ab"]
        return objects, str(number + 1) if number < 4 else None

    def __call__(self, client):
        cursor = None
        while True:
            objects, cursor = self.page(client, cursor)
            yield from objects
            if cursor is None:
                return


def read_all(folder, source, answers):
    answers.put([item.key for item in shared_pages(folder, "1", source, None)])


def test_each_page_is_listed_by_one_process(tmp_path):
    folder, source = SharedFolder(), Pages(tmp_path / "log")
    context = get_context("fork")
    answers = context.Queue()
    readers = [context.Process(target=read_all, args=(folder, source, answers)) for _ in range(4)]
    for reader in readers:
        reader.start()
    found = [answers.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join()
    assert found == [[f"{number}{letter}" for number in range(5) for letter in "ab"]] * 4
    assert source.log.read_text().split() == list("01234")


def test_no_page_is_listed_before_it_is_needed(tmp_path):
    folder, source = SharedFolder(), Pages(tmp_path / "log")
    one, other = (shared_pages(folder, "1", source, None) for _ in range(2))
    assert [next(one).key for _ in range(3)] == ["0a", "0b", "1a"]
    assert [next(other).key for _ in range(5)] == ["0a", "0b", "1a", "1b", "2a"]
    assert source.log.read_text().split() == list("012")


def test_a_page_that_a_dead_worker_left_half_is_listed_again(tmp_path):
    folder, source = SharedFolder(), Pages(tmp_path / "log")
    first = shared_pages(folder, "1", source, None)
    for _ in range(4):
        next(first)
    path = folder.path / "pages-1"
    os.truncate(path, path.stat().st_size - 3)
    assert [item.key for item in shared_pages(folder, "1", source, None)][2:4] == ["1a", "1b"]
    assert source.log.read_text().split() == list("011234")


def test_the_pages_of_an_epoch_go_when_nobody_reads_them(tmp_path):
    folder, source = SharedFolder(), Pages(tmp_path / "log")
    first, second, third = (shared_pages(folder, epoch, source, None) for epoch in "123")

    def kept():
        return sorted(path.name for path in folder.path.glob("pages-*"))

    next(first)
    next(second)
    assert kept() == ["pages-1", "pages-2"]
    first.close()
    assert [item.key for item in second][-1] == "4b"
    next(third)
    assert kept() == ["pages-3"]


def test_datasets_of_other_sources_list_as_ever(memory, tmp_path):
    source = Pages(tmp_path / "log")
    config = S3ClientConfig(transport="memory", endpoint=memory.endpoint)
    dataset = S3IterableDataset(None, source.__call__, s3client_config=config)
    assert len(list(dataset)) == len(list(dataset)) == 10
    assert source.log.read_text().split() == list("01234") * 2

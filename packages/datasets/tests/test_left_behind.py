"""What an epoch that ends early, or is slow, leaves behind: nothing. On a real server."""

from __future__ import annotations

import gc
import threading
from operator import methodcaller
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from s3torch.core import S3ClientConfig
from s3torch.core._memory import Memory
from s3torch.datasets import S3IndexedTarDataset, S3IterableDataset, S3MapDataset, S3ShardDataset
from s3torch.testing.faults import FaultProxy

MIB = 1024 * 1024
COUNT = 48
MEMORY = 64 * MIB


@pytest.fixture(scope="module")
def large(seaweedfs):
    bucket = seaweedfs.create_bucket()
    client = seaweedfs.client()
    for number in range(COUNT):
        client.put_object(Bucket=bucket, Key=f"large/{number:02}", Body=bytes(2 * MIB))
    client.close()
    return bucket


@pytest.fixture(scope="module")
def shards(seaweedfs, make_tar):
    """Six archives, which have two samples of 12 MiB each."""
    bucket = seaweedfs.create_bucket()
    client = seaweedfs.client()
    archive = make_tar([(f"{number}.bin", bytes(12 * MIB)) for number in range(2)])
    for number in range(6):
        client.put_object(Bucket=bucket, Key=f"shards/{number}.tar", Body=archive)
    client.close()
    return bucket


@pytest.fixture
def make(server, large):
    def make_dataset(cls, **options):
        settings = {"transform": methodcaller("read")} | server.options
        return cls.from_prefix(f"s3://{large}/large/", **(settings | options))

    return make_dataset


def sockets():
    """How many sockets this process has open."""
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(link.startswith("socket:") for link in links)


def settle(condition):
    """Waits until something holds that other threads bring about."""
    waiting = threading.Event()
    for _ in range(2000):
        if condition():
            return
        waiting.wait(0.02)
    raise AssertionError("it did not settle")


def samples_of(dataset):
    """The samples one by one, of each kind of dataset."""
    if isinstance(dataset, S3IterableDataset):
        yield from dataset
    else:
        yield from (dataset[index] for index in range(len(dataset)))


def check_that_nothing_is_left_of(interrupted):
    """Interrupts twice, because a process has one timer for all transports, which stays."""
    interrupted()
    threads, open_sockets = set(threading.enumerate()), sockets()
    budget = Memory.of_this_process(None).budget
    used = budget.used
    interrupted()
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    # A transport may keep idle connections for others of equal settings, for up to 30 seconds.
    settle(lambda: sockets() <= open_sockets)
    assert budget.used == used


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
def test_an_early_break_leaves_no_thread_and_no_socket(make, cls):
    def interrupted():
        with make(cls, prefetch=8) as dataset:
            for number, sample in enumerate(samples_of(dataset)):
                assert len(sample) == 2 * MIB
                if number == 5:
                    break
        gc.collect()

    check_that_nothing_is_left_of(interrupted)


@pytest.mark.parametrize("cls", [S3ShardDataset, S3IndexedTarDataset])
def test_an_early_break_within_shards_leaves_nothing(server, shards, cls):
    def interrupted():
        with cls.from_prefix(f"s3://{shards}/shards/", **server.options) as dataset:
            samples = iter(dataset)
            assert len(next(samples)["bin"]) == 12 * MIB
            del samples
        gc.collect()

    check_that_nothing_is_left_of(interrupted)


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
def test_a_slow_consumer_holds_no_more_than_what_is_ahead(make, server, cls):
    with (
        FaultProxy(server.options["endpoint"]) as proxy,
        make(cls, prefetch=4, endpoint=proxy.endpoint) as dataset,
    ):
        for taken, _ in enumerate(samples_of(dataset), 1):
            # Whatever time the consumer takes, nobody asks for more meanwhile.
            begun = {request.key for request in proxy.requests("GET") if "/large" in request.path}
            assert len(begun) <= taken + 5
            if taken == 12:
                break


@pytest.mark.promise(3)
def test_what_is_ahead_is_bounded_by_the_memory_of_the_process(make, server):
    config = S3ClientConfig(memory_limit=MEMORY)
    with (
        FaultProxy(server.options["endpoint"]) as proxy,
        make(S3IterableDataset, endpoint=proxy.endpoint, s3client_config=config) as dataset,
    ):
        next(iter(dataset))
        begun = {request.key for request in proxy.requests("GET") if "large/" in request.path}
        # A quarter of the limit, that is eight objects, and the one that was taken.
        assert len(begun) <= 10
        assert Memory.of_this_process(MEMORY).budget.used == 0


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
def test_pinned_memory_is_accepted(server, cls):
    dataset = cls.from_prefix(server.uri("train/"), transform=methodcaller("read"), **server.options)
    loader = DataLoader(dataset, batch_size=4, pin_memory=True)
    assert len([sample for batch in loader for sample in batch]) == 11


def test_an_early_break_ends_persistent_workers_with_their_loader(make):
    loader = DataLoader(
        make(S3IterableDataset, enable_sharding=True),
        batch_size=None,
        num_workers=2,
        multiprocessing_context="fork",
        persistent_workers=True,
    )
    samples = iter(loader)
    next(samples)
    workers = samples._workers
    assert all(worker.is_alive() for worker in workers)
    # The next epoch begins with the same workers, which drop what they had begun.
    assert sum(len(sample) for sample in loader) == COUNT * 2 * MIB
    del samples, loader
    gc.collect()
    for worker in workers:
        worker.join(timeout=30)
        assert worker.exitcode == 0

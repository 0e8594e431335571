"""Counters of several processes, forked and spawned."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import warnings

import pytest

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.observers import SharedCounters, observe
from s3torch.core.transports.memory import MemoryStore

PATIENCE = 20


def work(counters, number):
    """What a worker does; two requests in all."""
    counters.observe_worker(number)
    MemoryStore.at("http://worker.invalid").create_bucket("bucket")
    config = S3ClientConfig(transport="memory", endpoint="http://worker.invalid")
    with S3Client("us-east-1", s3client_config=config) as client:
        with client.put_object("bucket", "k") as writer:
            writer.write(b"x" * 10)
        client.get_object("bucket", "k").read()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_are_in_the_total(client, tmp_path, method):
    # Of a worker this busy, only what it writes at its end is complete.
    counters = SharedCounters(tmp_path / "counts", seconds=3600)
    with observe(counters):
        client.exists("bucket", "k")
        context = multiprocessing.get_context(method)
        workers = [context.Process(target=work, args=(counters, number)) for number in range(2)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            for worker in workers:
                worker.start()
        for worker in workers:
            worker.join(PATIENCE)
            assert worker.exitcode == 0
    total = counters.total()
    assert (total.requests, total.bytes_read, total.bytes_written) == (5, 20, 20)
    assert counters.snapshot().requests == 1
    # Everything is there also for another process, and for a copy.
    assert SharedCounters(tmp_path / "counts").total().requests >= 5


def test_a_busy_process_writes_as_it_counts(client, tmp_path):
    counters = SharedCounters(tmp_path, seconds=0)
    with observe(counters):
        for number in range(3):
            client.exists("bucket", str(number))
            assert SharedCounters(tmp_path).total().requests == number + 1


def test_a_copy_counts_from_zero(client, tmp_path):
    counters = SharedCounters(tmp_path, seconds=0)
    with observe(counters):
        client.exists("bucket", "k")
    copy = pickle.loads(pickle.dumps(counters))
    assert copy.snapshot().requests == 0
    assert copy.total().requests == 1


def test_a_temporary_folder_goes_away(python):
    code = """
    from s3torch.core.observers import SharedCounters
    counters = SharedCounters()
    assert counters.folder.is_dir()
    print(counters.folder)
    """
    from pathlib import Path

    folder = Path(python(code).stdout.strip())
    assert folder.name.startswith("s3torch-")
    assert not folder.exists()


@pytest.mark.promise(10)
def test_files_of_other_users_are_not_loaded(client, tmp_path, monkeypatch):
    counters = SharedCounters(tmp_path, seconds=0)
    with observe(counters):
        client.exists("bucket", "k")
    assert SharedCounters(tmp_path).total().requests == 1
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert SharedCounters(tmp_path).total().requests == 0


def test_counting_outlives_the_folder(client, tmp_path):
    import shutil

    counters = SharedCounters(tmp_path / "counts", seconds=0)
    with observe(counters):
        shutil.rmtree(counters.folder)
        client.exists("bucket", "k")
    assert counters.total().requests == 1

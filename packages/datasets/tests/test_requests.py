"""How many requests a dataset sends, of which kind, counted where they arrive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from operator import methodcaller

import pytest
from torch.utils.data import DataLoader

from s3torch.datasets import S3IterableDataset, S3MapDataset
from s3torch.testing.faults import Fault

KEYS = [f"train/{number:02}" for number in range(11)]
DATA = [key.encode() for key in KEYS]


@pytest.fixture
def options(server, proxy):
    return server.options | {"endpoint": proxy.endpoint, "transform": methodcaller("read")}


@pytest.fixture
def sent(proxy):
    """Counts requests by what they ask for."""

    def count():
        kinds = Counter()
        for request in proxy.requests():
            kinds["LIST" if "list-type" in request.query else request.method] += 1
        return dict(kinds)

    return count


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
def test_a_listed_sample_is_one_get(server, options, sent, cls):
    dataset = cls.from_prefix(server.uri("train/"), **options)
    assert sent() == {}
    assert list(dataset) == DATA
    assert sent() == {"LIST": 1, "GET": len(DATA)}


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
def test_a_named_sample_is_one_get(server, options, sent, cls):
    dataset = cls.from_objects([server.uri(key) for key in KEYS], **options)
    assert list(dataset) == DATA
    assert sent() == {"GET": len(DATA)}


def test_batches_send_no_more_than_samples(server, options, sent):
    dataset = S3MapDataset.from_prefix(server.uri("train/"), **options)
    loader = DataLoader(dataset, batch_size=4, shuffle=True, num_workers=2, multiprocessing_context="fork")
    assert sorted(sample for batch in loader for sample in batch) == DATA
    assert sent() == {"LIST": 1, "GET": len(DATA)}


@pytest.mark.filterwarnings("ignore:several workers")
def test_without_sharding_every_worker_yields_everything(server, options):
    dataset = S3IterableDataset.from_prefix(server.uri("train/"), **options)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert sorted(loader) == sorted(DATA * 2)


INTERRUPTED = """
import sys
from operator import methodcaller

from torch.utils.data import DataLoader

from s3torch.datasets import S3IterableDataset, S3MapDataset


def main(kind, uri, region, endpoint):
    cls = {"map": S3MapDataset, "iterable": S3IterableDataset}[kind]
    dataset = cls.from_prefix(uri, region=region, endpoint=endpoint, transform=methodcaller("read"))
    for number, _ in enumerate(DataLoader(dataset, batch_size=None)):
        print(number, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.parametrize("kind", ["map", "iterable"])
def test_an_interrupt_within_a_transfer_ends_the_process(server, proxy, tmp_path, kind):
    script = tmp_path / "train.py"
    script.write_text(INTERRUPTED)
    proxy.add(Fault(latency=300), method="GET", key="train/05")
    run = [sys.executable, str(script), kind, server.uri("train/"), server.options["region"], proxy.endpoint]
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert [process.stdout.readline() for _ in range(5)] == [f"{number}\n" for number in range(5)]
        waiting = threading.Event()
        while not proxy.requests("GET", key="train/05"):
            assert process.poll() is None
            waiting.wait(0.02)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "KeyboardInterrupt" in errors
    assert process.returncode not in {0, -signal.SIGKILL}

"""Late answers get a second request, on a real server whose proxy holds some of them back."""

from __future__ import annotations

import pickle
from operator import methodcaller

import pytest

from s3torch.core.errors import ConfigurationError, NotFoundError
from s3torch.datasets import S3IterableDataset, S3MapDataset
from s3torch.datasets._opening import Hedging
from s3torch.testing.faults import Fault

DATA = [f"train/{number:02}".encode() for number in range(11)]
FOREVER = 600


@pytest.fixture
def make(server, proxy):
    def make_dataset(cls=S3MapDataset, **options):
        defaults = {"transform": methodcaller("read"), "hedge_after": 0.01}
        places = server.options | {"endpoint": proxy.endpoint}
        return cls.from_prefix(server.uri("train/"), **(defaults | places | options))

    return make_dataset


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
def test_the_second_request_wins_when_the_first_hangs(make, proxy, cls):
    with make(cls) as dataset:
        proxy.add(Fault(latency=FOREVER), method="GET", key="train/04", times=1)
        assert list(dataset) == DATA
        assert len(proxy.requests("GET", key="train/04")) == 2
        assert dataset.hedged >= 1


def test_nothing_is_hedged_unless_it_is_asked_for(make, proxy):
    with make(hedge_after=None) as dataset:
        proxy.add(Fault(latency=0.05), method="GET", key="train/04", times=1)
        assert list(dataset) == DATA
        assert len(proxy.requests("GET", key="train/")) == len(DATA)
        assert dataset.hedged == 0


def test_answers_in_time_are_not_hedged(make, proxy):
    with make(hedge_after=FOREVER) as dataset:
        assert list(dataset) == DATA
        assert dataset.hedged == 0


def test_large_objects_are_not_hedged(server, proxy, make):
    from s3torch.core import S3Client

    with S3Client(**server.options) as client, client.put_object(server.bucket, "large/1") as writer:
        writer.write(bytes(2 * 1024 * 1024))
    with S3MapDataset.from_prefix(
        server.uri("large/"),
        region=server.options["region"],
        endpoint=proxy.endpoint,
        transform=methodcaller("read"),
        hedge_after=0.0001,
    ) as dataset:
        assert len(dataset[0]) == 2 * 1024 * 1024
        assert dataset.hedged == 0


def test_an_error_of_both_is_raised(make, proxy):
    with make() as dataset:
        assert len(dataset) == 11
        proxy.add(Fault(latency=0.05) | Fault.error(404, "NoSuchKey"), method="GET", key="train/04")
        with pytest.raises(NotFoundError):
            dataset[4]


def test_a_dataset_that_hedges_travels(make):
    with make() as dataset:
        assert list(dataset) == DATA
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy[3] == DATA[3]
        copy.close()


def test_a_quantile_waits_for_enough_answers():
    hedging = Hedging("p90", lambda: None)
    for number in range(31):
        hedging.observe(number)
    assert hedging.late_after() is None
    for number in range(31, 100):
        hedging.observe(number)
    assert hedging.late_after() == 90
    assert Hedging(0.5, lambda: None).late_after() == 0.5


@pytest.mark.parametrize("wrong", [0, -1, True, "p0", "p100", "95", "slow"])
def test_a_wrong_patience_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="hedge_after"):
        S3MapDataset.from_prefix("s3://data/", hedge_after=wrong)

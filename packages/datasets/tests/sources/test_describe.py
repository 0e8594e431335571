"""Summaries of listings, and progress while they are made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core import S3BucketKeyData
from s3torch.core.errors import ConfigurationError
from s3torch.core.models import ObjectInfo
from s3torch.datasets import S3IndexedTarDataset, S3MapDataset, S3ShardDataset
from s3torch.datasets.sources._sources import ListingProgress, PrefixSource, ReportedSource
from s3torch.datasets.sources._table import describe_objects


def item(key, size):
    info = None if size is None else ObjectInfo(key, '"etag"', size, 0)
    return S3BucketKeyData("data", key, info)


def test_a_summary_can_be_read():
    objects = [item(f"a/{number}.JPG", 100 * number) for number in range(11)]
    objects += [item("b/.hidden", None), item("b/x.tar.gz", 5_000_000_000)]
    summary = describe_objects(objects, estimated_samples=123456)
    assert (summary.objects, summary.bytes, summary.unknown_sizes) == (13, 5_000_005_500, 1)
    assert summary.quantiles["min"] == 0
    assert summary.quantiles["max"] == 5_000_000_000
    assert summary.suffixes == {".jpg": 11, "": 1, ".gz": 1}
    lines = repr(summary).splitlines()
    assert lines[0] == "13 objects, 4.7 GiB, about 123,456 samples"
    assert lines[1] == "1 of unknown size"
    assert lines[-1] == "suffixes: .jpg 11, none 1, .gz 1"


@given(st.lists(st.one_of(st.none(), st.integers(0, 2**50))))
def test_counts_add_up(sizes):
    summary = describe_objects(item("key", size) for size in sizes)
    known = [size for size in sizes if size is not None]
    assert summary.objects == len(sizes)
    assert summary.bytes == sum(known)
    assert sum(summary.histogram.values()) == len(known)
    for low, count in summary.histogram.items():
        inside = [size for size in known if (low <= size < 2 * low if low else size == 0)]
        assert len(inside) == count
    values = list(summary.quantiles.values())
    assert values == sorted(values)
    assert repr(summary)


def test_shards_tell_how_many_samples_they_have(memory, store, make_tar):
    for number in range(3):
        store.put("data", f"{number}.tar", make_tar([(f"{sample}.txt", b"x") for sample in range(5)]))
    options = {"region": "us-east-1", "s3client_config": memory}
    shards = S3ShardDataset.from_prefix("s3://data/", **options)
    assert shards.describe().estimated_samples is None
    assert shards.describe(count_samples=True).estimated_samples == 15
    indexed = S3IndexedTarDataset.from_prefix("s3://data/", **options).describe()
    assert (indexed.objects, indexed.estimated_samples) == (3, 15)


def test_progress_is_reported(memory, store):
    for number in range(1200):
        store.put("data", f"{number:04}", b"ab")
    reports = []
    source = ReportedSource(PrefixSource.from_uri("s3://data/"), reports.append)
    dataset = S3MapDataset("us-east-1", source, s3client_config=memory)
    assert len(dataset) == 1200
    assert reports == [ListingProgress(1000, 2000), ListingProgress(1200, 2400, done=True)]


def test_tqdm_shows_the_count(memory, fill, capsys):
    fill("a", "b")
    source = ReportedSource(PrefixSource.from_uri("s3://data/"))
    assert len(S3MapDataset("us-east-1", source, s3client_config=memory)) == 2
    assert "listing: 2 objects" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="report must be"):
        ReportedSource(source, "rich")


def test_datasets_of_objects_describe_themselves(memory, fill):
    fill("a.jpg", "b.jpg")
    summary = S3MapDataset.from_prefix("s3://data/", region="us-east-1", s3client_config=memory).describe()
    assert (summary.objects, summary.bytes, summary.estimated_samples) == (2, 10, 2)
    assert summary.suffixes == {".jpg": 2}

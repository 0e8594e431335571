"""Samples of tar archives by their number: indexes, and how they are read."""

from __future__ import annotations

import json
import logging
import pickle
import random
from operator import itemgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.errors import ConfigurationError, ObjectChangedError
from s3torch.datasets import S3IndexedTarDataset, S3ShardDataset
from s3torch.datasets.formats import DamagedShardError
from s3torch.datasets.shards._tar_format import TarIndex

FILES = [
    [(f"d/{shard}-{number}.{suffix}", b"%d%d" % (shard, number) * 400) for number in range(4)]
    for shard, suffix in enumerate(["jpg", "txt"])
]


@pytest.fixture
def make(memory, store, make_tar):
    for number, files in enumerate(FILES):
        extra = [(f"d/{number}-9.a", b""), (f"d/{number}-9.b.c", b"x" * 700)]
        store.put("data", f"train/{number}.tar", make_tar([*files, *extra]))

    def make_dataset(uri="s3://data/train/", **options):
        return S3IndexedTarDataset.from_prefix(uri, region="us-east-1", s3client_config=memory, **options)

    return make_dataset


def test_samples_are_those_of_the_stream(make, memory):
    stream = S3ShardDataset.from_prefix("s3://data/train/", region="us-east-1", s3client_config=memory)
    expected = list(stream)
    dataset = make()
    assert len(dataset) == len(expected) == 10
    assert list(dataset) == expected
    assert [dataset[number] for number in range(-10, 10)] == expected * 2
    assert dataset.__getitems__([9, 0, 4]) == [expected[9], expected[0], expected[4]]
    for number in (10, -11):
        with pytest.raises(IndexError, match="10 samples"):
            dataset[number]
    assert pickle.loads(pickle.dumps(dataset))[3] == expected[3]


def test_large_samples_come_in_parts(memory, store, make_tar):
    data = random.Random(1).randbytes(12_000_000)
    store.put("data", "large.tar", make_tar([("a.txt", b"small"), ("b.bin", data)]))
    config = S3ClientConfig(transport="memory", endpoint=memory.endpoint, part_size=5 * 1024 * 1024)
    dataset = S3IndexedTarDataset.from_objects("s3://data/large.tar", s3client_config=config)
    assert dataset[1]["bin"] == data


@pytest.mark.parametrize("location", [None, "s3://data/indexes", "folder"])
def test_indexes_are_saved_and_used(make, store, location, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="s3torch.datasets")
    location = str(tmp_path / "cache") if location == "folder" else location
    first = list(make(index_location=location, save_indexes=True))
    assert caplog.text.count("indexing s3://data/train/") == 2
    caplog.clear()
    assert list(make(index_location=location)) == first
    assert "indexing" not in caplog.text


def test_an_index_of_an_older_archive_is_made_again(make, store, make_tar, caplog):
    dataset = make(save_indexes=True)
    assert len(dataset) == 10
    store.put("data", "train/0.tar", make_tar([("new.txt", b"new")]))
    with pytest.raises(ObjectChangedError):
        dataset[0]
    again = make()
    assert (len(again), again[0]["txt"]) == (6, b"new")
    assert "s3://data/train/0.tar belongs to an older archive" in caplog.text
    # Without a listing, the index is believed, and the first read tells.
    unlisted = S3IndexedTarDataset.from_objects(
        "s3://data/train/0.tar", s3client_config=again._client.s3client_config
    )
    with pytest.raises(ObjectChangedError):
        unlisted[0]


@pytest.mark.parametrize("spelling", ["{}", 'W/"{}"'])
def test_an_index_holds_however_the_etag_is_spelled(make, store, spelling, caplog):
    caplog.set_level(logging.INFO, logger="s3torch.datasets")
    samples = list(make(save_indexes=True))
    caplog.clear()
    for number in range(len(FILES)):
        key = f"train/{number}.tar.index.json"
        index = json.loads(store.get("data", key).data)
        index["etag"] = spelling.format(index["etag"].strip('"'))
        store.put("data", key, json.dumps(index).encode())
    assert list(make()) == samples
    assert "indexing" not in caplog.text


def test_a_damaged_archive_and_a_damaged_index_are_errors(make, store):
    store.put("data", "bad/a.tar", b"x" * 512)
    with pytest.raises(DamagedShardError, match=r"s3://data/bad/a.tar.*offset 0"):
        len(make("s3://data/bad/"))
    for content in (b"", b"{}", b'{"format": "other", "version": 1}', b"[]"):
        store.put("data", "train/0.tar.index.json", content)
        with pytest.raises(ConfigurationError):
            len(make())


def test_workers_of_every_kind(make, server, seaweedfs, make_tar):
    bucket = seaweedfs.create_bucket()
    client = seaweedfs.client()
    client.put_object(Bucket=bucket, Key="a.tar", Body=make_tar(FILES[0]))
    client.close()
    dataset = S3IndexedTarDataset.from_prefix(
        f"s3://{bucket}/", transform=itemgetter("__key__"), **server.options
    )
    for context in ("fork", "spawn"):
        loader = DataLoader(
            dataset, batch_size=3, num_workers=1, multiprocessing_context=context, collate_fn=list
        )
        assert [key for batch in loader for key in batch] == [f"d/0-{number}" for number in range(4)]


def test_a_sample_is_one_request(server, seaweedfs, fault_proxy, make_tar):
    bucket = seaweedfs.create_bucket()
    client = seaweedfs.client()
    client.put_object(Bucket=bucket, Key="a.tar", Body=make_tar(FILES[0]))
    client.close()
    proxy = fault_proxy(seaweedfs)
    options = {"region": seaweedfs.region, "endpoint": proxy.endpoint}
    with S3Client(**options) as ours:
        index = TarIndex.build(ours, bucket, "a.tar")
        assert len(proxy.requests()) == 2
        with ours.put_object(bucket, "a.tar.index.json") as writer:
            writer.write(index.to_json())
    before = len(proxy.requests())
    dataset = S3IndexedTarDataset.from_prefix(f"s3://{bucket}/", **options)
    order = [3, 1, 0, 2, 3]
    assert [sample["__key__"] for sample in dataset.__getitems__(order)] == [f"d/0-{n}" for n in order]
    assert dataset[2]["jpg"] == FILES[0][2][1]
    dataset.close()
    # A listing, the index, and one for each sample.
    assert len(proxy.requests()) - before == 2 + 6


SAMPLES = st.lists(
    st.lists(
        st.tuples(st.sampled_from(["jpg", "cls", "a.b"]), st.integers(0, 9999)),
        min_size=1,
        max_size=3,
        unique_by=lambda file: file[0],
    ),
    max_size=5,
)


@given(SAMPLES)
def test_an_index_is_the_same_after_a_round_trip(samples):
    files = [file for sample in samples for file in sample]
    index = TarIndex(
        '"etag"',
        10**12,
        keys=[f"é{number}" for number in range(len(samples))],
        parts=[len(sample) for sample in samples],
        suffixes=["jpg", "cls", "a.b"],
        suffix=[["jpg", "cls", "a.b"].index(suffix) for suffix, _ in files],
        offset=[10**11 + 10_000 * number for number in range(len(files))],
        length=[length for _, length in files],
    )
    data = index.to_json()
    again = TarIndex.from_json(data)
    assert again.to_json() == data
    assert [again[number] for number in range(len(again))] == [index[number] for number in range(len(index))]
    for number, sample in enumerate(samples):
        found = again[number]
        assert [(suffix, length) for suffix, _, length in found.parts] == sample
        assert found.stop - found.start == found.parts[-1][1] + found.parts[-1][2] or len(sample) > 1
    broken = json.loads(data)
    broken["offset"].append(1)
    with pytest.raises(ConfigurationError, match="do not fit"):
        TarIndex.from_json(json.dumps(broken).encode())

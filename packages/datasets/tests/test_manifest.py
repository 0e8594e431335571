"""Stored listings: built, saved, refreshed, and read from in place of a listing."""

from __future__ import annotations

import json
import pickle
from operator import methodcaller

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core import ObjectInfo, S3BucketKeyData, S3Client
from s3torch.core.errors import ConfigurationError, NotFoundError, ObjectChangedError
from s3torch.datasets import Manifest, ResumableLoader, S3IterableDataset, S3MapDataset, S3Sampler
from s3torch.datasets._manifest_files import GzippedJsonLines, JsonLines, Parquet
from s3torch.datasets.sources import ObjectsSource, PrefixSource

KEYS = [f"train/{number}" for number in range(5)]
DATA = [key.encode() for key in KEYS]
ENDINGS = [".jsonl", ".jsonl.gz", ".parquet"]


@pytest.fixture
def client(memory, fill):
    fill(*KEYS)
    with S3Client(s3client_config=memory) as opened:
        yield opened


@pytest.fixture
def read(memory):
    return {"transform": methodcaller("read"), "s3client_config": memory}


def replace(client, key, data):
    with client.put_object("data", key) as writer:
        writer.write(data)


@pytest.fixture
def manifest(client):
    return Manifest.build(PrefixSource.from_uri("s3://data/train/"), client)


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("folder", ["s3://data/lists", "disk"])
def test_a_saved_manifest_stands_for_a_listing(
    manifest, client, read, listings, tmp_path, cls, ending, folder
):
    place = f"{tmp_path if folder == 'disk' else folder}/all{ending}"
    manifest.save(place, client)
    before = listings()
    dataset = cls.from_manifest(place, **read)
    assert list(dataset) == list(dataset) == list(pickle.loads(pickle.dumps(dataset))) == DATA
    assert listings() == before
    assert list(Manifest.load(place, client)) == [
        item._replace(object_info=ObjectInfo(item.key, info.etag, info.size, info.last_modified))
        for item in manifest
        if (info := item.object_info)
    ]
    assert Manifest.load(place, client).identity == manifest.identity


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
def test_every_read_is_pinned_to_the_version_of_the_manifest(manifest, client, read, cls):
    dataset = cls.from_manifest(manifest, **read)
    replace(client, KEYS[3], b"TRAIN/3")
    client.delete_object("data", KEYS[1])
    lenient = cls.from_manifest(manifest, **read, on_error="skip")
    sampled = lenient if cls is S3IterableDataset else lenient.__getitems__(range(5))
    assert list(sampled) == [DATA[0], DATA[2], DATA[4]]
    assert lenient.skipped == 2
    with pytest.raises(NotFoundError):
        list(dataset)
    replace(client, KEYS[1], DATA[1])
    with pytest.raises(ObjectChangedError):
        list(dataset)


def test_a_refresh_tells_what_has_changed(manifest, client):
    source = PrefixSource.from_uri("s3://data/train/")
    same, changes = manifest.refresh(source, client)
    assert (same.identity, bool(changes)) == (manifest.identity, False)
    replace(client, "train/0a", b"new")
    replace(client, KEYS[3], b"changed")
    client.delete_object("data", KEYS[1])
    fresh, changes = manifest.refresh(source, client)
    assert bool(changes)
    assert changes.added == ("s3://data/train/0a",)
    assert changes.changed == ("s3://data/train/3",)
    assert changes.dropped == ("s3://data/train/1",)
    assert [item.key for item in fresh] == ["train/0", "train/2", "train/3", "train/4", "train/0a"]
    assert fresh.identity != manifest.identity


def test_a_dataset_makes_a_manifest_of_what_it_reads(client, read):
    listed = S3IterableDataset.from_prefix("s3://data/train/", **read).manifest()
    # Of objects that are only named, S3 is asked.
    uris = [f"s3://data/{key}" for key in KEYS]
    named = S3MapDataset.from_objects(uris, **read).manifest()
    assert len(listed) == len(named) == 5
    assert listed.identity == named.identity
    with pytest.raises(NotFoundError):
        Manifest.build(ObjectsSource.from_uris("s3://data/none"), client)


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
def test_a_state_is_not_resumed_with_another_manifest(manifest, client, read, cls):
    def loader(listed):
        from torch.utils.data import DataLoader

        dataset = cls.from_manifest(listed, **read)
        sampler = S3Sampler(dataset) if cls is S3MapDataset else None
        return ResumableLoader(DataLoader(dataset, batch_size=2, sampler=sampler, collate_fn=list))

    first = loader(manifest)
    taken = next(iter(first))
    state = json.loads(json.dumps(first.state_dict()))
    again = loader(Manifest(list(manifest)))
    again.load_state_dict(state)
    assert sorted(taken + [sample for batch in again for sample in batch]) == DATA
    other = Manifest(reversed(list(manifest)))
    with pytest.raises(ConfigurationError, match="manifest"):
        loader(other).load_state_dict(state)


def test_a_file_that_is_no_manifest_is_named(tmp_path):
    place = tmp_path / "other.jsonl"
    place.write_text("hello")
    with pytest.raises(ConfigurationError, match=r"other\.jsonl: line 1 is not that of a manifest"):
        Manifest.load(place)


def test_a_failed_save_leaves_the_old_file(manifest, tmp_path, monkeypatch):
    place = tmp_path / "all.jsonl"
    manifest.save(place)
    before = place.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Manifest([]).save(place)
    assert place.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["all.jsonl"]


@pytest.mark.parametrize("wrong", ["s3://data/list.csv", "list", "s3:///x.jsonl"])
def test_a_wrong_place_is_refused_at_once(wrong):
    with pytest.raises(ConfigurationError):
        S3MapDataset.from_manifest(wrong)


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".jsonl", b'{"bucket": "b"}\n'),
        (".jsonl", b"[1]\n"),
        (".jsonl", b"no json\n"),
        (".jsonl", b'{"bucket": "b", "key": "k", "size": 1, "etag": ""}\n'),
        (".jsonl.gz", b"no gzip"),
        (".parquet", b"no parquet"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, ending, content):
    place = tmp_path / f"wrong{ending}"
    place.write_bytes(content)
    with pytest.raises(ConfigurationError):
        Manifest.load(place)


def test_objects_need_a_version_and_s3_a_client(manifest):
    with pytest.raises(ConfigurationError, match="ETag of s3://b/k"):
        Manifest([S3BucketKeyData("b", "k")])
    with pytest.raises(ConfigurationError, match="client"):
        manifest.save("s3://data/all.jsonl")


infos = st.builds(
    lambda key, etag, size, time: S3BucketKeyData("b", key, ObjectInfo(key, etag, size, time)),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.integers(0, 2**45),
    st.integers(0, 2**33),
)


@given(st.lists(infos, max_size=10), st.sampled_from([JsonLines(), GzippedJsonLines(), Parquet()]))
def test_formats_keep_everything(objects, kind):
    assert list(kind.decode(kind.encode(objects))) == objects

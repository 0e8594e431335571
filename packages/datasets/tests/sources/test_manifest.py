"""Stored listings: built, saved, refreshed, and read from in place of a listing."""

from __future__ import annotations

import io
import json
import pickle
from operator import methodcaller

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from s3torch.core import ObjectInfo, S3BucketKeyData, S3Client
from s3torch.core.errors import ConfigurationError, NotFoundError, ObjectChangedError
from s3torch.datasets import (
    Manifest,
    ResumableLoader,
    S3IndexedTarDataset,
    S3IterableDataset,
    S3MapDataset,
    S3Sampler,
    S3ShardDataset,
)
from s3torch.datasets.sources._manifest import format_of
from s3torch.datasets.sources._sources import ObjectsSource, PrefixSource, VersionedInfo, version_of

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
    with pytest.raises(ConfigurationError, match=r"other\.jsonl: line 1 is not a line of a manifest"):
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


def test_a_manifest_may_have_versions(memory, store, tmp_path, read, listings):
    store.create_bucket("kept", keeps_versions=True)
    for key in KEYS:
        store.put("kept", key, key.encode())
    store.put("data", "other", b"other")
    listed = S3MapDataset.from_prefix("s3://kept/train/", **read)
    manifest = listed.manifest(versions=True)
    assert listings() == 0
    assert len(listed) == 5
    named = S3MapDataset.from_objects([f"s3://kept/{key}" for key in KEYS], **read).manifest(versions=True)
    assert list(named) == list(manifest)
    # Where there are no versions, there are none.
    plain = S3MapDataset.from_prefix("s3://data/other", **read).manifest(versions=True)
    assert plain.identity == S3MapDataset.from_prefix("s3://data/other", **read).manifest().identity
    store.put("kept", KEYS[1], b"replaced")
    store.delete("kept", KEYS[3])
    with pytest.raises(ObjectChangedError):
        list(listed)
    for ending in ENDINGS:
        place = tmp_path / f"all{ending}"
        manifest.save(place)
        assert list(Manifest.load(place)) == list(manifest)
        for options in ({}, {"hedge_after": 9}, {"cache_dir": tmp_path / "cache"}):
            for cls in (S3MapDataset, S3IterableDataset):
                assert list(cls.from_manifest(place, **read, **options)) == DATA
    fresh, changes = manifest.refresh(PrefixSource.from_uri("s3://kept/train/"), listed.client)
    assert (changes.changed, changes.dropped) == ((f"s3://kept/{KEYS[1]}",), (f"s3://kept/{KEYS[3]}",))
    assert [version_of(item) for item in fresh if item.key == KEYS[0]] == [version_of(manifest[0])]
    store.delete("kept", KEYS[0], version_id=version_of(manifest[0]))
    with pytest.raises(NotFoundError):
        S3MapDataset.from_manifest(manifest, **read)[0]


def test_shards_are_read_in_their_version(memory, store, make_tar):
    store.create_bucket("kept", keeps_versions=True)
    store.put("kept", "a.tar", make_tar([("1.txt", b"old")]))
    table = io.BytesIO()
    parquet.write_table(pa.table({"n": [1]}), table)
    store.put("kept", "b.parquet", table.getvalue())
    with S3Client(s3client_config=memory) as client:
        manifest = Manifest.build(PrefixSource.from_uri("s3://kept/"), client, versions=True)
    for key in ("a.tar", "b.parquet"):
        store.put("kept", key, b"new")
    sample = {"__key__": "1", "__url__": "s3://kept/a.tar", "txt": b"old"}
    assert list(S3ShardDataset.from_manifest(manifest, s3client_config=memory)) == [sample, {"n": 1}]
    archives = Manifest([manifest[0]])
    (found,) = S3IndexedTarDataset.from_manifest(archives, s3client_config=memory)
    assert bytes(found["txt"]) == b"old"


def built(key, etag, size, time, version):
    facts = (key, etag, size, time)
    known = ObjectInfo(*facts) if version is None else VersionedInfo(*facts, version_id=version)
    return S3BucketKeyData("b", key, known)


infos = st.builds(
    built,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.integers(0, 2**45),
    st.integers(0, 2**33),
    # "null" is S3's word for no version.
    st.none() | st.text(st.characters(codec="ascii"), min_size=1, max_size=40).filter("null".__ne__),
)


@given(
    st.lists(infos, max_size=10),
    st.sampled_from([format_of(".jsonl"), format_of(".jsonl.gz"), format_of(".parquet")]),
)
def test_formats_keep_everything(objects, kind):
    assert list(kind.decode(kind.encode(objects))) == objects

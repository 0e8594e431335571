"""Manifests and indexes with values that cannot be: an error of ours that says where, in little memory."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3torch.core import ObjectInfo, S3BucketKeyData
from s3torch.core.errors import ConfigurationError, S3Error
from s3torch.datasets import Manifest, S3IndexedTarDataset, S3ShardDataset, TarIndex
from s3torch.datasets.formats import DamagedShardError
from s3torch.datasets.sources._manifest import format_of

MIB = 1024 * 1024
ROW = {"bucket": "b", "key": "k", "size": 1, "etag": '"e"', "last_modified": 5, "version_id": "v"}
INDEX = {
    "format": "s3torch-tar-index",
    "version": 1,
    "etag": '"e"',
    "size": 4096,
    "keys": ["a", "b"],
    "parts": [2, 1],
    "suffixes": ["jpg", "cls"],
    "suffix": [0, 1, 0],
    "offset": [512, 1536, 2560],
    "length": [100, 1, 100],
}


def text_of(value):
    """JSON, in which a float without an end is written as some programs do."""
    return json.dumps(value).replace("Infinity", "1e999")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": "many"}, "size"),
        ({"size": -1}, "size"),
        ({"size": 1.5}, "size"),
        ({"size": float("inf")}, "size"),
        ({"size": float("nan")}, "size"),
        ({"size": None}, "size"),
        ({"size": 1 << 63}, "size"),
        ({"size": []}, "size"),
        ({"last_modified": 1 << 80}, "last_modified"),
        ({"last_modified": {}}, "last_modified|dict"),
        ({"etag": None}, "etag"),
        ({"key": 5}, "key"),
        ({"bucket": ["b"]}, "bucket"),
        ({"version_id": {"a": 1}}, "version_id"),
    ],
)
def test_a_value_of_a_manifest_is_named_with_its_line(tmp_path, change, named):
    path = tmp_path / "list.jsonl"
    path.write_text(f"{text_of(ROW)}\n{text_of(ROW | change)}\n")
    with pytest.raises(ConfigurationError, match=f"list.jsonl: line 2 .*({named})"):
        Manifest.load(path)


@pytest.mark.parametrize(
    "line",
    ["null", "5", '"bucket key size etag"', "[]", "{}", "[" * 100_000, '{"size": ' + "9" * 5000 + "}", "\0"],
)
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    path = tmp_path / "list.jsonl"
    path.write_text(f"{text_of(ROW)}\n{line}\n")
    with pytest.raises(ConfigurationError, match="line 2 is not a line of a manifest"):
        Manifest.load(path)


@pytest.mark.parametrize("damage", ["cut", "flip", "other"])
def test_a_compressed_manifest_that_is_damaged_is_refused(tmp_path, damage):
    data = bytearray(gzip.compress((text_of(ROW) + "\n").encode() * 1000))
    if damage == "cut":
        del data[-20:]
    elif damage == "flip":
        data[len(data) // 2] ^= 0xFF
    else:
        data[:] = b"not compressed"
    path = tmp_path / "list.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"list.jsonl.gz"):
        Manifest.load(path)


def test_a_small_manifest_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "list.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * (300 * MIB), 1))
    tracemalloc.start()
    try:
        with pytest.raises(ConfigurationError, match="line 1"):
            Manifest.load(path)
        assert tracemalloc.get_traced_memory()[1] < 30 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "change",
    [{"size": [None]}, {"size": [-1]}, {"size": [1.5]}, {"size": ["x"]}, {"key": [5]}, {"etag": [None]}],
    ids=str,
)
def test_a_row_of_a_parquet_manifest_is_named(tmp_path, change):
    columns = {name: [value] for name, value in ROW.items()} | change
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    with pytest.raises(ConfigurationError, match=r"list.parquet: .*row 1.*(size|key|etag)"):
        Manifest.load(tmp_path / "list.parquet")


def test_a_parquet_manifest_that_is_damaged_is_refused(tmp_path):
    sink = io.BytesIO()
    pq.write_table(pa.table({name: [value] * 100 for name, value in ROW.items()}), sink)
    for place in range(4, len(sink.getvalue()) // 2, 7):
        data = bytearray(sink.getvalue())
        data[place] ^= 0xFF
        (tmp_path / "list.parquet").write_bytes(data)
        with suppress(ConfigurationError):
            Manifest.load(tmp_path / "list.parquet")


def test_names_that_are_no_text_are_kept_or_refused(tmp_path):
    odd = Manifest([S3BucketKeyData("b", "\ud800", ObjectInfo("\ud800", '"e"', 1, 0))])
    odd.save(tmp_path / "list.jsonl")
    assert list(Manifest.load(tmp_path / "list.jsonl")) == list(odd)
    with pytest.raises(ConfigurationError, match="jsonl"):
        odd.save(tmp_path / "list.parquet")
    with pytest.raises(ConfigurationError, match="size"):
        Manifest([S3BucketKeyData("b", "k", ObjectInfo("k", '"e"', 1 << 70, 0))])


ODD_INDEXES = [
    {"etag": None},
    {"size": "4096"},
    {"size": -1},
    {"size": float("inf")},
    {"keys": "ab"},
    {"keys": ["a", 5]},
    {"keys": ["a", "a"]},
    {"keys": ["a"]},
    {"parts": [3, 0]},
    {"parts": [4, -1]},
    {"parts": [1 << 70, 1]},
    {"parts": ["2", 1]},
    {"parts": [1.5, 1.5]},
    {"suffixes": ["jpg", "jpg"]},
    {"suffixes": ["jpg", "__key__"]},
    {"suffixes": [None, "cls"]},
    {"suffix": [0, 0, 0]},
    {"suffix": [0, 1, 2]},
    {"suffix": [0, 1, -1]},
    {"offset": [512, 1536, 5000]},
    {"offset": [512, 1536]},
    {"offset": [512, 1536, 1 << 64]},
    {"length": [100, 1, 1 << 62]},
    {"length": {"a": 1}},
    {"format": ["s3torch-tar-index"]},
    {"version": None},
]


@pytest.mark.parametrize("change", ODD_INDEXES, ids=str)
def test_an_index_that_cannot_be_is_refused_with_its_place(memory, store, make_tar, change):
    store.put("data", "a.tar", make_tar([("a.txt", b"x")]))
    store.put("data", "a.tar.index.json", text_of(INDEX | change).encode())
    with pytest.raises(ConfigurationError, match=r"s3://data/a\.tar\.index\.json: .*delete it"):
        S3IndexedTarDataset.from_objects("s3://data/a.tar", s3client_config=memory)[0]


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}", b'{"format": 1}'],
)
def test_what_is_no_index_is_refused(data):
    with pytest.raises(ConfigurationError, match="not an index"):
        TarIndex.from_json(data)


def test_an_index_for_an_archive_of_another_size_is_made_anew(memory, store, make_tar):
    store.put("data", "a.tar", make_tar([("a.txt", b"x")]))
    (dataset,) = [S3IndexedTarDataset.from_prefix("s3://data/", s3client_config=memory) for _ in range(1)]
    etag = dataset._listing()[0].object_info.etag
    huge = {"etag": etag, "size": 1 << 62, "length": [1 << 61, 1, 1]}
    store.put("data", "a.tar.index.json", text_of(INDEX | huge).encode())
    assert dataset[0] == {"__key__": "a", "__url__": "s3://data/a.tar", "txt": b"x"}


def test_an_index_that_claims_more_than_the_memory_is_an_error(memory, store, make_tar):
    store.put("data", "a.tar", make_tar([("a.txt", b"x")]))
    huge = {"size": 1 << 62, "length": [1 << 61, 1, 1]}
    store.put("data", "a.tar.index.json", text_of(INDEX | huge).encode())
    # Without a listing, nothing is known of the archive but what the index says.
    with pytest.raises(S3Error, match=r"s3://data/a\.tar.*do not fit in memory"):
        S3IndexedTarDataset.from_objects("s3://data/a.tar", s3client_config=memory)[0]


def test_a_parquet_footer_that_names_other_bytes_is_damage(memory, store):
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": list(range(1000))}), sink, compression="none", use_dictionary=False)
    whole = sink.getvalue()
    for place in range(len(whole) - 300, len(whole)):
        store.put("data", "a.parquet", whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with suppress(DamagedShardError):
            list(S3ShardDataset.from_prefix("s3://data/", s3client_config=memory))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from(sorted(ROW)), JSON), st.sampled_from([".jsonl", ".jsonl.gz"]), st.binary()
)
def test_whatever_a_manifest_holds_only_our_error_comes(changes, suffix, rest):
    data = text_of(ROW | changes).encode() + b"\n" + rest
    kind = format_of(suffix)
    for one in (data, gzip.compress(data)):
        with suppress(ConfigurationError):
            Manifest(kind.decode(one))


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(sorted(INDEX)), JSON), st.binary(max_size=5))
def test_whatever_an_index_holds_only_our_error_comes(changes, rest):
    with suppress(ConfigurationError):
        index = TarIndex.from_json(text_of(INDEX | changes).encode() + rest)
        for number in range(len(index)):
            place = index[number]
            assert 0 <= place.start <= place.stop <= index.size

"""Parquet files as shards, on a store in memory and on a server."""

from __future__ import annotations

import io
from itertools import chain, islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from s3torch.core.errors import ConfigurationError, ObjectChangedError
from s3torch.datasets import S3ShardDataset, merge_states
from s3torch.datasets.formats import DamagedShardError
from s3torch.datasets.shards._parquet import ParquetFormat

ROWS = [
    {"id": number, "text": str(number) * 9, "list": [number] * (number % 3), "point": {"x": number, "y": 1.5}}
    for number in range(90)
]


def parquet(rows, **options):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, **options)
    return file.getvalue()


@pytest.fixture
def make(memory, store):
    for number in range(3):
        data = parquet(ROWS[30 * number : 30 * number + 30], row_group_size=7)
        store.put("data", f"rows/{number}.parquet", data)

    def make_dataset(uri="s3://data/rows/", **options):
        return S3ShardDataset.from_prefix(uri, region="us-east-1", s3client_config=memory, **options)

    return make_dataset


def test_rows_are_dictionaries(make):
    assert list(make()) == ROWS


def test_columns_and_batches(make):
    chosen = ParquetFormat(columns=["id", "point"], batch_rows=4)
    batches = list(make(format=chosen))
    assert {type(batch) for batch in batches} == {pa.RecordBatch}
    assert max(batch.num_rows for batch in batches) == 4
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert rows == [{"id": row["id"], "point": row["point"]} for row in ROWS]
    with pytest.raises(ConfigurationError, match=r"no column 'name'; there are: id, text, list"):
        list(make(format=ParquetFormat(columns=["name"])))
    for options in ({"columns": "id"}, {"batch_rows": 0}):
        with pytest.raises(ConfigurationError):
            ParquetFormat(**options)


@pytest.mark.parametrize("shuffle", [False, True])
def test_row_groups_are_shared_out_and_resumed(make, shuffle):
    parts = []
    for rank in range(4):
        options = {"rank": rank, "world_size": 4, "shuffle": shuffle, "shuffle_buffer": 8}
        whole = list(make(**options))
        parts.append(whole)
        for stop in range(0, len(whole) + 1, 5):
            dataset = make(**options)
            samples = iter(dataset)
            taken = [next(samples) for _ in range(stop)]
            again = make(**options)
            again.load_state_dict(dataset.state_dict())
            assert taken + list(again) == whole
    ids = sorted(row["id"] for row in chain.from_iterable(parts))
    assert ids == list(range(90))
    # 15 row groups of up to 7 rows, dealt one by one.
    assert max(map(len, parts)) <= 28
    assert min(map(len, parts)) >= 3 * 2


def test_a_large_footer_and_large_columns(make, store):
    wide = [{f"column {number}": number + row for number in range(900)} for row in range(5)]
    store.put("data", "wide/a.parquet", parquet(wide, row_group_size=2))
    assert list(make("s3://data/wide/")) == wide
    few = ParquetFormat(columns=["column 1", "column 899"])
    assert list(make("s3://data/wide/", format=few))[1] == {"column 1": 2, "column 899": 900}


@pytest.mark.parametrize("cut", [slice(0, -1), slice(0, 3), slice(0, 0), slice(1000, None)])
def test_a_truncated_file_is_an_error(make, store, cut):
    store.put("data", "bad/a.parquet", parquet(ROWS)[cut])
    with pytest.raises(DamagedShardError, match="s3://data/bad/a.parquet"):
        list(make("s3://data/bad/"))


def test_damaged_pages_are_an_error(make, store):
    data = bytearray(parquet(ROWS, compression="zstd"))
    data[4:600] = bytes(596)
    store.put("data", "bad/a.parquet", bytes(data))
    with pytest.raises(DamagedShardError, match="row group 0"):
        list(make("s3://data/bad/"))
    assert list(make("s3://data/bad/", on_error="skip")) == []


def test_a_file_of_unknown_size(memory, store):
    store.put("data", "a.parquet", parquet(ROWS[:3]))
    dataset = S3ShardDataset.from_objects(["s3://data/a.parquet"], s3client_config=memory)
    assert list(dataset) == ROWS[:3]


def test_all_row_groups_are_of_one_version(memory, store):
    store.put("data", "a.parquet", parquet(ROWS, row_group_size=10))
    dataset = S3ShardDataset.from_objects("s3://data/a.parquet", s3client_config=memory, shards_ahead=0)
    samples = iter(dataset)
    assert next(samples) == ROWS[0]
    store.put("data", "a.parquet", parquet(ROWS[::-1], row_group_size=10))
    with pytest.raises(ObjectChangedError):
        list(samples)


def test_only_what_is_wanted_is_asked_for(seaweedfs, fault_proxy, server):
    rows = [{"id": number, "blob": bytes([number]) * 3_000_000} for number in range(4)]
    bucket = seaweedfs.create_bucket()
    client = seaweedfs.client()
    client.put_object(
        Bucket=bucket, Key="a.parquet", Body=parquet(rows, row_group_size=1, compression="none")
    )
    client.close()
    proxy = fault_proxy(seaweedfs)
    dataset = S3ShardDataset.from_prefix(
        f"s3://{bucket}/",
        region=seaweedfs.region,
        endpoint=proxy.endpoint,
        format=ParquetFormat(columns=["id"]),
    )
    with dataset:
        assert [row["id"] for row in dataset] == [0, 1, 2, 3]
    gets = proxy.requests("GET", key="a.parquet")
    # The footer, and one for each row group.
    assert len(gets) == 5
    assert sum(request.response_bytes for request in gets) < 200_000


def damaged(rows, group, **options):
    """A file of which one row group cannot be decoded."""
    data = bytearray(parquet(rows, compression="zstd", **options))
    chunk = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(group).column(0)
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    data[begin : begin + 20] = b"\xff" * 20
    return bytes(data)


@pytest.mark.parametrize("buffer", [1, 8])
def test_damage_shifts_nothing_that_is_behind_it(make, store, buffer):
    # Of four files, one has a damaged row group, one no footer.
    store.put("data", "rows/1.parquet", damaged(ROWS[30:60], 2, row_group_size=7))
    store.put("data", "rows/10.parquet", parquet(ROWS)[:-1])
    expected = [row["id"] for row in ROWS if row["id"] not in range(44, 51)]
    options = {"on_error": "skip", "shuffle": buffer > 1, "shuffle_buffer": buffer}
    for stop in range(0, 40, 7):
        seen, states = [], []
        for rank in range(3):
            dataset = make(rank=rank, world_size=3, **options)
            seen += [row["id"] for row in islice(dataset, stop)]
            states.append(dataset.state_dict())
        for rank in range(2):
            dataset = make(rank=rank, world_size=2, **options)
            dataset.load_state_dict(merge_states(states))
            seen += [row["id"] for row in dataset]
        # Where all ranks had come to the end, the next epoch is whole.
        epochs = 2 if all("finished" in state for state in states) else 1
        assert sorted(seen) == sorted(expected * epochs)
    loader = DataLoader(make(**options), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert sorted(row["id"] for row in loader) == expected
    assert loader.dataset.skipped == 2


def test_a_file_that_one_rank_cannot_read_is_shared_out_as_before(make, store):
    first, second = (make(rank=rank, world_size=2, on_error="skip") for rank in range(2))
    # Both have listed it, and only one has read it when it goes away.
    second.describe()
    seen = [row["id"] for row in first]
    store.delete("data", "rows/1.parquet")
    rest = [row["id"] for row in second]
    # It has five row groups, so the numbers of all behind it would be others.
    assert set(seen).isdisjoint(rest)
    assert set(range(90)) - set(seen) - set(rest) < set(range(30, 60))

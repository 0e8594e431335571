"""Libraries that open S3 through fsspec, each as its users do; one that is not installed has no test."""

from __future__ import annotations

import asyncio
import json

import fsspec
import pytest

from s3torch.fsspec import S3FileSystem

ROWS = 1000

pytestmark = [
    pytest.mark.parametrize("options", ["seaweedfs"], indirect=True),
    # Of the libraries, about each other.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def table():
    pa = pytest.importorskip("pyarrow")
    return pa.table({"number": list(range(ROWS)), "text": [f"row {number}" for number in range(ROWS)]})


@pytest.fixture
def parquet(fs, root):
    """The path of a Parquet file."""
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(table(), f"{root}/t.parquet", filesystem=fs, row_group_size=100)
    return f"{root}/t.parquet"


def test_pandas(options, fs, root):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"number": range(ROWS), "text": [f"row {number}" for number in range(ROWS)]})
    for kind in ("csv", "parquet", "json", "pickle"):
        url = f"s3://{root}/{kind}/frame.{kind}"
        how = {"index": False} if kind in {"csv", "parquet"} else {}
        getattr(frame, f"to_{kind}")(url, storage_options=options, **how)
        assert getattr(pd, f"read_{kind}")(url, storage_options=options).equals(frame), kind
    frame.to_csv(f"s3://{root}/frame.csv.gz", storage_options=options, index=False)
    assert pd.read_csv(f"s3://{root}/frame.csv.gz", storage_options=options, nrows=3).shape == (3, 2)
    frame.assign(part=frame.number % 2).to_parquet(
        f"s3://{root}/parts", partition_cols=["part"], storage_options=options
    )
    read = pd.read_parquet(f"s3://{root}/parts", storage_options=options, columns=["number", "part"])
    assert sorted(read.number) == list(range(ROWS))
    assert {name.split("/")[-2] for name in fs.find(f"{root}/parts")} == {"part=0", "part=1"}
    with pytest.raises(FileNotFoundError):
        pd.read_csv(f"s3://{root}/none.csv", storage_options=options)


def test_pyarrow_datasets(fs, root, parquet):
    dataset = pytest.importorskip("pyarrow.dataset")
    columns = dataset.dataset(parquet, filesystem=fs).to_table(
        columns=["number"], filter=dataset.field("number") > 989
    )
    assert columns["number"].to_pylist() == list(range(990, ROWS))
    dataset.write_dataset(
        table().append_column("part", [[number % 4 for number in range(ROWS)]]),
        f"{root}/dataset",
        format="parquet",
        partitioning=["part"],
        filesystem=fs,
    )
    read = dataset.dataset(f"{root}/dataset", filesystem=fs, partitioning=["part"])
    assert read.count_rows() == ROWS
    assert read.to_table(filter=dataset.field("part") == 1).num_rows == ROWS // 4
    dataset.write_dataset(
        table(), f"{root}/dataset", format="parquet", filesystem=fs, existing_data_behavior="delete_matching"
    )
    assert dataset.dataset(f"{root}/dataset", filesystem=fs).count_rows() == ROWS


def test_ranges_of_parquet_that_are_fetched_before(fs, parquet, options):
    pytest.importorskip("pandas")
    pq = pytest.importorskip("pyarrow.parquet")
    from fsspec.parquet import open_parquet_file

    with open_parquet_file(
        f"s3://{parquet}", columns=["number"], storage_options=options, engine="pyarrow"
    ) as file:
        assert pq.read_table(file, columns=["number"])["number"].to_pylist() == list(range(ROWS))


def test_duckdb(fs, root, parquet):
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        connection.register_filesystem(fs)
        asked = connection.execute(f"SELECT sum(number), count(*) FROM 's3://{parquet}' WHERE number >= 500")
        assert asked.fetchone() == (sum(range(500, ROWS)), 500)
        connection.execute(f"COPY (SELECT range AS i FROM range(10)) TO 's3://{root}/out.parquet'")
        assert connection.execute(f"SELECT sum(i) FROM 's3://{root}/o*.parquet'").fetchone() == (45,)


def test_zarr_stores(fs, root, options):
    zarr = pytest.importorskip("zarr")
    np = pytest.importorskip("numpy")
    from zarr.storage import FsspecStore

    values = np.arange(10_000, dtype="f4").reshape(100, 100)
    store = FsspecStore.from_url(f"s3://{root}/a.zarr", storage_options=options)
    assert isinstance(store.fs, S3FileSystem)
    assert store.fs.asynchronous
    group = zarr.create_group(store=store, attributes={"made": "here"})
    array = group.create_array("x", shape=values.shape, dtype="f4", chunks=(30, 30), shards=(60, 60))
    array[:] = values
    group.create_array("y", shape=(10,), dtype="i4", chunks=(5,), fill_value=7)
    again = zarr.open_group(f"s3://{root}/a.zarr", mode="r", storage_options=options)
    assert again.attrs["made"] == "here"
    assert sorted(again.array_keys()) == ["x", "y"]
    assert (again["x"][:] == values).all()
    assert (again["x"][70:80, 3] == values[70:80, 3]).all()
    assert (again["y"][:] == 7).all()
    assert json.loads(fs.cat_file(f"{root}/a.zarr/zarr.json"))["node_type"] == "group"
    mapped = zarr.open_group(FsspecStore.from_mapper(fs.get_mapper(f"{root}/a.zarr")), mode="r")
    assert (mapped["x"][0] == values[0]).all()
    zarr.create_group(store=store, overwrite=True)
    assert sorted(fs.find(f"{root}/a.zarr")) == [f"{root}/a.zarr/zarr.json"]


def test_xarray(root, options):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    np = pytest.importorskip("numpy")
    written = xarray.Dataset({"t": (("x", "y"), np.arange(600.0).reshape(20, 30))}, coords={"x": range(20)})
    url = f"s3://{root}/d.zarr"
    written.to_zarr(url, storage_options=options, mode="w", consolidated=False)
    with xarray.open_zarr(url, storage_options=options, consolidated=False, chunks=None) as read:
        assert read.load().identical(written)
    more = written.assign_coords(x=range(20, 40))
    more.to_zarr(url, storage_options=options, append_dim="x", consolidated=False)
    with xarray.open_zarr(url, storage_options=options, consolidated=False, chunks=None) as read:
        assert read.sizes["x"] == 40
        assert float(read.t[25, 3]) == float(more.t[5, 3])


def test_hugging_face_datasets(root, options, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"number": list(range(50)), "text": ["t"] * 50})
    made.save_to_disk(f"s3://{root}/saved", storage_options=options, num_shards=2)
    loaded = datasets.load_from_disk(f"s3://{root}/saved", storage_options=options)
    assert loaded["number"][:] == list(range(50))
    made.to_parquet(f"s3://{root}/p/data.parquet", storage_options=options)
    streamed = datasets.load_dataset(
        "parquet",
        data_files=f"s3://{root}/p/*.parquet",
        storage_options=options,
        streaming=True,
        split="train",
        cache_dir=str(tmp_path),
    )
    assert [row["number"] for row in streamed] == list(range(50))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_checkpoints_of_torch(fs, root):
    torch = pytest.importorskip("torch")
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

    state = {"a": torch.arange(1000.0), "n": 3}
    where = {"region": fs.storage_options["region"], "endpoint_url": fs.storage_options["endpoint_url"]}
    where |= {"key": fs.storage_options["key"], "secret": fs.storage_options["secret"]}
    path = f"s3://{root}/checkpoint"
    dcp.save(state, storage_writer=FsspecWriter(path, **where), no_dist=True)
    loaded = {"a": torch.zeros(1000), "n": 0}
    dcp.load(loaded, storage_reader=FsspecReader(path, **where), no_dist=True)
    assert torch.equal(loaded["a"], state["a"])
    assert loaded["n"] == 3
    with fs.open(f"{root}/plain.pt", "wb") as file:
        torch.save(state, file)
    with fsspec.open(f"s3://{root}/plain.pt", **where) as file:
        assert torch.equal(torch.load(file)["a"], state["a"])


def test_coroutines(options, root):
    fs = fsspec.filesystem("s3", asynchronous=True, **options)

    async def work():
        await asyncio.gather(*(fs._pipe_file(f"{root}/{number}", b"%d" % number) for number in range(50)))
        contents = await asyncio.gather(*(fs._cat_file(f"{root}/{number}") for number in range(50)))
        assert contents == [b"%d" % number for number in range(50)]
        assert len(await fs._find(root)) == 50
        assert [names async for _, _, names in fs._walk(root)] == [sorted(map(str, range(50)))]
        assert await fs._cat_ranges([f"{root}/10"] * 2, [0, 1], [1, 2]) == [b"1", b"0"]
        assert (await fs._info(f"{root}/7"))["size"] == 1
        await fs._rm(root, recursive=True)
        with pytest.raises(FileNotFoundError):
            await fs._cat_file(f"{root}/7")
        return await fs._exists(root)

    assert asyncio.run(work()) is False
    assert asyncio.run(fs._exists(root)) is False

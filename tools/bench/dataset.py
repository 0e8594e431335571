"""How many samples of 100 KiB a second do datasets give: from objects, shards and a cache?"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import tempfile
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from operator import methodcaller
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from libraries import BUCKET, CONNECTOR, REGION, connector_config, endpoint, s3fs_filesystem
from measure import Question, main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SIZE = 100 * 1024
COUNT = int(os.environ.get("BENCH_OBJECTS", "2000"))
SHARDS, IN_SHARD = 8, 160
# Columns and rows of each Parquet file; some of the columns are read.
COLUMNS, ROWS, WANTED = 40, 50_000, ["c3", "c17", "c33"]
URI = f"s3://{BUCKET}/"
SMALL, RAW, TAR, PARQUET, LITDATA, MDS = "small/", "raw/", "tar/", "parquet/", "litdata", "mds"
WORKERS = 2


def ours(name: str, prefix: str = SMALL, **options: Any) -> Any:
    """One of our datasets."""
    import s3torch.datasets

    options = {"transform": methodcaller("read"), **options}
    return getattr(s3torch.datasets, name).from_prefix(
        URI + prefix, region=REGION, endpoint=endpoint(), **options
    )


def connectors(name: str, prefix: str = SMALL, **options: Any) -> Any:
    """One of the datasets of s3torchconnector."""
    import s3torchconnector

    options = {"transform": methodcaller("read"), "s3client_config": connector_config(), **options}
    return getattr(s3torchconnector, name).from_prefix(
        URI + prefix, region=REGION, endpoint=endpoint(), **options
    )


def litdata_raw(**options: Any) -> Any:
    """Litdata's dataset of objects as they are."""
    import litdata

    # It leaves an index beside the objects, so it has a prefix of its own.
    return litdata.StreamingRawDataset(URI + RAW, cache_dir=_folder(), recompute_index=True, **options)


def litdata_optimized(**options: Any) -> Any:
    """Litdata's dataset of chunks."""
    import litdata

    return litdata.StreamingDataset(URI + LITDATA, cache_dir=_folder(), **options)


def mosaic() -> Any:
    """Mosaic's dataset of shards."""
    streaming = _streaming()
    os.environ["S3_ENDPOINT_URL"] = endpoint()
    streaming.base.util.clean_stale_shared_memory()
    return streaming.StreamingDataset(remote=URI + MDS, local=_folder(), batch_size=1, shuffle=False)


def _streaming() -> Any:
    """Imports Mosaic's library, which asks for torchvision for datasets of images that nothing here uses.

    What can be had of torchvision beside a CPU build of torch may not load.
    """
    # It looks for torchvision, too, and must not find those modules.
    import_module("transformers.feature_extraction_utils")
    wanted: dict[str, dict[str, Any]] = {
        "torchvision": {},
        "torchvision.datasets": {"VisionDataset": object},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"to_tensor": None},
    }
    for name, content in wanted.items():
        module = sys.modules[name] = ModuleType(name)
        vars(module).update(content)
    try:
        import streaming
    finally:
        for name in wanted:
            del sys.modules[name]
    return streaming


def webdataset() -> Any:
    """WebDataset, through a pipe of curl: its readers know no endpoint but Amazon's."""
    import webdataset as wds

    from libraries import boto_client

    boto = boto_client()
    urls = [
        boto.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": f"{TAR}{number:02}.tar"})
        for number in range(SHARDS)
    ]
    trust = "--cacert $AWS_CA_BUNDLE" if "AWS_CA_BUNDLE" in os.environ else ""
    pipes = [f"pipe:curl -sf {trust} '{url}'" for url in urls]
    return wds.WebDataset(pipes, shardshuffle=False, empty_check=False)


def _folder() -> str:
    return tempfile.mkdtemp(dir=os.environ["BENCH_SCRATCH"])


def loader(dataset: Any, workers: int = 0, method: str = "fork", **options: Any) -> Iterable[Any]:
    """A DataLoader with workers or without."""
    from torch.utils.data import DataLoader

    if workers:
        options.update(num_workers=workers, multiprocessing_context=method)
    return DataLoader(dataset, **options)


def _iterated(make: Callable[[], Iterable[Any]], length: Callable[[Any], int], wanted: int) -> Any:
    def case() -> Callable[[], object]:
        def work() -> None:
            found = sum(map(length, make()))
            if found != wanted:
                raise SystemExit(f"got {found}, expected {wanted}")

        return work

    return case


def _again(make: Callable[[], Iterable[Any]], length: Callable[[Any], int], wanted: int) -> Any:
    """The same dataset again and again: what a cache is for."""

    def case() -> Callable[[], object]:
        dataset = make()
        again: Callable[[], object] = _iterated(lambda: dataset, length, wanted)()
        return again

    return case


def _bytes_of(sample: Any) -> int:
    if isinstance(sample, list | tuple):
        return sum(map(_bytes_of, sample))
    if isinstance(sample, dict):
        return len(next(sample[name] for name in ("bin", "x") if name in sample))
    return len(sample)


def connector_tar() -> Iterator[bytes]:
    """Python's tarfile on the readers of s3torchconnector."""
    for reader in connectors("S3IterableDataset", TAR, transform=_same):
        with tarfile.open(fileobj=reader, mode="r|") as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None:
                    yield file.read()


def _same(reader: Any) -> Any:
    return reader


def _rows_through(open_files: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    from pyarrow import parquet

    for file in open_files():
        yield from parquet.ParquetFile(file, pre_buffer=True).iter_batches(columns=WANTED)


def our_rows() -> Iterable[Any]:
    """Batches of our shard dataset."""
    from s3torch.datasets import ParquetFormat

    shards: Iterable[Any] = ours(
        "S3ShardDataset",
        PARQUET,
        transform=None,
        format=ParquetFormat(columns=WANTED, batch_rows=8192),
    )
    return shards


def _s3fs_files() -> Iterator[Any]:
    fs = s3fs_filesystem()
    return (fs.open(path) for path in fs.find(URI + PARQUET))


def _rows_of(batch: Any) -> int:
    return int(batch.num_rows)


def put_shards(boto: Any) -> None:
    """Puts the same samples in the formats of all libraries, those that are installed."""
    samples = [os.urandom(SIZE) for _ in range(IN_SHARD)]
    for shard in range(SHARDS):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for number, sample in enumerate(samples):
                member = tarfile.TarInfo(f"{shard:02}-{number:04}.bin")
                member.size = SIZE
                archive.addfile(member, io.BytesIO(sample))
        boto.put_object(Bucket=BUCKET, Key=f"{TAR}{shard:02}.tar", Body=file.getvalue())
    for name, write in ((LITDATA, _write_litdata), (MDS, _write_mds)):
        if not find_spec({LITDATA: "litdata", MDS: "streaming"}[name]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            write(folder, samples * SHARDS)
            for path in Path(folder).iterdir():
                boto.put_object(Bucket=BUCKET, Key=f"{name}/{path.name}", Body=path.read_bytes())


def _write_litdata(folder: str, samples: list[bytes]) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(folder, chunk_bytes=IN_SHARD * (SIZE + 1024))
    for number, sample in enumerate(samples):
        writer[number] = sample
    writer.done()
    writer.merge()


def _write_mds(folder: str, samples: list[bytes]) -> None:
    with _streaming().MDSWriter(
        out=folder, columns={"x": "bytes"}, size_limit=IN_SHARD * (SIZE + 1024)
    ) as writer:
        for sample in samples:
            writer.write({"x": sample})


def put_tables(boto: Any) -> None:
    """Puts Parquet files."""
    import pyarrow as pa
    from pyarrow import parquet

    values = pa.array(range(ROWS), pa.int64())
    table = pa.table({f"c{number}": values for number in range(COLUMNS)})
    file = io.BytesIO()
    parquet.write_table(table, file, row_group_size=ROWS // 2, use_dictionary=False, compression="none")
    for number in range(SHARDS // 2):
        boto.put_object(Bucket=BUCKET, Key=f"{PARQUET}{number}.parquet", Body=file.getvalue())


_STORED = ((SMALL, COUNT, SIZE), (RAW, COUNT, SIZE))


def _over_objects(work: str, title: str, makes: dict[str, Callable[[], Any]], **options: Any) -> Question:
    return Question(
        f"{COUNT} objects of 100 KiB, {title}",
        {name: _iterated(make, _bytes_of, COUNT * SIZE) for name, make in makes.items()},
        work=work,
        units=COUNT,
        unit="objects",
        size=COUNT * SIZE,
        objects=_STORED,
        **{"on": ("https", "http", "memory-20"), **options},
    )


def _in_workers(make: Callable[..., Any], method: str, **options: Any) -> Callable[[], Iterable[Any]]:
    return lambda: loader(make(**options), WORKERS, method, batch_size=None)


def _single() -> dict[str, Callable[[], Any]]:
    def each(make: Callable[[], Any]) -> Callable[[], Iterable[Any]]:
        def run() -> Iterator[Any]:
            dataset = make()
            return (dataset[index] for index in range(len(dataset)))

        return run

    return {
        CONNECTOR: each(partial(connectors, "S3MapDataset")),
        "s3torch": each(partial(ours, "S3MapDataset")),
    }


_ITERABLE = partial(connectors, "S3IterableDataset"), partial(ours, "S3IterableDataset")
_MAP = partial(connectors, "S3MapDataset"), partial(ours, "S3MapDataset")
_BATCHES: dict[str, Any] = {"batch_size": 32, "collate_fn": list}
_TOTAL = SHARDS * IN_SHARD
_TABLE_ROWS = ROWS * (SHARDS // 2)


def _workers(method: str) -> dict[str, Callable[[], Any]]:
    theirs, mine = (_in_workers(make, method, enable_sharding=True) for make in _ITERABLE)
    return {
        CONNECTOR: theirs,
        "s3torch": mine,
        "litdata, raw": lambda: loader(litdata_raw(), WORKERS, method, **_BATCHES),
    }


QUESTIONS = (
    _over_objects("iterable", "in one process", {CONNECTOR: _ITERABLE[0], "s3torch": _ITERABLE[1]}),
    _over_objects(
        "batches",
        "in batches of 32",
        {
            CONNECTOR: lambda: loader(_MAP[0](), **_BATCHES),
            "s3torch": lambda: loader(_MAP[1](), **_BATCHES),
            "litdata, raw": lambda: loader(litdata_raw(), **_BATCHES),
        },
    ),
    _over_objects("one by one", "one index after the other", _single(), on=("https", "http")),
    _over_objects("2 workers, fork", "in 2 workers that are forked", _workers("fork")),
    _over_objects("2 workers, spawn", "in 2 workers that are spawned", _workers("spawn"), on=("https",)),
    Question(
        f"{_TOTAL} samples of 100 KiB in {SHARDS} shards",
        {
            CONNECTOR: _iterated(connector_tar, _bytes_of, _TOTAL * SIZE),
            "s3torch": _iterated(
                lambda: ours("S3ShardDataset", TAR, transform=None), _bytes_of, _TOTAL * SIZE
            ),
            "webdataset": _iterated(webdataset, _bytes_of, _TOTAL * SIZE),
            "litdata, optimized": _iterated(litdata_optimized, _bytes_of, _TOTAL * SIZE),
            "streaming (MDS)": _iterated(mosaic, _bytes_of, _TOTAL * SIZE),
        },
        work="shards",
        units=_TOTAL,
        unit="samples",
        size=_TOTAL * SIZE,
        prepare=put_shards,
        reads_back=True,
    ),
    Question(
        f"{len(WANTED)} of {COLUMNS} columns of Parquet",
        {
            CONNECTOR: _iterated(
                lambda: _rows_through(lambda: connectors("S3IterableDataset", PARQUET, transform=_same)),
                _rows_of,
                _TABLE_ROWS,
            ),
            "s3torch": _iterated(our_rows, _rows_of, _TABLE_ROWS),
            "s3fs": _iterated(lambda: _rows_through(_s3fs_files), _rows_of, _TABLE_ROWS),
        },
        work="Parquet",
        units=_TABLE_ROWS,
        unit="rows",
        prepare=put_tables,
        reads_back=True,
    ),
    Question(
        f"the second epoch of {COUNT} objects, from a cache on disk",
        {
            "s3torch": _again(
                lambda: loader(ours("S3MapDataset", cache_dir=_folder()), **_BATCHES),
                _bytes_of,
                COUNT * SIZE,
            ),
            "litdata, raw": _again(
                lambda: loader(litdata_raw(cache_files=True), **_BATCHES), _bytes_of, COUNT * SIZE
            ),
        },
        work="second epoch",
        units=COUNT,
        unit="objects",
        size=COUNT * SIZE,
        objects=_STORED,
        baseline="litdata, raw",
    ),
    Question(
        f"the second epoch of {_TOTAL} samples in shards, which two of the libraries have on disk then",
        {
            "s3torch": _again(
                lambda: ours("S3ShardDataset", TAR, transform=None, cache_dir=_folder()),
                _bytes_of,
                _TOTAL * SIZE,
            ),
            "litdata, optimized": _again(litdata_optimized, _bytes_of, _TOTAL * SIZE),
            "streaming (MDS)": _again(mosaic, _bytes_of, _TOTAL * SIZE),
        },
        work="second epoch, shards",
        units=_TOTAL,
        unit="samples",
        size=_TOTAL * SIZE,
        prepare=put_shards,
        reads_back=True,
        baseline="litdata, optimized",
    ),
)

if __name__ == "__main__":
    main(*QUESTIONS)

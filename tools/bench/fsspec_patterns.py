"""How do filesystems of fsspec do what their users do: whole files, ranges, listings, Parquet, zarr?

Ours beside s3fs, each in a process of its own, one after the other, round after round, against one SeaweedFS,
over TLS and then without. Both have their defaults; listings are not cached.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from measure import (
    BUCKET,
    MIB,
    REGION,
    add_scheme,
    boto_client,
    cpu_seconds,
    endpoint,
    in_child,
    schemes,
    start_seaweedfs,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 256 * MIB
RANGES = 200
RANGE = 64 * 1024
LISTED = 10_000
FOUND = 50_000
REMOVED = 5_000
COLUMNS = 100
ROWS = 100_000
SIDE = 4096
CHUNK = 256
LARGE = f"{BUCKET}/large"
TABLE = f"{BUCKET}/t.parquet"
ARRAY = f"{BUCKET}/array.zarr"
LIBRARIES = ("s3fs", "s3torch")
_SCRATCH = "BENCH_SCRATCH"


def filesystem(library: str, **options: Any) -> Any:
    """A filesystem of this library for the server of this run."""
    if library == "s3fs":
        from s3fs import S3FileSystem as S3fs

        client = {"endpoint_url": endpoint(), "region_name": REGION}
        return S3fs(client_kwargs=client, use_listings_cache=False, **options)
    from s3torch.fsspec import S3FileSystem

    return S3FileSystem(REGION, endpoint_url=endpoint(), **options)


def scratch(name: str) -> str:
    """A local path for this run."""
    return str(Path(os.environ[_SCRATCH]) / name)


def whole_file(fs: Any) -> None:
    """``open(path).read()`` of 256 MiB."""
    with fs.open(LARGE) as file:
        file.read()


def cat_file(fs: Any) -> None:
    """``cat_file`` of 256 MiB."""
    fs.cat_file(LARGE)


def in_steps(fs: Any) -> None:
    """256 MiB in reads of 1 MiB."""
    with fs.open(LARGE) as file:
        while file.read(MIB):
            pass


def seeks(fs: Any) -> None:
    """200 seeks, each with a read of 64 KiB."""
    with fs.open(LARGE, block_size=RANGE) as file:
        for start in _starts():
            file.seek(start)
            file.read(RANGE)


def cat_ranges(fs: Any) -> None:
    """``cat_ranges`` of 200 ranges of 64 KiB."""
    starts = _starts()
    fs.cat_ranges([LARGE] * RANGES, starts, [start + RANGE for start in starts])


def _starts() -> list[int]:
    return [random.Random(number).randrange(SIZE - RANGE) for number in range(RANGES)]  # noqa: S311


def put(fs: Any) -> None:
    """``put`` of 256 MiB."""
    fs.put(scratch("large"), f"{BUCKET}/put")


def get(fs: Any) -> None:
    """``get`` of 256 MiB."""
    fs.get(LARGE, scratch("got"))


def ls(fs: Any) -> None:
    """``ls`` of 10,000 keys."""
    _expect(len(fs.ls(f"{BUCKET}/listed", detail=True)), LISTED)


def find(fs: Any) -> None:
    """``find`` of 50,000 keys in 50 folders."""
    _expect(len(fs.find(f"{BUCKET}/found", detail=True)), FOUND)


def fill(fs: Any) -> None:
    """Stores what ``remove`` removes; not measured."""
    _store_small(f"{BUCKET}/removed", REMOVED, folders=5)
    fs.invalidate_cache()


def remove(fs: Any) -> None:
    """``rm(recursive=True)`` of 5,000 keys."""
    fs.rm(f"{BUCKET}/removed", recursive=True)


def columns(fs: Any) -> None:
    """3 of 100 columns of a Parquet file of 80 MB, through pyarrow."""
    from pyarrow import parquet

    read = parquet.read_table(TABLE, filesystem=fs, columns=["c3", "c50", "c97"])
    _expect(read.num_rows, ROWS)


def zarr_write(fs: Any) -> None:
    """64 MiB to zarr v3 in 256 chunks."""
    import numpy as np

    values = np.arange(SIDE * SIDE, dtype="f4").reshape(SIDE, SIDE)
    array = import_module("zarr").create_array(
        _store_of(fs), shape=values.shape, dtype="f4", chunks=(CHUNK, CHUNK), compressors=None, overwrite=True
    )
    array[:] = values


def zarr_read(fs: Any) -> None:
    """64 MiB from zarr v3 in 256 chunks."""
    zarr: Any = import_module("zarr")
    _expect(zarr.open_array(_store_of(fs), mode="r")[:].shape, (SIDE, SIDE))


def _store_of(fs: Any) -> Any:
    storage: Any = import_module("zarr.storage")
    return storage.FsspecStore(fs, path=ARRAY)


WORK: dict[str, Callable[[Any], None]] = {
    "open, read": whole_file,
    "cat_file": cat_file,
    "read 1 MiB": in_steps,
    "seek, read": seeks,
    "cat_ranges": cat_ranges,
    "put": put,
    "get": get,
    "ls": ls,
    "find": find,
    "rm -r": remove,
    "Parquet": columns,
    "zarr write": zarr_write,
    "zarr read": zarr_read,
}


def _expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise SystemExit(f"got {found}, expected {wanted}")


def _store_small(root: str, count: int, *, folders: int) -> None:
    names = (
        f"{root}/{number % folders:02}/{number:06}" if folders else f"{root}/{number:06}"
        for number in range(count)
    )
    filesystem("s3torch").pipe(dict.fromkeys(names, b""))


def _prepare(names: list[str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    boto_client().create_bucket(Bucket=BUCKET)
    data = os.urandom(SIZE)
    Path(scratch("large")).write_bytes(data)
    fs = filesystem("s3torch")
    fs.put(scratch("large"), LARGE)
    if "ls" in names:
        _store_small(f"{BUCKET}/listed", LISTED, folders=0)
    if "find" in names:
        _store_small(f"{BUCKET}/found", FOUND, folders=50)
    values = pa.array(range(ROWS), pa.int64())
    table = pa.table({f"c{number}": values for number in range(COLUMNS)})
    parquet.write_table(
        table, TABLE, filesystem=fs, row_group_size=ROWS // 4, use_dictionary=False, compression="none"
    )
    zarr_write(filesystem("s3torch", asynchronous=True))


def _measure(name: str, library: str) -> dict[str, float]:
    is_zarr = name.startswith("zarr")
    fs = filesystem(library, asynchronous=True) if is_zarr else filesystem(library)
    work = WORK[name]
    for _ in range(2):  # Imports and the first connections are not what is asked for.
        if work is remove:
            fill(fs)
        cpu, start = cpu_seconds(), time.perf_counter()
        work(fs)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "cpu_seconds": cpu_seconds() - cpu}


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each case runs (default 3)")
    add_scheme(parser)
    parser.add_argument("--only", nargs="*", choices=sorted(WORK), default=list(WORK))
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(_measure(*arguments.case)))
        return
    raw = {}
    for scheme in schemes(arguments):
        figures = _run(arguments, scheme)
        _print_table(figures, scheme)
        raw[scheme] = {" ".join(case): all_ for case, all_ in figures.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(raw))


def _run(arguments: argparse.Namespace, scheme: str) -> dict[tuple[str, str], list[dict[str, float]]]:
    figures: dict[tuple[str, str], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        start_seaweedfs(stack, tls=scheme == "https")
        os.environ[_SCRATCH] = stack.enter_context(TemporaryDirectory())
        _prepare(arguments.only)
        for number in range(arguments.rounds):
            for name in arguments.only:
                for library in LIBRARIES:
                    figure = in_child(name, library)
                    print(f"round {number + 1}, {name}, {library}: {figure}", file=sys.stderr, flush=True)
                    figures.setdefault((name, library), []).append(figure)
    return figures


def _print_table(figures: dict[tuple[str, str], list[dict[str, float]]], scheme: str) -> None:
    from rich.console import Console
    from rich.table import Table

    def median(name: str, library: str, field: str) -> float:
        return statistics.median(one[field] for one in figures[name, library])

    table = Table(title=f"s3torch-fsspec beside s3fs ({scheme})")
    for column in ("", "what", "s3fs s", "s3torch s", "speed", "s3fs CPU s", "s3torch CPU s", "CPU"):
        table.add_column(column, justify="left" if column in {"", "what"} else "right")
    for name in dict.fromkeys(name for name, _ in figures):
        seconds = [median(name, library, "seconds") for library in LIBRARIES]
        cpu = [median(name, library, "cpu_seconds") for library in LIBRARIES]
        table.add_row(
            name,
            (WORK[name].__doc__ or "").replace("``", ""),
            *(f"{one:.3f}" for one in seconds),
            f"{seconds[0] / seconds[1]:.2f}x",
            *(f"{one:.3f}" for one in cpu),
            f"{cpu[1] / cpu[0]:.2f}x",
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()

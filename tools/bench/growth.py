"""How does work grow with twice the objects, bytes, latency, workers and ranks?

Each pair of rows differs in one number; the report has their ratio. With latency the objects come from
memory, so that what grows is not the server's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from dataset import connectors, loader, ours
from dcp import READERS, WHOLE, save_whole
from libraries import CONNECTOR, cases
from measure import MIB, Question, main
from states import mixed_state, on_ranks

SMALL = 100 * 1024
SIZE = 128 * MIB


def _objects(count: int, workers: int, place: str, work: str) -> Question:
    prefix = f"of-{count}/"

    def read(make: Any) -> Any:
        def do() -> None:
            dataset = make("S3IterableDataset", prefix, enable_sharding=True)
            found = sum(1 for _ in loader(dataset, workers, batch_size=None))
            if found != count:
                raise SystemExit(f"got {found}, expected {count}")

        return lambda: do

    return Question(
        f"{count} objects of 100 KiB",
        {CONNECTOR: read(connectors), "s3torch": read(ours)},
        work=work,
        units=count,
        unit="objects",
        objects=((prefix, count, SMALL),),
        on=(place,),
    )


def _object(size: int) -> Question:
    key = f"size-{size // MIB}"
    return Question(
        f"read() of {size // MIB} MiB",
        cases("read", lambda library: library.read(f"{key}/00000")),
        work=f"bytes, {size // MIB} MiB",
        units=size / 1e9,
        unit="GB",
        objects=((f"{key}/", 1, size),),
        on=("http",),
    )


def _ranks(ranks: int) -> Question:
    def load(make: Any) -> Any:
        import torch.distributed.checkpoint as dcp

        def one() -> Any:
            state = mixed_state(SIZE, filled=False)
            return lambda: dcp.load(state, storage_reader=make(WHOLE))

        return on_ranks(ranks, one)

    return Question(
        f"dcp.load of the same {SIZE // MIB} MiB by each of {ranks} ranks",
        {name: partial(load, READERS[name]) for name in (CONNECTOR, "s3torch (http)")},
        work=f"ranks, {ranks}",
        prepare=save_whole,
        reads_back=True,
        on=("http",),
    )


if __name__ == "__main__":
    main(
        *(_objects(count, 0, "memory-20", f"objects, {count}") for count in (500, 1000)),
        *(_object(size) for size in (SIZE, 2 * SIZE)),
        *(_objects(400, 0, f"memory-{latency}", f"latency, {latency} ms") for latency in (20, 40)),
        *(_objects(800, workers, "memory-20", f"workers, {workers}") for workers in (1, 2)),
        *(_ranks(ranks) for ranks in (2, 4)),
    )

"""How long until the first batch of a cold process, imports included, at first and after a resume?

Seconds are from the start of the process; the imports of torch are a part of them. After a resume, the first
half of the epoch is done. s3torchconnector has no state to resume from: it reads what was read already.
"""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset import (
    COUNT,
    SIZE,
    SMALL,
    connectors,
    litdata_optimized,
    loader,
    mosaic,
    ours,
    put_shards,
    webdataset,
)
from libraries import CONNECTOR
from measure import Question, main, since_start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BATCH = 32
HALF = COUNT // BATCH // 2


def first_batch(make: Callable[[], Iterable[Any]], after: int = 0) -> Callable[[], Callable[[], object]]:
    """The case that makes a loader and waits for a batch, which reads what is before it as well."""
    return lambda: lambda: next(islice(make(), after, None))


def _batches(dataset: Any) -> Iterable[Any]:
    return loader(dataset, batch_size=BATCH, collate_fn=list)


def _resumable() -> Any:
    from torch.utils.data import DataLoader

    from s3torch.datasets import ResumableLoader, S3Sampler

    dataset = ours("S3MapDataset")
    return ResumableLoader(
        DataLoader(dataset, batch_size=BATCH, collate_fn=list, sampler=S3Sampler(dataset, shuffle=False))
    )


def _state() -> Path:
    return Path(os.environ["BENCH_SCRATCH"]) / "state"


def interrupt(_: Any) -> None:
    """Stops in the middle of an epoch and keeps the state."""
    import torch

    interrupted = _resumable()
    for _batch in islice(interrupted, HALF):
        pass
    torch.save(interrupted.state_dict(), _state())


def _resumed() -> Any:
    import torch

    resumed = _resumable()
    resumed.load_state_dict(torch.load(_state()))
    return resumed


_OBJECTS: dict[str, Any] = {
    "objects": ((SMALL, COUNT, SIZE),),
    "measured": since_start,
    "on": ("https", "memory-20"),
}

if __name__ == "__main__":
    main(
        Question(
            f"the first batch of {BATCH} of {COUNT} objects, from a cold process",
            {
                CONNECTOR: first_batch(lambda: _batches(connectors("S3MapDataset"))),
                "s3torch": first_batch(lambda: _batches(ours("S3MapDataset"))),
            },
            work="objects",
            **_OBJECTS,
        ),
        Question(
            f"the first batch of {BATCH} from shards, from a cold process",
            {
                "s3torch": first_batch(lambda: _batches(ours("S3ShardDataset", "tar/", transform=None))),
                "webdataset": first_batch(lambda: _batches(webdataset())),
                "litdata, optimized": first_batch(lambda: _batches(litdata_optimized())),
                "streaming (MDS)": first_batch(lambda: _batches(mosaic())),
            },
            work="shards",
            prepare=put_shards,
            reads_back=True,
            measured=since_start,
            baseline="webdataset",
            on=("https",),
        ),
        Question(
            f"the first batch of a cold process that resumes after {HALF} batches",
            {
                CONNECTOR: first_batch(lambda: _batches(connectors("S3MapDataset")), HALF),
                "s3torch": first_batch(_resumed),
            },
            work="resumed",
            prepare=interrupt,
            **_OBJECTS,
        ),
    )

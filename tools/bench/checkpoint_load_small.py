"""What does it cost to load many small tensors when each request waits 20 ms for its first byte?"""

from __future__ import annotations

from functools import partial
from typing import Any

from checkpoint_load import connector, s3torch
from checkpoint_state import quiet, small_state
from measure import BUCKET, REGION, Question, main

TENSORS = 500
FILES = 8
PATH = f"s3://{BUCKET}/small"


def prepare(boto: Any) -> None:  # noqa: ARG001 - The writer has a client of its own.
    """Saves the checkpoint in several files."""
    import torch.distributed.checkpoint as dcp

    from s3torch.dcp import S3StorageWriter

    quiet()
    dcp.save(small_state(TENSORS), storage_writer=S3StorageWriter(REGION, PATH, thread_count=FILES))


if __name__ == "__main__":
    blank = partial(small_state, TENSORS, filled=False)
    main(
        Question(
            title=f"dcp.load of {TENSORS} small tensors in {FILES} files, 20 ms to the first byte",
            cases={
                "s3torch, crt": s3torch(blank, PATH, "crt"),
                "s3torch, http": s3torch(blank, PATH, "http"),
                "s3torchconnector": connector(blank, PATH),
            },
            units=1,
            unit="load",
            prepare=prepare,
            latency=0.02,
        )
    )

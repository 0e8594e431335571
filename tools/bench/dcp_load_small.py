"""What does it cost to load many small tensors when each request waits 20 ms for its first byte?"""

from __future__ import annotations

from typing import Any

from measure import BUCKET, REGION, Question, main
from states import loading_with, loading_with_connector, quiet, small_state

TENSORS = 500
FILES = 8
PATH = f"s3://{BUCKET}/small"


def prepare(boto: Any) -> None:  # noqa: ARG001 - The writer has a client of its own.
    """Saves the checkpoint in several files."""
    import torch.distributed.checkpoint as dcp

    from s3torch.dcp import S3StorageWriter

    quiet()
    dcp.save(small_state(TENSORS), storage_writer=S3StorageWriter(REGION, PATH, thread_count=FILES))


def _blank() -> dict[str, Any]:
    return small_state(TENSORS, filled=False)


if __name__ == "__main__":
    main(
        Question(
            title=f"dcp.load of {TENSORS} small tensors in {FILES} files, 20 ms to the first byte",
            cases={
                "s3torch, crt": lambda: loading_with("crt", _blank(), PATH),
                "s3torch, http": lambda: loading_with("http", _blank(), PATH),
                "s3torchconnector": lambda: loading_with_connector(_blank(), PATH),
            },
            units=1,
            unit="load",
            prepare=prepare,
            latency=0.02,
        )
    )

"""What does it cost to save a distributed checkpoint?"""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING, Any

from checkpoint_state import mixed_state, quiet, size_from_environment
from measure import BUCKET, MIB, REGION, Question, main

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = size_from_environment(256 * MIB)


def prepare(boto: Any) -> None:
    """Nothing has to be there."""


def _saving(make_writer: Callable[[str], Any]) -> Callable[[], object]:
    import torch.distributed.checkpoint as dcp

    quiet()
    state = mixed_state(SIZE)
    numbers = count()
    return lambda: dcp.save(
        state, storage_writer=make_writer(f"s3://{BUCKET}/save-{os.getpid()}-{next(numbers)}")
    )


def s3torch(threads: int) -> Callable[[str], Callable[[], object]]:
    """Our storage writer."""

    def case(endpoint: str) -> Callable[[], object]:
        from s3torch.dcp import S3StorageWriter

        return _saving(lambda path: S3StorageWriter(REGION, path, thread_count=threads, endpoint=endpoint))

    return case


def connector(threads: int) -> Callable[[str], Callable[[], object]]:
    """The storage writer of s3torchconnector."""

    def case(endpoint: str) -> Callable[[], object]:  # noqa: ARG001 - It takes it from the environment.
        from s3torchconnector import S3ClientConfig
        from s3torchconnector.dcp import S3StorageWriter

        config = S3ClientConfig(force_path_style=True)
        return _saving(lambda path: S3StorageWriter(REGION, path, config, thread_count=threads))

    return case


if __name__ == "__main__":
    main(
        Question(
            title=f"dcp.save of {SIZE // MIB} MiB, tensors of many sizes",
            cases={
                "s3torch": s3torch(1),
                "s3torch, 4 files": s3torch(4),
                "s3torchconnector": connector(1),
                "s3torchconnector, 4 files": connector(4),
            },
            units=SIZE / 1e9,
            unit="GB",
            prepare=prepare,
        )
    )

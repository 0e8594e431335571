"""What does it cost to save a distributed checkpoint?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from measure import MIB, REGION, Question, endpoint, main
from states import mixed_state, saving, size_from_environment

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = size_from_environment(256 * MIB)


def prepare(boto: Any) -> None:
    """Nothing has to be there."""


def s3torch(threads: int) -> Callable[[], object]:
    """Our storage writer."""
    from s3torch.dcp import S3StorageWriter

    return saving(
        mixed_state(SIZE),
        lambda path: S3StorageWriter(REGION, path, thread_count=threads, endpoint=endpoint()),
    )


def connector(threads: int) -> Callable[[], object]:
    """The storage writer of s3torchconnector."""
    from s3torchconnector import S3ClientConfig
    from s3torchconnector.dcp import S3StorageWriter

    config = S3ClientConfig(force_path_style=True)
    return saving(mixed_state(SIZE), lambda path: S3StorageWriter(REGION, path, config, thread_count=threads))


if __name__ == "__main__":
    main(
        Question(
            title=f"dcp.save of {SIZE // MIB} MiB, tensors of many sizes",
            cases={
                "s3torch": lambda: s3torch(1),
                "s3torch, 4 files": lambda: s3torch(4),
                "s3torchconnector": lambda: connector(1),
                "s3torchconnector, 4 files": lambda: connector(4),
            },
            units=SIZE / 1e9,
            unit="GB",
            prepare=prepare,
        )
    )

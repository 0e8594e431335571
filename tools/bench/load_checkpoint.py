"""How fast is a checkpoint of one object loaded?"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from measure import BUCKET, MIB, REGION, Question, endpoint, main

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 256 * MIB
TENSORS = 16
URI = f"s3://{BUCKET}/checkpoint.pt"


def prepare(boto: Any) -> None:
    """Puts the checkpoint."""
    import torch

    file = io.BytesIO()
    torch.save({str(n): torch.full((SIZE // TENSORS // 4,), float(n)) for n in range(TENSORS)}, file)
    file.seek(0)
    boto.upload_fileobj(file, *URI.removeprefix("s3://").split("/"))


def _check(state: Any) -> None:
    # Whoever loads a checkpoint reads all of it once.
    for n in range(TENSORS):
        if float(state[str(n)].amax()) != n:
            raise ValueError(n)


def load_mapped() -> Callable[[], object]:
    """Our S3Checkpoint, with tensors that alias one file in memory."""
    from s3torch.core import S3Checkpoint

    checkpoint = S3Checkpoint(REGION, endpoint())
    return lambda: _check(checkpoint.load(URI, mmap=True))


def load() -> Callable[[], object]:
    """Our S3Checkpoint, with memory of its own for each tensor."""
    from s3torch.core import S3Checkpoint

    checkpoint = S3Checkpoint(REGION, endpoint())
    return lambda: _check(checkpoint.load(URI))


def connector() -> Callable[[], object]:
    """A reader of s3torchconnector."""
    import torch

    from s3torchconnector import S3Checkpoint, S3ClientConfig

    checkpoint = S3Checkpoint(REGION, endpoint(), S3ClientConfig(force_path_style=True))

    def work() -> None:
        with checkpoint.reader(URI) as reader:
            _check(torch.load(reader))

    return work


if __name__ == "__main__":
    main(
        Question(
            title="Loading a checkpoint of 256 MiB in 16 tensors, and reading each number once",
            cases={"s3torchconnector": connector, "s3torch": load, "s3torch mmap=True": load_mapped},
            units=SIZE / 1e9,
            unit="GB",
            prepare=prepare,
        )
    )

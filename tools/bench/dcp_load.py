"""What does it cost to load a distributed checkpoint?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from measure import BUCKET, MIB, REGION, Question, endpoint, main
from states import (
    loading_with,
    loading_with_connector,
    mixed_state,
    quiet,
    saving,
    size_from_environment,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = size_from_environment(1024 * MIB)
PATH = f"s3://{BUCKET}/load"


def prepare(boto: Any) -> None:  # noqa: ARG001 - The writer has a client of its own.
    """Saves the checkpoint, one file as the default is."""
    import torch.distributed.checkpoint as dcp

    from s3torch.dcp import S3StorageWriter

    quiet()
    dcp.save(mixed_state(SIZE), storage_writer=S3StorageWriter(REGION, PATH))


def s3torch_saving() -> Callable[[], object]:
    """Our storage writer, for a comparison."""
    from s3torch.dcp import S3StorageWriter

    return saving(mixed_state(SIZE), lambda path: S3StorageWriter(REGION, path, endpoint=endpoint()))


def _blank() -> dict[str, Any]:
    return mixed_state(SIZE, filled=False)


if __name__ == "__main__":
    main(
        Question(
            title=f"dcp.load of {SIZE // MIB} MiB, tensors of many sizes",
            cases={
                "s3torch, crt": lambda: loading_with("crt", _blank(), PATH),
                "s3torch, http": lambda: loading_with("http", _blank(), PATH),
                "s3torch, saving": s3torch_saving,
                "s3torchconnector": lambda: loading_with_connector(_blank(), PATH),
            },
            units=SIZE / 1e9,
            unit="GB",
            prepare=prepare,
            size=SIZE,
            reads_back=True,
        )
    )

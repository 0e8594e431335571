"""What does it cost to load a distributed checkpoint?"""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING, Any

from checkpoint_state import mixed_state, quiet, size_from_environment
from measure import BUCKET, MIB, REGION, Question, main

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = size_from_environment(1024 * MIB)
PATH = f"s3://{BUCKET}/load"


def prepare(boto: Any) -> None:  # noqa: ARG001 - The writer has a client of its own.
    """Saves the checkpoint, one file as the default is."""
    _save(PATH)


def _save(path: str) -> None:
    import torch.distributed.checkpoint as dcp

    from s3torch.dcp import S3StorageWriter

    quiet()
    dcp.save(mixed_state(SIZE), storage_writer=S3StorageWriter(REGION, path))


def loading(state: dict[str, Any], make_reader: Callable[[], Any]) -> Callable[[], object]:
    """Returns the work: a load into tensors that are there already."""
    import torch.distributed.checkpoint as dcp

    quiet()
    return lambda: dcp.load(state, storage_reader=make_reader())


def s3torch(
    state: Callable[[], dict[str, Any]], path: str, transport: str
) -> Callable[[str], Callable[[], object]]:
    """Our storage reader."""

    def case(endpoint: str) -> Callable[[], object]:
        from s3torch.core import S3ClientConfig
        from s3torch.dcp import S3StorageReader

        config = S3ClientConfig(transport=transport, endpoint=endpoint)
        return loading(state(), lambda: S3StorageReader(REGION, path, config))

    return case


def connector(state: Callable[[], dict[str, Any]], path: str) -> Callable[[str], Callable[[], object]]:
    """The storage reader of s3torchconnector."""

    def case(endpoint: str) -> Callable[[], object]:  # noqa: ARG001 - It takes it from the environment.
        from s3torchconnector import S3ClientConfig
        from s3torchconnector.dcp import S3StorageReader

        config = S3ClientConfig(force_path_style=True)
        return loading(state(), lambda: S3StorageReader(REGION, path, config))

    return case


def saving(endpoint: str) -> Callable[[], object]:
    """Our storage writer, for a comparison."""
    import torch.distributed.checkpoint as dcp

    from s3torch.dcp import S3StorageWriter

    quiet()
    state = mixed_state(SIZE)
    numbers = count()
    return lambda: dcp.save(
        state,
        storage_writer=S3StorageWriter(
            REGION, f"s3://{BUCKET}/save-{os.getpid()}-{next(numbers)}", endpoint=endpoint
        ),
    )


def _blank() -> dict[str, Any]:
    return mixed_state(SIZE, filled=False)


if __name__ == "__main__":
    main(
        Question(
            title=f"dcp.load of {SIZE // MIB} MiB, tensors of many sizes",
            cases={
                "s3torch, crt": s3torch(_blank, PATH, "crt"),
                "s3torch, http": s3torch(_blank, PATH, "http"),
                "s3torch, saving": saving,
                "s3torchconnector": connector(_blank, PATH),
            },
            units=SIZE / 1e9,
            unit="GB",
            prepare=prepare,
            size=SIZE,
            reads_back=True,
        )
    )

"""What does it cost to load a distributed checkpoint?

``BENCH_STATE=small`` loads 500 small tensors from 8 files through a network with 20 ms to the first byte.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from checkpoint_state import mixed_state, quiet, size_from_environment, small_state
from measure import BUCKET, MIB, REGION, Question, main

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = size_from_environment(256 * MIB)
IS_SMALL = os.environ.get("BENCH_STATE") == "small"
SMALL = 500
PATH = f"s3://{BUCKET}/checkpoint"
LATENCY = 0.02


def _state(*, filled: bool = True) -> dict[str, Any]:
    return small_state(SMALL, filled=filled) if IS_SMALL else mixed_state(SIZE, filled=filled)


def prepare(boto: Any) -> None:
    """Saves the checkpoint."""
    import torch.distributed.checkpoint as dcp

    from s3torch.dcp import S3StorageWriter

    quiet()
    endpoint = boto.meta.endpoint_url
    writer = S3StorageWriter(REGION, PATH, thread_count=8 if IS_SMALL else 1, endpoint=endpoint)
    dcp.save(_state(), storage_writer=writer)


def _loading(make_reader: Callable[[], Any], endpoint: str) -> Callable[[], object]:
    import torch.distributed.checkpoint as dcp

    quiet()
    if IS_SMALL:
        from s3torch.core.testing.faults import Fault, FaultProxy

        proxy = FaultProxy(endpoint).start()
        proxy.add(Fault(latency=LATENCY))
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
    target = _state(filled=False)
    return lambda: dcp.load(target, storage_reader=make_reader())


def s3torch(endpoint: str) -> Callable[[], object]:
    """Our storage reader."""
    from s3torch.dcp import S3StorageReader

    return _loading(lambda: S3StorageReader(REGION, PATH), endpoint)


def connector(endpoint: str) -> Callable[[], object]:
    """The storage reader of s3torchconnector, with its default kind of reader."""
    from s3torchconnector import S3ClientConfig
    from s3torchconnector.dcp import S3StorageReader

    config = S3ClientConfig(force_path_style=True)
    return _loading(lambda: S3StorageReader(REGION, PATH, config), endpoint)


if __name__ == "__main__":
    what = (
        f"{SMALL} small tensors, 8 files, 20 ms" if IS_SMALL else f"{SIZE // MIB} MiB, tensors of many sizes"
    )
    main(
        Question(
            title=f"dcp.load of {what}",
            cases={"s3torch": s3torch, "s3torchconnector": connector},
            units=SMALL if IS_SMALL else SIZE / 1e9,
            unit="tensors" if IS_SMALL else "GB",
            prepare=prepare,
        )
    )

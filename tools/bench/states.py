"""What the questions about ``torch.distributed.checkpoint`` share: state dicts, and the work on them."""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING, Any

from measure import BUCKET, MIB, REGION, endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

# A few large tensors, and hundreds of small ones, as in a model with its optimizer.
SHARES = ((4, 1 / 8), (16, 1 / 64), (32, 1 / 256), (400, 1 / 3200))


def mixed_state(size: int, *, filled: bool = True) -> dict[str, Any]:
    """Returns tensors of many sizes.

    Args:
        size: Bytes of all together, about.
        filled: With random bytes, else with ones.
    """
    import torch

    state = {}
    for number, share in SHARES:
        for index in range(number):
            shape = (max(1, int(size * share) // 1024), 256)
            state[f"t{number}.{index}"] = torch.randn(shape) if filled else torch.full(shape, 1.0)
    return state


def small_state(number: int, *, filled: bool = True) -> dict[str, Any]:
    """Returns many small tensors."""
    import torch

    make = torch.randn if filled else torch.zeros
    return {f"t{index}": make(64, 64) for index in range(number)}


def saving(state: dict[str, Any], make_writer: Callable[[str], Any]) -> Callable[[], object]:
    """Returns the work: each time a save to a path of its own."""
    import torch.distributed.checkpoint as dcp

    quiet()
    numbers = count()
    return lambda: dcp.save(
        state, storage_writer=make_writer(f"s3://{BUCKET}/save-{os.getpid()}-{next(numbers)}")
    )


def loading(state: dict[str, Any], make_reader: Callable[[], Any]) -> Callable[[], object]:
    """Returns the work: a load into tensors that are there already."""
    import torch.distributed.checkpoint as dcp

    quiet()
    return lambda: dcp.load(state, storage_reader=make_reader())


def loading_with(transport: str | None, state: dict[str, Any], path: str) -> Callable[[], object]:
    """Returns a load with our storage reader."""
    from s3torch.core import S3ClientConfig
    from s3torch.dcp import S3StorageReader

    config = S3ClientConfig(transport=transport, endpoint=endpoint())
    return loading(state, lambda: S3StorageReader(REGION, path, config))


def loading_with_connector(state: dict[str, Any], path: str) -> Callable[[], object]:
    """Returns a load with the storage reader of s3torchconnector."""
    from s3torchconnector import S3ClientConfig
    from s3torchconnector.dcp import S3StorageReader

    config = S3ClientConfig(force_path_style=True)
    return loading(state, lambda: S3StorageReader(REGION, path, config))


def quiet() -> None:
    """Keeps torch's remarks about a single process out of the figures."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable()


def size_from_environment(default: int) -> int:
    """The size in bytes; ``BENCH_MIB`` overrides it."""
    return int(os.environ.get("BENCH_MIB", default // MIB)) * MIB

"""The state dicts of the questions about checkpoints."""

from __future__ import annotations

import os
from typing import Any

MIB = 1024 * 1024
# A few large tensors, and hundreds of small ones, as in a model with its optimizer.
SHARES = ((4, 1 / 8), (16, 1 / 64), (32, 1 / 256), (400, 1 / 3200))


def mixed_state(size: int, *, filled: bool = True) -> dict[str, Any]:
    """Returns tensors of many sizes.

    Args:
        size: Bytes of all together, about.
        filled: With random bytes, else with zeros that were touched.
    """
    import torch

    state = {}
    for count, share in SHARES:
        for number in range(count):
            shape = (max(1, int(size * share) // 1024), 256)
            state[f"t{count}.{number}"] = torch.randn(shape) if filled else torch.full(shape, 1.0)
    return state


def small_state(count: int, *, filled: bool = True) -> dict[str, Any]:
    """Returns many small tensors."""
    import torch

    make = torch.randn if filled else torch.zeros
    return {f"t{number}": make(64, 64) for number in range(count)}


def quiet() -> None:
    """Keeps torch's remarks about a single process out of the figures."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable()


def size_from_environment(default: int) -> int:
    """The size in bytes; ``BENCH_MIB`` overrides it."""
    return int(os.environ.get("BENCH_MIB", default // MIB)) * MIB

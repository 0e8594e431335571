"""Saves distributed checkpoints while the training goes on. See README.md."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from s3torch.dcp import S3StorageWriter
from s3torch.dcp.manage import latest_checkpoint, prune_checkpoints

if TYPE_CHECKING:
    from concurrent.futures import Future


def main() -> None:
    """Trains, and saves every some steps in the background."""
    options = parse_arguments()
    # async_save needs a process group; with torchrun, that of all ranks.
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    torch.manual_seed(1)
    model = nn.Linear(256, 256)
    optimizer = torch.optim.AdamW(model.parameters())
    saving: Future[Any] | None = None
    for step in range(1, options.steps + 1):
        data = torch.randn(32, 256)
        loss = nn.functional.mse_loss(model(data), data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % options.every == 0:
            saving = start_save(saving, model, optimizer, f"{options.root}/step-{step}")
    if saving is not None:
        saving.result()
    removed = prune_checkpoints(options.root, last=2)
    newest = latest_checkpoint(options.root)
    print(f"newest: {newest.name if newest else None}, removed: {[one.name for one in removed]}")
    dist.destroy_process_group()


def start_save(
    before: Future[Any] | None, model: nn.Module, optimizer: torch.optim.Optimizer, path: str
) -> Future[Any]:
    """Starts a save, when the one before it has ended well."""
    if before is not None:
        before.result()
    start = time.perf_counter()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    saving = cast("Future[Any]", dcp.async_save(state, storage_writer=S3StorageWriter(None, path)))
    print(f"{path}: the training waited {1000 * (time.perf_counter() - start):.0f} ms")
    return saving


def parse_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="where the checkpoints go, as in s3://my-bucket/examples/async")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--every", type=int, default=10, help="steps between two checkpoints")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Saves a sharded model on some ranks and loads it on others. See README.md."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from s3torch.dcp import S3StorageReader, S3StorageWriter
from s3torch.dcp.manage import latest_checkpoint


def main() -> None:
    """Trains and saves, or loads the last checkpoint."""
    options = parse_arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank())
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    torch.manual_seed(1 if options.action == "save" else 2)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16)).to(device)
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    if options.action == "save":
        for step in range(1, options.steps + 1):
            train_step(model, optimizer, device)
            if step % 2 == 0:
                save(model, optimizer, f"{options.root}/step-{step}")
    else:
        load(model, optimizer, options.root)
    total = checksum(model)
    if dist.get_rank() == 0:
        print(f"{options.action}: world size {dist.get_world_size()}, checksum {total:.6f}")
    dist.destroy_process_group()


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, device: str) -> None:
    """Takes one step on random data."""
    data = torch.randn(8, 16, device=device)
    loss = nn.functional.mse_loss(model(data), data)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def save(model: nn.Module, optimizer: torch.optim.Optimizer, path: str) -> None:
    """Saves the shards of all ranks as one checkpoint."""
    weights, steps = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": steps}
    dcp.save(state, storage_writer=S3StorageWriter(region=None, path=path))


def load(model: nn.Module, optimizer: torch.optim.Optimizer, root: str) -> None:
    """Loads the last complete checkpoint into the shards of this rank."""
    found: list[Any] = [latest_checkpoint(root) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)  # One rank looks, so that all load the same.
    if found[0] is None:
        raise SystemExit(f"there is no checkpoint in {root}")
    weights, steps = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": steps}
    reader = S3StorageReader(region=None, path=found[0].uri, process_group=dist.group.WORLD)
    dcp.load(state, storage_reader=reader)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def checksum(model: nn.Module) -> float:
    """Returns the sum of all elements, over all ranks."""
    total = 0.0
    for weight in model.parameters():
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        total += whole.detach().double().sum().item()
    return total


def parse_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="where the checkpoints are, as in s3://my-bucket/examples/fsdp2")
    parser.add_argument("action", choices=["save", "load"])
    parser.add_argument("--steps", type=int, default=4)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""A job of several ranks that saves or loads models; run by torchrun: what to do, where, and through what.

``save NAME`` saves DDP, FSDP2 and DTensor state dicts, ``load NAME`` loads what a job of any size has saved.
Several can be given; ``wide NAME`` loads only a large DTensor, so that its bytes can be counted.
"""

from __future__ import annotations

import os
import sys
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from s3torch.core import S3ClientConfig
from s3torch.dcp import (
    S3HuggingFaceStorageReader,
    S3HuggingFaceStorageWriter,
    S3StorageReader,
    S3StorageWriter,
)

ROWS = 1000


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(13, 29), nn.ReLU(), nn.Linear(29, 7, bias=False), nn.LayerNorm(7))


def trained(model, seed):
    """One step, so that the optimizer has a state; the same on every rank."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    torch.manual_seed(seed)
    model(torch.randn(5, 13)).square().sum().backward()
    optimizer.step()
    return optimizer


def whole(seed):
    return torch.arange(ROWS * 1024, dtype=torch.float32).reshape(ROWS, 1024) + seed


class Job:
    """All that one rank trains."""

    def __init__(self, seed):
        size = dist.get_world_size()
        mesh = init_device_mesh("cpu", (size,))
        square = init_device_mesh("cpu", (2, size // 2))
        self.plain = DistributedDataParallel(network(seed))
        self.sharded = network(seed + 1)
        fully_shard(self.sharded, mesh=mesh)
        self.models = {"plain": self.plain, "sharded": self.sharded}
        self.optimizers = {name: trained(model, seed) for name, model in self.models.items()}
        self.wide = distribute_tensor(whole(seed), mesh, [Shard(0)])
        self.columns = distribute_tensor(whole(seed)[:, :33].contiguous(), mesh, [Shard(1)])
        self.tiles = distribute_tensor(whole(seed)[:31, :65].contiguous(), square, [Shard(0), Shard(1)])
        self.same = distribute_tensor(torch.full((9,), float(seed)), mesh, [Replicate()])

    def tensors(self):
        return {"wide": self.wide, "columns": self.columns, "tiles": self.tiles, "same": self.same}

    def state(self):
        state = self.tensors()
        for name, model in self.models.items():
            state[name], state[f"{name} optimizer"] = get_state_dict(model, self.optimizers[name])
        return state

    def load(self, state):
        for name, model in self.models.items():
            set_state_dict(
                model,
                self.optimizers[name],
                model_state_dict=state[name],
                optim_state_dict=state[f"{name} optimizer"],
            )


def gathered(value):
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {name: gathered(item) for name, item in value.items()}
    return value


def assert_same(left, right, where=""):
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for name in left:
            assert_same(left[name], right[name], f"{where}/{name}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


def main():
    warnings.simplefilter("ignore")
    root, endpoint, *tasks = sys.argv[1:]
    dist.init_process_group("gloo")
    config = S3ClientConfig(max_attempts=2)
    # What every job would have, of whatever size: DDP and FSDP average gradients of equal batches.
    expected = gathered(Job(7).state())
    for task, name in zip(tasks[::2], tasks[1::2], strict=True):
        if task == "save":
            writer = S3StorageWriter("us-east-1", f"{root}/{name}", config, endpoint=endpoint, thread_count=2)
            dcp.save(Job(7).state(), storage_writer=writer)
            face = S3HuggingFaceStorageWriter(
                "us-east-1",
                f"{root}/{name}-face",
                config,
                {"wide": 1, "columns": 2, "tiles": 2, "same": 1},
                save_distributed=True,
                enable_consolidation=True,
                endpoint=endpoint,
            )
            dcp.save(Job(7).tensors(), storage_writer=face)
            continue
        reader = S3StorageReader(
            "us-east-1", f"{root}/{name}", config, endpoint=endpoint, process_group=dist.group.WORLD
        )
        job = Job(1)
        if task == "wide":
            dcp.load({"wide": job.wide}, storage_reader=reader)
            assert torch.equal(job.wide.full_tensor(), whole(7))
            continue
        state = job.state()
        dcp.load(state, storage_reader=reader)
        job.load(state)
        assert_same(gathered(job.state()), expected)
        tensors = Job(1).tensors()
        face = S3HuggingFaceStorageReader(
            "us-east-1", f"{root}/{name}-face", config, endpoint=endpoint, process_group=dist.group.WORLD
        )
        dcp.load(tensors, storage_reader=face)
        assert_same(gathered(tensors), {key: expected[key] for key in tensors})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    # Threads of gloo abort some processes that end in the usual way, those without s3torch, too.
    os._exit(0)

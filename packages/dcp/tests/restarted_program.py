"""A job that goes on from its last checkpoint when it is started again; run by torchrun.

It saves after each of its steps, always to one path. Each rank writes its id and its steps into files.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from s3torch.core import S3ClientConfig
from s3torch.dcp import S3StorageReader, S3StorageWriter
from s3torch.dcp.manage import latest_checkpoint

STEPS = 4


def main():
    warnings.simplefilter("ignore")
    uri, endpoint, folder = sys.argv[1:]
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    Path(folder, f"{rank}-pid").write_text(f"{os.getpid()}")
    config = S3ClientConfig(max_attempts=1)
    mesh = init_device_mesh("cpu", (size,))
    state = {"weight": distribute_tensor(torch.zeros(10, 3), mesh, [Shard(0)]), "step": 0}
    # One rank decides, so that all begin at one step.
    found = [latest_checkpoint(uri) is not None if rank == 0 else None]
    dist.broadcast_object_list(found)
    if found[0]:
        reader = S3StorageReader("us-east-1", uri, config, endpoint=endpoint, process_group=dist.group.WORLD)
        dcp.load(state, storage_reader=reader)
    assert (state["weight"].full_tensor() == state["step"]).all()
    writer = S3StorageWriter("us-east-1", uri, config, endpoint=endpoint)
    while state["step"] < STEPS:
        state["step"] += 1
        state["weight"] += 1
        with Path(folder, f"{rank}-steps").open("a") as file:
            file.write(f"{state['step']} ")
        dcp.save(state, storage_writer=writer)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    # Threads of gloo abort some processes that end in the usual way, those without s3torch, too.
    os._exit(0)

"""Trains with DistributedDataParallel, each sample on one rank. See README.md."""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from s3torch.core import S3Checkpoint, S3Client, S3Reader, parse_s3_uri
from s3torch.datasets import ResumableLoader, S3MapDataset, S3Sampler


def main() -> None:
    """Trains some steps of one epoch, from where the last run was stopped."""
    options = parse_arguments()
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        make_numbers(options.root, options.objects)
    dist.barrier()

    dataset = S3MapDataset.from_prefix(f"{options.root}/numbers/", transform=to_sample)
    loader = ResumableLoader(DataLoader(dataset, batch_size=4, sampler=S3Sampler(dataset, seed=1)))
    torch.manual_seed(1)
    model = DistributedDataParallel(nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoint, path = S3Checkpoint(), f"{options.root}/last.pt"
    if checkpoint.exists(path):
        state = checkpoint.load(path)
        model.module.load_state_dict(state["model"])
        loader.load_state_dict(state["loader"])

    seen = []
    for step, (numbers, keys) in enumerate(loader, 1):
        loss = nn.functional.mse_loss(model(numbers), numbers * 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += keys
        if step == options.steps:
            break
    if dist.get_rank() == 0:
        checkpoint.save({"model": model.module.state_dict(), "loader": loader.state_dict()}, path)
    everything: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everything, seen)
    if dist.get_rank() == 0:
        keys = [key for part in everything for key in part]
        print(f"world size {len(everything)}: {len(keys)} samples, {len(set(keys))} different")
    dist.destroy_process_group()


def to_sample(reader: S3Reader) -> tuple[torch.Tensor, str]:
    """Makes a sample of an object: its number and its key."""
    return torch.tensor([int(reader.read()) / 100]), reader.key


def make_numbers(root: str, count: int) -> None:
    """Stores a number in each object, unless there are some."""
    bucket, prefix = parse_s3_uri(root)
    with S3Client() as client:
        if any(client.walk(bucket, f"{prefix}/numbers/")):
            return
        for number in range(count):
            with client.put_object(bucket, f"{prefix}/numbers/{number:05}") as writer:
                writer.write(str(number).encode())


def parse_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="where the data is, as in s3://my-bucket/examples/ddp")
    parser.add_argument("--objects", type=int, default=160, help="how many are made; default: %(default)s")
    parser.add_argument("--steps", type=int, default=10, help="after which the run is stopped")
    return parser.parse_args()


if __name__ == "__main__":
    main()

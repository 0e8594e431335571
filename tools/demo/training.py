"""Trains a small network on images in S3, and keeps its checkpoints there.

This is an ordinary training script, and the place to see how s3torch is used. It finds the S3 server and
the credentials where every AWS program finds them: in the environment. It continues from the last
checkpoint, if there is one, and prints what happens as lines of JSON.

    python tools/demo/training.py s3://my-bucket --epochs 5
"""

from __future__ import annotations

import argparse
import json
import random
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from PIL import Image
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.utils.data import DataLoader, IterableDataset

from s3torch.core import S3Checkpoint, S3Client, parse_s3_uri
from s3torch.datasets import S3IterableDataset, S3MapDataset
from s3torch.dcp import S3StorageReader, S3StorageWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core import S3Reader

SEED = 7
BATCH = 64

Sample = tuple[torch.Tensor, int]
State = dict[str, Any]


def main() -> None:
    """Trains, validates and saves, epoch by epoch; then saves everything once more with DCP."""
    options = parse_arguments()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # The network is small; the other cores are for the workers.
    model = digit_network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    images = S3IterableDataset.from_prefix(
        f"{options.bucket}/train/", transform=to_sample, enable_sharding=True
    )
    held_out = S3MapDataset.from_prefix(f"{options.bucket}/validation/", transform=to_sample)
    checkpoints = Checkpoints(f"{options.bucket}/checkpoints")

    done = checkpoints.load_latest(model, optimizer)
    for epoch in range(done + 1, options.epochs + 1):
        train(model, optimizer, images, epoch=epoch, workers=options.workers)
        validate(model, held_out, epoch=epoch, workers=options.workers)
        checkpoints.save(model, optimizer, epoch=epoch)

    save_distributed(model, optimizer, f"{options.bucket}/dcp/final")


def digit_network() -> nn.Module:
    """Returns a network that tells which digit an image of 8 by 8 pixels shows."""
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 1024),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(1024, 10),
    )


def to_sample(reader: S3Reader) -> Sample:
    """Turns an object such as ``train/3/0042.png`` into pixels and a label; runs in the workers."""
    with Image.open(reader) as image:
        pixels = np.asarray(image, dtype=np.float32) / 255
    label = int(reader.key.split("/")[-2])
    return torch.from_numpy(pixels).unsqueeze(0), label


class Shuffled(IterableDataset[Sample]):
    """The samples of a dataset in another order: a listing has one class after the other."""

    def __init__(self, samples: IterableDataset[Sample], *, seed: int) -> None:
        self.samples = samples
        self.seed = seed

    def __iter__(self) -> Iterator[Sample]:
        everything = list(self.samples)
        random.Random(self.seed).shuffle(everything)  # noqa: S311  (not for secrets)
        return iter(everything)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: S3IterableDataset[Sample],
    *,
    epoch: int,
    workers: int,
) -> None:
    """Trains for one epoch."""
    # The same epoch is the same again after a crash: order of the images and dropout come from the seed.
    torch.manual_seed(SEED + epoch)
    loader = DataLoader(Shuffled(images, seed=SEED + epoch), batch_size=BATCH, num_workers=workers)
    model.train()
    seen = 0
    start = time.perf_counter()
    for pixels, labels in loader:
        loss = nn.functional.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += len(labels)
        report("step", epoch=epoch, images=seen, loss=loss.item())
    report("trained", epoch=epoch, images=seen, seconds=time.perf_counter() - start)


def validate(model: nn.Module, images: S3MapDataset[Sample], *, epoch: int, workers: int) -> None:
    """Counts how many digits that it has never seen the network reads right."""
    model.eval()
    total, right = len(images), 0  # The length is asked for here, so that not each worker lists the images.
    with torch.no_grad():
        for pixels, labels in DataLoader(images, batch_size=128, num_workers=workers):
            right += int((model(pixels).argmax(dim=1) == labels).sum())
    report("validated", epoch=epoch, accuracy=right / total, images=total)


class Checkpoints:
    """One object for each epoch: ``epoch-01.pt``, ``epoch-02.pt`` …."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.s3 = S3Checkpoint()

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, epoch: int) -> None:
        """Saves everything that the next epoch needs."""
        state = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        start = time.perf_counter()
        with self.s3.writer(f"{self.prefix}/epoch-{epoch:02}.pt") as writer:
            torch.save(state, writer)
        report("saved", epoch=epoch, bytes=writer.tell(), seconds=time.perf_counter() - start)

    def load_latest(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Loads the newest checkpoint and returns its epoch, or 0 when there is none."""
        bucket, prefix = parse_s3_uri(self.prefix)
        with S3Client() as client:
            pages = client.list_objects(bucket, f"{prefix}/")
            keys = [info.key for page in pages for info in page.object_info]
        if not keys:
            return 0
        start = time.perf_counter()
        with self.s3.reader(f"s3://{bucket}/{max(keys)}") as reader:
            state = torch.load(reader)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        report("resumed", epoch=state["epoch"], seconds=time.perf_counter() - start)
        return int(state["epoch"])


def save_distributed(model: nn.Module, optimizer: torch.optim.Optimizer, path: str) -> None:
    """Saves with ``torch.distributed.checkpoint``, loads it into another network, and compares."""
    state = distributed_state(model, optimizer)
    start = time.perf_counter()
    dcp.save(state, storage_writer=S3StorageWriter(region=None, path=path))
    saved = time.perf_counter()

    other = digit_network()
    other_state = distributed_state(other, torch.optim.AdamW(other.parameters()))
    start_load = time.perf_counter()
    dcp.load(other_state, storage_reader=S3StorageReader(region=None, path=path))
    loaded = time.perf_counter()
    report(
        "saved with DCP",
        seconds=saved - start,
        load_seconds=loaded - start_load,
        same=same_bits(state, other_state),
    )


def distributed_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Returns the state in the form that works for any number of ranks."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def same_bits(one: Any, other: Any) -> bool:
    """Compares states down to the last bit of each tensor."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return bool(one.numpy().tobytes() == other.numpy().tobytes())
    return bool(one == other)


def report(event: str, **facts: Any) -> None:
    """Tells whoever runs this script what happened."""
    print(json.dumps({"event": event, **facts}), flush=True)


def parse_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description="Train on the images of a bucket.")
    parser.add_argument("bucket", help="where the images are, as in s3://my-bucket")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes that fetch and decode images")
    return parser.parse_args()


if __name__ == "__main__":
    main()

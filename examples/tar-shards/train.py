"""Streams samples from tar archives in S3. See README.md."""

from __future__ import annotations

import argparse
import io
import tarfile

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from s3torch.core import S3Client, parse_s3_uri
from s3torch.datasets import S3ShardDataset
from s3torch.datasets.transforms import Compose, DecodeParts, decode_npy, decode_text

FEATURES = 8


def main() -> None:
    """Trains on all samples, some epochs."""
    options = parse_arguments()
    make_shards(options.root, shards=options.shards, samples=options.samples)
    decode = DecodeParts({"npy": Compose(decode_npy, torch.from_numpy), "cls": Compose(decode_text, int)})
    dataset = S3ShardDataset.from_prefix(
        f"{options.root}/", transform=decode, shuffle=True, shuffle_buffer=500, seed=1
    )
    loader = DataLoader(dataset, batch_size=32, num_workers=options.workers)
    torch.manual_seed(1)
    model = nn.Linear(FEATURES, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(options.epochs):
        dataset.set_epoch(epoch)
        right = seen = 0
        for batch in loader:
            scores, labels = model(batch["npy"]), batch["cls"]
            loss = nn.functional.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += int((scores.argmax(dim=1) == labels).sum())
            seen += len(labels)
        print(f"epoch {epoch}: {right / seen:.0%} of {seen} right")


def make_shards(root: str, *, shards: int, samples: int) -> None:
    """Stores archives of vectors, whose class is the sign of their sum, unless there are some."""
    bucket, prefix = parse_s3_uri(root)
    draw = np.random.default_rng(0)
    with S3Client() as client:
        if any(client.walk(bucket, f"{prefix}/")):
            return
        for shard in range(shards):
            with (
                client.put_object(bucket, f"{prefix}/{shard:05}.tar") as writer,
                tarfile.open(fileobj=writer, mode="w|") as archive,
            ):
                for number in range(samples):
                    vector = draw.normal(size=FEATURES).astype(np.float32)
                    array = io.BytesIO()
                    np.save(array, vector)
                    add(archive, f"{shard:05}-{number:05}.npy", array.getvalue())
                    add(archive, f"{shard:05}-{number:05}.cls", str(int(vector.sum() > 0)).encode())


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file; files with the same name up to the first dot are one sample."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def parse_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="where the shards are, as in s3://my-bucket/examples/shards")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, default=8, help="how many are made; default: %(default)s")
    parser.add_argument("--samples", type=int, default=500, help="in each of them; default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    main()

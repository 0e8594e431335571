"""Saves a model as safetensors files with an index, and loads it again. See README.md."""

from __future__ import annotations

import argparse

import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from s3torch.core import S3Client, parse_s3_uri
from s3torch.dcp import S3HuggingFaceStorageReader, S3HuggingFaceStorageWriter, load_sharded


def main() -> None:
    """Saves, lists what is there, loads twice, and compares."""
    root = parse_arguments().root
    model = new_model(seed=1)
    weights = model.state_dict()
    # Two files: the embedding, and all else.
    numbers = {name: 1 if name.startswith("0.") else 2 for name in weights}
    writer = S3HuggingFaceStorageWriter(None, root, fqn_to_index_mapping=numbers)
    dcp.save(weights, storage_writer=writer)
    bucket, prefix = parse_s3_uri(root)
    with S3Client() as client:
        for info in client.walk(bucket, f"{prefix}/"):
            print(f"{info.size:>8} {info.key}")

    plain = new_model(seed=2)
    plain.load_state_dict(load_sharded(root))

    target = new_model(seed=3).state_dict()
    dcp.load(target, storage_reader=S3HuggingFaceStorageReader(None, root))
    same = all(
        torch.equal(tensor, loaded[name])
        for loaded in (plain.state_dict(), target)
        for name, tensor in weights.items()
    )
    print("both are the same" if same else "they differ")


def new_model(*, seed: int) -> nn.Module:
    """Makes a small model."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(1000, 64), nn.Linear(64, 64), nn.Linear(64, 1000))


def parse_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="where the files go, as in s3://my-bucket/examples/model")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Parts of tensors, as ranks save them, and whole files that are made of them."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save

from s3torch.dcp import S3HuggingFaceStorageReader


def cuts(size, most):
    """Where a dimension is cut into at most so many parts."""
    ends = [round(n * size / most) for n in range(most + 1)]
    return sorted({(start, stop) for start, stop in itertools.pairwise(ends) if start < stop})


def tiles(sizes, counts):
    """Begin and end along each dimension of the parts of a tensor."""
    return itertools.product(*(cuts(*pair) for pair in zip(sizes, itertools.cycle(counts), strict=False)))


def put(place, state, counts, path="shards"):
    shards = {}
    for name, tensor in state.items():
        for n, tile in enumerate(tiles(tensor.shape, counts)):
            shards.setdefault(n, {})[name] = tile
    for n, found in shards.items():
        offsets = {name: {"saved_offsets": [start for start, _ in tile]} for name, tile in found.items()}
        parts = {
            name: state[name][tuple(slice(*cut) for cut in tile)].contiguous() for name, tile in found.items()
        }
        data = safetensors_save(parts, {"DCP_SHARDING_INFO": json.dumps(offsets)})
        place.put(f"{path}/shard-{n + 1:05d}-model-00001-of-00001.safetensors", data)


def check(place, state, path="model"):
    keys = [key for key in place.listed(f"{path}/model-") if key.endswith("tensors")]
    found = {name: tensor for key in keys for name, tensor in safetensors_load(place.get(key)).items()}
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    reader = S3HuggingFaceStorageReader("us-east-1", place.uri(path), place.config)
    dcp.load(loaded, storage_reader=reader)
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.fixture(scope="session")
def tiles_of():
    """Cuts the shape of a tensor into at most so many parts along each dimension."""
    return tiles


@pytest.fixture
def put_shards():
    """Cuts each tensor into tiles, and shares these out between files, as ranks do."""
    return put


@pytest.fixture
def check_whole():
    """Loads what is there with the library, and with our own reader."""
    return check

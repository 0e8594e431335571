"""What release 0.1.0 has saved is still read: states, manifests and entries of the disk cache."""

from __future__ import annotations

from operator import attrgetter, itemgetter

import pytest
from torch.utils.data import DataLoader

from s3torch.core import S3Client
from s3torch.datasets import (
    Manifest,
    ResumableLoader,
    S3IterableDataset,
    S3MapDataset,
    S3Sampler,
    S3ShardDataset,
    merge_states,
)

ORDER = {"shuffle": True, "seed": 3}
# What one rank of two has saved, which read with the dataset alone.
RANK = {
    "version": 1,
    "order": ORDER,
    "epoch": 2,
    "legs": [],
    "rank": [1, 2],
    "worker": [0, 1],
    "taken": 2,
}
# Those of loaders, for all ranks together.
ALL = {"version": 1, "order": ORDER, "epoch": 0, "rank": [0, 1], "worker": [0, 1], "taken": 0}
COUNTED = {**ALL, "legs": [{"ranks": 1, "workers": 2, "batch_size": 2, "batches": 3}]}
# With ``on_error="skip"``, of each of two ranks with two workers.
MARKED = [
    {**ALL, "legs": [], "shares": [[0, 4, 1], [2, 4, 1]]},
    {**ALL, "legs": [], "shares": [[1, 4, 2], [3, 4, 1]]},
]
RESUMED = {**ALL, "legs": [{"taken": [1, 2, 1, 1]}], "shares": [[0, 1, 1]]}
SAMPLER = {"order": {"shuffle": True, "seed": 5, "count": 12}, "epoch": 1, "start": 3}

SHARDS = {
    "version": 1,
    "order": {"shuffle": True, "seed": 7, "buffer": 4},
    "epoch": 1,
    "quota": None,
    "shards": "b3155c14ffb923adefed3a13d84aa41d53881bb9ea1e7e71ec71597bd3b32998",
}


def share(number, size, taken, replays, block):
    return {"stripe": [number, size], "turn": 0, "taken": taken, "replays": replays, "block": block}


# Of each of two ranks with two workers.
SHARD_RANKS = [
    {
        **SHARDS,
        "legs": [],
        "shares": [
            share(0, 4, 2, [], [0, [0, 0, 0], [0, 0, 4096], 4, 2]),
            share(2, 4, 1, [], [0, [0, 0, 0], [2, 0, 4096], 4, 1]),
        ],
    },
    {
        **SHARDS,
        "legs": [],
        "shares": [
            share(1, 4, 3, [], [0, [0, 0, 0], [1, 0, 4096], 4, 3]),
            share(3, 4, 2, [], [0, [0, 0, 0], [3, 0, 4096], 4, 2]),
        ],
    },
]
# Of one process that went on with both and took one sample.
SHARDS_RESUMED = {
    **SHARDS,
    "legs": [[[0, 4, 0, 0, 4096], [1, 4, 1, 0, 4096], [2, 4, 2, 0, 4096], [3, 4, 3, 0, 4096]]],
    "shares": [
        share(
            *(0, 1, 1),
            [
                [[0, 4], 0, [0, [0, 0, 0], [0, 0, 4096], 4, 3]],
                [[1, 4], 0, [0, [0, 0, 0], [1, 0, 4096], 4, 3]],
                [[2, 4], 0, [0, [0, 0, 0], [2, 0, 4096], 4, 1]],
                [[3, 4], 0, [0, [0, 0, 0], [3, 0, 4096], 4, 2]],
            ],
            [0, [0, 0, 0], [0, 0, 0], 0, 0],
        )
    ],
}
SHARD_REST = ["11", "10", "33", "21", "22", "20", "01", "00", "15", "35", "34", "14", "24", "05", "04", "25"]

MANIFEST = b"""\
{"bucket": "data", "key": "train/00", "size": 8, "etag": "\\"9fbdc44f092cdf0788338af758159b6d\\"", \
"last_modified": 1796027064}
{"bucket": "data", "key": "train/01", "size": 8, "etag": "\\"543b42a3d272987f295baca1eedb97dc\\"", \
"last_modified": 1796027064}
"""


@pytest.fixture
def objects(memory, fill):
    """Twelve objects, each with its key as content."""
    fill(*(f"train/{number:02}" for number in range(12)))
    return memory


@pytest.fixture
def shards(memory, make_tar):
    """Four archives of six samples, with the names and the sizes that they had then."""
    with S3Client(s3client_config=memory) as client:
        for shard in range(4):
            files = [(f"{shard}{number}.txt", f"{shard}{number}".encode()) for number in range(6)]
            with client.put_object("data", f"shards/{shard}.tar") as writer:
                writer.write(make_tar(files))
    return memory


def stream(config, **options):
    """The dataset of which the states are."""
    return S3IterableDataset.from_prefix(
        "s3://data/train/",
        s3client_config=config,
        transform=attrgetter("key"),
        enable_sharding=True,
        shuffle=True,
        seed=3,
        **options,
    )


def stream_of_shards(config, **options):
    return S3ShardDataset.from_prefix(
        "s3://data/shards/",
        s3client_config=config,
        transform=itemgetter("__key__"),
        shuffle=True,
        shuffle_buffer=4,
        seed=7,
        **options,
    )


def resumed(dataset, state, *, workers=0):
    """What is left of an epoch."""
    start = {"multiprocessing_context": "fork"} if workers else {}
    loader = ResumableLoader(DataLoader(dataset, batch_size=None, num_workers=workers, **start))
    loader.load_state_dict(state)
    return list(loader)


def keys(numbers):
    return [f"train/{number}" for number in numbers.split()]


def test_the_state_of_a_rank(objects):
    dataset = stream(objects, rank=1, world_size=2)
    dataset.load_state_dict(RANK)
    assert dataset.state_dict() == RANK
    assert list(dataset) == keys("09 03 08 00")


def test_the_state_of_a_loader(objects):
    assert merge_states([COUNTED, COUNTED]) == COUNTED
    assert resumed(stream(objects), COUNTED) == keys("07 11 10 03 08 00")


def test_the_states_of_ranks_that_skip(objects):
    merged = merge_states(MARKED)
    rest = keys("06 01 11 10 03 08 00")
    dataset = stream(objects, on_error="skip")
    loader = ResumableLoader(DataLoader(dataset, batch_size=None))
    loader.load_state_dict(merged)
    batches = iter(loader)
    assert next(batches) == rest[0]
    assert loader.state_dict() == RESUMED
    assert list(batches) == rest[1:]
    assert resumed(stream(objects, on_error="skip"), RESUMED) == rest[1:]


def test_the_state_of_a_sampler(objects):
    dataset = S3MapDataset.from_prefix(
        "s3://data/train/", s3client_config=objects, transform=attrgetter("key")
    )
    loader = ResumableLoader(DataLoader(dataset, batch_size=None, sampler=S3Sampler(dataset, seed=5)))
    loader.load_state_dict(SAMPLER)
    assert loader.state_dict() == SAMPLER
    assert list(loader) == keys("11 06 08 03 01 05 02 09 07")


def test_the_state_of_a_rank_that_reads_shards(shards):
    dataset = stream_of_shards(shards, rank=1, world_size=2)
    assert resumed(dataset, SHARD_RANKS[1], workers=2) == ["33", "01", "35", "00", "34", "05", "04"]


def test_the_states_of_all_ranks_that_read_shards(shards):
    loader = ResumableLoader(DataLoader(stream_of_shards(shards), batch_size=None))
    loader.load_state_dict(merge_states(SHARD_RANKS))
    samples = iter(loader)
    assert next(samples) == SHARD_REST[0]
    assert loader.state_dict() == SHARDS_RESUMED
    assert list(samples) == SHARD_REST[1:]
    assert resumed(stream_of_shards(shards), SHARDS_RESUMED) == SHARD_REST[1:]


def test_a_manifest(objects, tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_bytes(MANIFEST)
    manifest = Manifest.load(path)
    assert manifest.identity == "6e5f96814560c5c24c2ec5657dad8c2463f3a8f2b105e29fd3a56341496011b4"
    manifest.save(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == MANIFEST
    dataset = S3MapDataset.from_manifest(path, s3client_config=objects, transform=attrgetter("key"))
    assert list(dataset) == keys("00 01")


def test_an_entry_of_the_disk_cache(objects, store, tmp_path):
    entry = tmp_path / "s3torch-cache-1/f9/79b8ee42d351cc2a69f6b00724a706a9a89be2"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(b"train/00s3tcache\x08\x00\x00\x00\x00\x00\x00\x008S\x80\xd7")
    dataset = S3MapDataset.from_prefix(
        "s3://data/train/00", s3client_config=objects, transform=read, cache_dir=tmp_path
    )
    assert len(dataset) == 1
    # It is read from there, so it need not be in the store any more.
    with S3Client(s3client_config=objects) as client:
        client.delete_object("data", "train/00")
    assert list(dataset) == [b"train/00"]


def read(reader):
    return reader.read()

"""Datasets under ``torchrun``, with gloo: every sample is read by one worker of one rank."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

KEYS = [f"train/{number:02}" for number in range(11)]

SCRIPT = """
import json
import sys
from operator import methodcaller
from pathlib import Path

import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

from s3torch.datasets import ResumableLoader, S3IterableDataset, S3MapDataset


def main(uri, options, folder):
    options["transform"] = methodcaller("read")
    # Built before there is a group, as scripts do.
    stream = S3IterableDataset.from_prefix(uri, enable_sharding=True, **options)
    even = S3IterableDataset.from_prefix(uri, enable_sharding=True, shuffle=True, uneven="pad", **options)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    table = S3MapDataset.from_prefix(uri, **options)
    seen = {}
    for workers in (0, 1, 2):
        start = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
        loader = DataLoader(table, batch_size=2, sampler=DistributedSampler(table, seed=3), **start)
        seen[f"map, {workers}"] = [data.decode() for batch in loader for data in batch]
        loader = DataLoader(stream, batch_size=None, **start)
        seen[f"iterable, {workers}"] = [data.decode() for data in loader]
        loader = ResumableLoader(DataLoader(even, batch_size=2, collate_fn=list, **start))
        seen[f"even, {workers}"] = []
        for batch in loader:
            # A collective in each step hangs if ranks have different numbers of them.
            dist.barrier()
            seen[f"even, {workers}"] += [data.decode() for data in batch]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
"""


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_samples_out(server, tmp_path, world):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", str(script)]
    arguments = [server.uri("train/"), json.dumps(server.options), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *run, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world)]
    length = -(-len(KEYS) // world)
    for workers in range(3):
        streams = [rank[f"iterable, {workers}"] for rank in ranks]
        assert [sorted(keys) for keys in streams] == [KEYS[rank::world] for rank in range(world)]
        for kind in ("map", "even"):
            parts = [rank[f"{kind}, {workers}"] for rank in ranks]
            assert {len(part) for part in parts} == {length}, kind
            assert {key for part in parts for key in part} == set(KEYS), kind

"""Shards under ``torchrun``, with gloo: an epoch that is interrupted and goes on with others."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain

import pytest
from torch.utils.data import DataLoader

from s3torch.datasets import ResumableLoader, S3ShardDataset

KEYS = [f"{shard}-{number}" for shard in range(10) for number in range(shard % 3 + 4)]

SCRIPT = """
import json
import sys
from itertools import islice
from operator import itemgetter
from pathlib import Path

import torch.distributed as dist
from torch.utils.data import DataLoader

from s3torch.datasets import ResumableLoader, S3ShardDataset, merge_states


def loader_of(uri, options, workers):
    dataset = S3ShardDataset.from_prefix(
        uri, transform=itemgetter("__key__"), shuffle=True, shuffle_buffer=3, **options
    )
    start = {"multiprocessing_context": "fork", "persistent_workers": True} if workers else {}
    return ResumableLoader(DataLoader(dataset, batch_size=2, collate_fn=list, num_workers=workers, **start))


def merged(loader):
    states = [None] * dist.get_world_size()
    dist.all_gather_object(states, loader.state_dict())
    return merge_states(states)


def main(uri, options, folder):
    dist.init_process_group("gloo")
    seen = {}
    for workers, others in ((0, 2), (2, 0)):
        first, second = loader_of(uri, options, workers), loader_of(uri, options, others)
        taken = [key for batch in islice(first, 3) for key in batch]
        second.load_state_dict(merged(first))
        again = iter(second)
        taken += [key for _ in range(3) for key in next(again)]
        state = merged(second)
        rest = [key for batch in again for key in batch]
        # The workers stay, and have the whole next epoch.
        second.set_epoch(1)
        whole = [key for batch in second for key in batch]
        seen[str(workers)] = {"taken": taken, "rest": rest, "state": state, "next": whole}
    (Path(folder) / f"{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
"""


@pytest.fixture
def uri(server, seaweedfs, make_tar):
    bucket = seaweedfs.create_bucket()
    client = seaweedfs.client()
    for shard in range(10):
        files = [(f"{key}.txt", key.encode()) for key in KEYS if key.startswith(f"{shard}-")]
        client.put_object(Bucket=bucket, Key=f"shards/{shard}.tar", Body=make_tar(files))
    client.close()
    return f"s3://{bucket}/shards/"


def test_two_ranks_go_on_with_other_workers_and_then_as_one(server, uri, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    arguments = [uri, json.dumps(server.options), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *run, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for workers in "02":
        found = [rank[workers] for rank in ranks]
        taken = [key for one in found for key in one["taken"]]
        assert sorted(taken + [key for one in found for key in one["rest"]]) == sorted(KEYS)
        assert sorted(key for one in found for key in one["next"]) == sorted(KEYS)
        # All ranks have the same state, and one alone can finish the epoch.
        assert found[0]["state"] == found[1]["state"]
        dataset = S3ShardDataset.from_prefix(uri, shuffle=True, shuffle_buffer=3, **server.options)
        alone = ResumableLoader(DataLoader(dataset, batch_size=2, collate_fn=list))
        alone.load_state_dict(found[0]["state"])
        rest = [sample["__key__"] for sample in chain.from_iterable(alone)]
        assert sorted(taken + rest) == sorted(KEYS)

"""Sharding under a process group: each object is read by one worker of one rank."""

from __future__ import annotations

import json
import subprocess
import sys

from s3torch.core import S3Client

COUNT = 13

RANK = """
import json
import pickle
import sys
from operator import methodcaller

import torch.distributed as dist
from torch.utils.data import DataLoader

from s3torch.datasets import S3IterableDataset


def main(rank, uri, options, meeting_point):
    # Built before there is a group, as scripts do.
    dataset = S3IterableDataset.from_prefix(
        uri, enable_sharding=True, transform=methodcaller("read"), **options
    )
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    seen = {"alone": [data.decode() for data in dataset]}
    # Ranks may have different numbers of workers.
    for context, workers in (("fork", 2 - rank), ("spawn", 1)):
        loader = DataLoader(
            dataset, batch_size=None, num_workers=workers, multiprocessing_context=context
        )
        seen[context] = [data.decode() for data in loader]
    pickled = pickle.dumps(dataset)
    dist.destroy_process_group()
    seen["unpickled where no group is"] = [data.decode() for data in pickle.loads(pickled)]
    print(json.dumps(seen))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), sys.argv[4])
"""


def test_ranks_and_their_workers_share_the_samples_out(server, tmp_path):
    keys = [f"ranks/{number:02}" for number in range(COUNT)]
    with S3Client(**server.options) as client:
        for key in keys:
            with client.put_object(server.bucket, key) as writer:
                writer.write(key.encode())
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    arguments = [server.uri("ranks/"), json.dumps(server.options), str(tmp_path / "meeting_point")]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        answers = [rank.communicate(timeout=90) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], answers
    for rank, (output, _) in enumerate(answers):
        # Before it, gloo of older releases says that it is connected.
        for where, seen in json.loads(output.splitlines()[-1]).items():
            assert sorted(seen) == keys[rank::2], where

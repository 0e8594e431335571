"""Saves checkpoints with jobs whose ranks may be killed; run as a program.

Each line of the standard input is a job, as JSON: the URI of the checkpoint, a number that fills the tensors,
how many files a rank writes, the endpoint of each rank, where the ranks meet, whether what has not changed is
copied, and the URI of shards, if whole files are to be made of them in place of a save. For each rank a
process is forked, and their ids are the answer; a second line tells how they have ended.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.ranges import MIB
from s3torch.dcp import S3StorageWriter, consolidate_safetensors_files

PART = 5 * MIB


def state_of(rank, ranks, number, *, frozen):
    """What a rank has: tensors of its own, one of them in several parts, and some that all have."""
    state = {f"frozen {rank}": torch.full((PART + 1000,), -1, dtype=torch.int8)} if frozen else {}
    state |= {f"rank {rank}, {n}": torch.full((40, n + 1), number) for n in range(3)}
    if rank == ranks - 1:
        state["large"] = torch.full((PART + 1000,), number, dtype=torch.int8)
    return state | {"same": torch.full((9,), number), "step": number}


def save(job, rank):
    ranks = len(job["endpoints"])
    if ranks > 1:
        dist.init_process_group(
            "gloo",
            init_method=job["rendezvous"],
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=60),
        )
    config = S3ClientConfig(max_attempts=1, part_size=PART)
    if job["shards"]:
        client = S3Client("us-east-1", endpoint=job["endpoints"][rank], s3client_config=config)
        report = consolidate_safetensors_files(job["shards"], job["uri"], client=client)
        assert report.copied_bytes
        return
    options = {"thread_count": job["files"], "reuse": job["uri"] if job["reuses"] else None}
    writer = S3StorageWriter("us-east-1", job["uri"], config, endpoint=job["endpoints"][rank], **options)
    dcp.save(state_of(rank, ranks, job["number"], frozen=job["reuses"]), storage_writer=writer)


def start(job, rank):
    child = os.fork()
    if not child:
        status = 1
        try:
            save(job, rank)
            status = 0
        finally:
            os._exit(status)
    return child


def main():
    # Some releases of gloo print to the standard output.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")

    def answer(numbers):
        answers.write(json.dumps(numbers) + "\n")
        answers.flush()

    for line in sys.stdin:
        job = json.loads(line)
        children = [start(job, rank) for rank in range(len(job["endpoints"]))]
        answer(children)
        answer([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])


if __name__ == "__main__":
    main()

"""Saves checkpoints in processes that may be killed; run as a program.

Each line of the standard input has the URI of a checkpoint, the endpoint, a number that fills the tensors,
and how many files to write. For each a process is forked, and its id is the answer; a second line tells how
it ended.
"""

from __future__ import annotations

import os
import sys
import warnings

import torch
import torch.distributed.checkpoint as dcp

from s3torch.core import S3ClientConfig
from s3torch.dcp import S3StorageWriter


def save(uri, endpoint, number, files):
    state = {f"t{n}": torch.full((40, n + 1), number) for n in range(6)} | {"step": number}
    config = S3ClientConfig(max_attempts=1)
    writer = S3StorageWriter("us-east-1", uri, config, thread_count=files, endpoint=endpoint)
    dcp.save(state, storage_writer=writer)


def answer(number):
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main():
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        uri, endpoint, number, files = line.split()
        child = os.fork()
        if not child:
            status = 1
            try:
                save(uri, endpoint, float(number), int(files))
                status = 0
            finally:
                os._exit(status)
        answer(child)
        answer(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()

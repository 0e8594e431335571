"""Programs that end, or are killed, while they save; run as a program.

Each line of the standard input is one, as JSON: the URI, the endpoint, a number that fills the tensor, the
arguments of the saver, and a file that tells it to end. A process is forked for it, which saves and ends as
programs do; its id is the answer, and a second line tells how it has ended.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import warnings
from pathlib import Path

import torch

from s3torch.core import S3ClientConfig
from s3torch.dcp import AsyncSaver, S3StorageWriter


def save(job):
    config = S3ClientConfig(max_attempts=1)
    writer = S3StorageWriter("us-east-1", job["uri"], config, endpoint=job["endpoint"])
    saver = AsyncSaver(**job["options"])
    saver.save({"tensor": torch.full((1000,), job["number"])}, storage_writer=writer)
    # As a worker of a DataLoader, it has nothing to wait for at its end.
    worker = multiprocessing.get_context("fork").Process()
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    while job["goes_on_until"] and not Path(job["goes_on_until"]).exists():
        time.sleep(0.01)


def main():
    answers = os.fdopen(os.dup(1), "w")
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            save(json.loads(line))
            return
        print(child, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""For how long does an asynchronous save stop a training loop, and how much does it slow it down?

Each case saves the same tensors several times, in a process of its own. "blocked" is the time until the call
returns, of the second and later saves, also as a multiple of a plain copy of the tensors into memory that is
there, which each process makes before each save; "plain copy" does nothing else. "loop" is how fast Python
code runs while the save goes on, compared with no save; it shares the processors with whatever saves.
"beside" is the processor time that other threads of its process take for a save: for so long, at most, they
can have the interpreter's lock.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from concurrent.futures import Future
from itertools import count
from typing import TYPE_CHECKING, Any

from libraries import BUCKET, REGION, boto_client, connector_config, endpoint
from measure import MIB, in_child
from states import mixed_state, quiet, size_from_environment

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = size_from_environment(1024 * MIB)
SAVES = 4
FOLDER = "/dev/shm/s3torch-bench-async"  # noqa: S108 - tmpfs is what is compared with.
_numbers = count()


def _path() -> str:
    return f"s3://{BUCKET}/async-{os.getpid()}-{next(_numbers)}"


def s3torch(*, process: bool) -> Callable[[dict[str, Any]], Future[Any]]:
    """Our saver."""
    from s3torch.dcp import AsyncSaver, S3StorageWriter

    saver = AsyncSaver(process=process)

    def save(state: dict[str, Any]) -> Any:
        return saver.save(state, storage_writer=S3StorageWriter(REGION, _path(), endpoint=endpoint()))

    return save


def torch_with(make_writer: Callable[[], Any]) -> Callable[[dict[str, Any]], Future[Any]]:
    """The function of torch, with a writer."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def save(state: dict[str, Any]) -> Any:
        return dcp.async_save(state, storage_writer=make_writer())

    return save


def on_tmpfs() -> Callable[[dict[str, Any]], Future[Any]]:
    """The writer of torch."""
    from torch.distributed.checkpoint import FileSystemWriter

    return torch_with(lambda: FileSystemWriter(f"{FOLDER}/0", sync_files=False))


def connector() -> Callable[[dict[str, Any]], Future[Any]]:
    """The writer of s3torchconnector."""
    from s3torchconnector.dcp import S3StorageWriter

    return torch_with(lambda: S3StorageWriter(REGION, _path(), connector_config()))


def plain_copy() -> Callable[[dict[str, Any]], Future[Any]]:
    """No save: only what each of them has to do before the tensors may change."""
    there: dict[str, Any] = {}

    def save(state: dict[str, Any]) -> Future[Any]:
        for key, one in state.items():
            if key in there:
                there[key].copy_(one)
            else:
                there[key] = one.clone()
        saved = Future[Any]()
        saved.set_result(None)
        return saved

    return save


CASES: dict[str, Callable[[], Callable[[dict[str, Any]], Future[Any]]]] = {
    "plain copy": plain_copy,
    "s3torch, thread": lambda: s3torch(process=False),
    "s3torch, process": lambda: s3torch(process=True),
    "torch, tmpfs": on_tmpfs,
    "s3torchconnector": connector,
}


def _turns(seconds: float, until: Callable[[], bool]) -> float:
    """Runs Python code; returns how many turns it makes per second."""
    start, turns = time.perf_counter(), 0
    while True:
        for number in range(1000):
            turns += number & 1
        if until() or time.perf_counter() - start > seconds:
            break
    return turns / (time.perf_counter() - start)


def _measured(name: str) -> dict[str, float]:
    quiet()
    save = CASES[name]()
    state = mixed_state(SIZE)
    copy = {key: one.clone() for key, one in state.items()}
    copies, blocked, loops, alone, seconds, beside = [], [], [], [], [], []
    for _ in range(SAVES):
        start = time.perf_counter()
        for key, one in state.items():
            copy[key].copy_(one)
        copies.append(time.perf_counter() - start)
        alone.append(_turns(1.0, lambda: False))
        start = time.perf_counter()
        saving = save(state)
        blocked.append(time.perf_counter() - start)
        others = time.process_time() - time.thread_time()
        loops.append(_turns(3600.0, saving.done))
        saving.result()
        beside.append(time.process_time() - time.thread_time() - others)
        seconds.append(time.perf_counter() - start)
    plain = statistics.median(copies[1:])
    return {
        "blocked": statistics.median(blocked[1:]),
        "first": blocked[0],
        "copy": plain,
        "ratio": statistics.median(blocked[1:]) / plain,
        "loop": statistics.median(loops[1:]) / statistics.median(alone[1:]),
        "beside": statistics.median(beside[1:]),
        "save": statistics.median(seconds[1:]),
    }


def main() -> None:
    """Runs the question from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=sorted(CASES))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(_measured(arguments.case)))
        return
    from answers import start_answers

    with start_answers(latency=0, keep=False) as url:
        os.environ.update(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret")  # noqa: S106
        boto_client().create_bucket(Bucket=BUCKET)
        names = arguments.only or list(CASES)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(arguments.rounds):
            for name in names:
                rounds[name].append(in_child(name))
                print(name, rounds[name][-1], file=sys.stderr, flush=True)
                shutil.rmtree(FOLDER, ignore_errors=True)
    print(f"{SIZE // MIB} MiB; medians of {arguments.rounds} rounds")
    for name, found in rounds.items():
        one = {field: statistics.median(each[field] for each in found) for field in found[0]}
        print(
            f"  {name:<18} blocked {one['blocked']:6.3f} s ({one['ratio']:5.2f}x of a copy), first "
            f"{one['first']:6.3f} s; loop {one['loop']:5.2f}x, beside {one['beside']:5.2f} s; "
            f"saved after {one['save']:6.2f} s"
        )


if __name__ == "__main__":
    main()

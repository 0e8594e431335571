"""What do replicas gain that read a distributed checkpoint once for all of them?

Four processes of one job load the same, as with DDP, each from S3 for itself or with replicas="broadcast".
"extra" is by how much the process of the first of them has grown beyond the target tensors. "gloo alone" is
no load: each process broadcasts a quarter of as many bytes to the others, and no load of this kind can be
faster. "cpu" is the processor time of the four processes, without the server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measure import BUCKET, MIB, REGION, boto_client, in_child
from relay import bounded_line
from states import mixed_state, quiet, size_from_environment

SIZE = size_from_environment(256 * MIB)
PATH = f"s3://{BUCKET}/replicas"
RANKS = 4
CASES = {"each for itself": None, "once for all": "broadcast", "gloo alone": "gloo"}
STRIPE = 8 * MIB


def main() -> None:
    """Runs the question from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--bandwidth", type=float, default=100e6, help="of the bounded server, bytes per second"
    )
    parser.add_argument("--only-bounded", action="store_true", help="leave out the server without a bound")
    parser.add_argument("--only-unbounded", action="store_true", help="leave out the one with a bound")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(_measured(CASES[arguments.case[0]], arguments.case[1])))
        return
    from s3torch.testing.servers import start_seaweedfs

    with (
        start_seaweedfs(volume_mib=1024) as server,
        bounded_line(server.endpoint, arguments.bandwidth) as line,
    ):
        os.environ.update(server.environment())
        boto_client().create_bucket(Bucket=BUCKET)
        _prepare()
        lines = {f"{arguments.bandwidth / 1e6:.0f} MB/s": line, "no bound": server.endpoint}
        if arguments.only_bounded or arguments.only_unbounded:
            del lines["no bound" if arguments.only_bounded else next(iter(lines))]
        for title, endpoint in lines.items():
            found: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
            for _ in range(arguments.rounds):
                for name in CASES:
                    found[name].append(in_child(name, endpoint))
                    print(title, name, found[name][-1], file=sys.stderr, flush=True)
            _show(title, found)


def _show(title: str, found: dict[str, list[dict[str, float]]]) -> None:
    def median(name: str, field: str) -> float:
        return float(statistics.median(one[field] for one in found[name]))

    print(f"{RANKS} replicas load {SIZE // MIB} MiB, {title}")
    base = median("each for itself", "seconds")
    for name in found:
        seconds, extra = median(name, "seconds"), median(name, "extra") / MIB
        cpu = median(name, "cpu")
        print(
            f"  {name:<16} {seconds:7.2f} s  {base / seconds:5.2f}x  cpu {cpu:6.2f} s  extra {extra:5.0f} MiB"
        )


def _prepare() -> None:
    import torch.distributed.checkpoint as dcp

    from s3torch.dcp import S3StorageWriter

    quiet()
    dcp.save(mixed_state(SIZE), storage_writer=S3StorageWriter(REGION, PATH, thread_count=2))


def _measured(replicas: Any, endpoint: str) -> dict[str, float]:
    """Forks the other ranks, loads a little and then all together, and measures the latter."""
    import torch

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        rank = next((rank for rank in range(1, RANKS) if not os.fork()), 0)
        try:
            return _rank(rank, folder, replicas, endpoint)
        finally:
            if rank:
                os._exit(0)
            for _ in range(RANKS - 1):
                os.wait()


def _rank(rank: int, folder: str, replicas: Any, endpoint: str) -> dict[str, float]:
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    from s3torch.dcp import S3StorageReader

    quiet()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    state = mixed_state(SIZE, filled=False)
    figures = {}
    with ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        small = dict(list(state.items())[-1:])
        # Connections and imports are not what is asked for: first each rank reads, then they exchange.
        world: Any = dist.group.WORLD
        steps: list[tuple[dict[str, Any], Any, Any]]
        steps = [(small, None, None), (small, replicas, world), (state, replicas, world)]
        for part, how, group in steps:
            dist.barrier()
            Path("/proc/self/clear_refs").write_text("5")
            before, start, busy = _memory("VmRSS"), time.perf_counter(), time.process_time()
            if how == "gloo":
                _broadcast(part)
            else:
                reader = S3StorageReader(REGION, PATH, endpoint=endpoint, replicas=how, process_group=group)
                dcp.load(part, storage_reader=reader)
            cpu = torch.tensor(time.process_time() - busy)
            dist.all_reduce(cpu)
            figures = {
                "seconds": time.perf_counter() - start,
                "extra": float(_memory("VmHWM") - before),
                "cpu": float(cpu),
            }
    return figures


def _broadcast(state: dict[str, Any]) -> None:
    """Sends the bytes of the tensors from each rank in turn to all others."""
    import torch.distributed as dist

    stripes = [stripe for tensor in state.values() for stripe in tensor.reshape(-1).split(STRIPE // 4)]
    works = [dist.broadcast(stripe, number % RANKS, async_op=True) for number, stripe in enumerate(stripes)]
    for work in filter(None, works):
        work.wait()


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()

"""How fast do bytes move beside a main thread that computes in pure Python, and how much does that cost it?

The work is done in another thread, over and over, first alone and then beside a loop on the main thread. What
the main thread loses is its rate without any work, divided by that beside it. Each time that it has to hand
over the interpreter's lock it goes to sleep, which the kernel counts: those are the hand-overs. On a machine
that has other work to do these figures mean little. How often the work takes the lock does: ``--lock`` counts
that alone, with perf and a probe in the interpreter, for which one has to be root.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

import small_objects
import states
from measure import (
    BEFORE,
    BUCKET,
    CONNECTOR,
    MIB,
    REGION,
    add_scheme,
    boto_client,
    connector_client,
    cpu_seconds,
    endpoint,
    in_child,
    s3torch_client,
    schemes,
    start_seaweedfs,
)
from read_object import KEY, SIZE
from read_object import prepare as put_large

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARIES = (CONNECTOR, "s3torch (crt)", "s3torch (http)", "s3torch")
UPLOAD = 64 * MIB
COUNT = 500
CHECKPOINT = f"s3://{BUCKET}/checkpoint"
_SECONDS = 2.0
_FEWEST = 2


def readinto(library: str) -> tuple[int, Callable[[], object]]:
    """Fills 256 MiB of memory that was touched before."""
    package, s3 = _library(library)
    constructor = package.S3ReaderConstructor.range_based(0)
    target = bytearray(b"\1" * SIZE)
    return SIZE, lambda: s3.get_object(BUCKET, KEY, reader_constructor=constructor).readinto(target)


def read(library: str) -> tuple[int, Callable[[], object]]:
    """Reads 256 MiB into new memory."""
    _, s3 = _library(library)
    return SIZE, lambda: s3.get_object(BUCKET, KEY).read()


def write(library: str) -> tuple[int, Callable[[], object]]:
    """Writes 64 MiB, in pieces of 16 MiB as a checkpoint is saved beside the training."""
    _, s3 = _library(library)
    piece = memoryview(bytearray(os.urandom(UPLOAD // 4)))

    def work() -> None:
        with s3.put_object(BUCKET, "written") as writer:
            for _ in range(4):
                writer.write(piece)

    return UPLOAD, work


def dataset(library: str) -> tuple[int, Callable[[], object]]:
    """The iterable dataset over 500 objects of 100 KiB."""
    package, _ = _library(library, "datasets")
    options = {}
    if library == CONNECTOR:
        options["s3client_config"] = package.S3ClientConfig(force_path_style=True)

    def work() -> None:
        found = package.S3IterableDataset.from_prefix(
            f"s3://{BUCKET}/{small_objects.PREFIX}",
            region=REGION,
            endpoint=endpoint(),
            transform=methodcaller("read"),
            **options,
        )
        count = sum(1 for _ in found)
        if count != COUNT:
            raise SystemExit(f"{count} of {COUNT} objects")

    return COUNT * small_objects.SIZE, work


def dcp(library: str) -> tuple[int, Callable[[], object]]:
    """Loads a distributed checkpoint of 256 MiB into tensors that are there."""
    state = states.mixed_state(SIZE, filled=False)
    if library == CONNECTOR:
        return SIZE, states.loading_with_connector(state, CHECKPOINT)
    return SIZE, states.loading_with(_transport_of(library), state, CHECKPOINT)


def save_checkpoint() -> None:
    """Saves what ``dcp`` loads."""
    import torch.distributed.checkpoint

    from s3torch.dcp import S3StorageWriter

    states.quiet()
    writer = S3StorageWriter(REGION, CHECKPOINT, endpoint=endpoint())
    torch.distributed.checkpoint.save(states.mixed_state(SIZE), storage_writer=writer)


# The name of the probe, for the cases.
PROBE = "BENCH_PROBE"

WORKS = {"readinto": readinto, "read": read, "write": write, "dataset": dataset, "dcp": dcp}


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each case runs (default 3)")
    parser.add_argument("--works", nargs="*", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--only", nargs="*", choices=LIBRARIES, default=LIBRARIES[:3])
    parser.add_argument("--before", type=Path, help="another checkout of s3torch, measured in turn")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--lock", action="store_true", help="count how often the lock is taken, with perf")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    add_scheme(parser)
    arguments = parser.parse_args()
    if arguments.case:
        measure = _count if PROBE in os.environ else _measure
        print(json.dumps(measure(*arguments.case)))
        return
    if arguments.lock:
        os.environ[PROBE] = _probe()
    figures: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for scheme in schemes(arguments):
        _run(scheme, arguments, figures)
    (_print_counts if arguments.lock else _print_table)(figures)
    if arguments.json:
        named = {", ".join(case): rounds for case, rounds in figures.items()}
        arguments.json.write_text(json.dumps(named, indent=1))


def _run(
    scheme: str, arguments: argparse.Namespace, figures: dict[tuple[str, str, str], list[dict[str, float]]]
) -> None:
    names = list(arguments.only)
    if arguments.before:
        names = [both for name in names if name != CONNECTOR for both in (name + BEFORE, name)]
    small_objects.COUNT = COUNT
    with ExitStack() as stack:
        start_seaweedfs(stack, tls=scheme == "https")
        boto = boto_client()
        boto.create_bucket(Bucket=BUCKET)
        put_large(boto)
        small_objects.prepare(boto)
        if "dcp" in arguments.works:
            save_checkpoint()
        for _ in range(arguments.rounds):
            for work in arguments.works:
                for name in names:
                    library = name.removesuffix(BEFORE)
                    figure = in_child(work, library, sources=arguments.before if name != library else None)
                    print(f"{scheme}, {work}, {name}: {figure}", file=sys.stderr, flush=True)
                    figures.setdefault((scheme, work, name), []).append(figure)


def _library(library: str, package: str = "core") -> tuple[Any, Any]:
    """Returns a package of a library, and its client."""
    if library == CONNECTOR:
        import s3torchconnector

        return s3torchconnector, connector_client()
    transport = _transport_of(library)
    if transport:
        os.environ["S3TORCH_TRANSPORT"] = transport
    if package == "datasets":
        import s3torch.datasets

        return s3torch.datasets, None
    import s3torch.core

    return s3torch.core, s3torch_client(transport)


def _transport_of(library: str) -> str | None:
    """Returns the transport that a case names, ``None`` for the default."""
    return library.partition("(")[2].rstrip(")") or None


def _measure(work: str, library: str) -> dict[str, float]:
    size, function = WORKS[work](library)
    function()  # Connections, imports and page tables are not what is asked for.
    alone = _compute(lambda: time.sleep(_SECONDS / 2))
    idle_seconds, idle_cpu = _repeat(function)
    busy: list[float] = []
    beside = _compute(lambda: busy.extend(_repeat(function)))
    return {
        "MB": size / 1e6,
        "idle_seconds": idle_seconds,
        "idle_cpu_seconds": idle_cpu,
        "busy_seconds": busy[0],
        "busy_cpu_seconds": busy[1] - beside.cpu_seconds * busy[0] / beside.seconds,
        "slowed": alone.rate / beside.rate,
        "handed_over": beside.handed_over * busy[0] / beside.seconds,
    }


def _probe() -> str:
    """Puts a probe where the interpreter takes its lock, and returns its name for perf."""
    maps = Path("/proc/self/maps").read_text().split()
    library = next((path for path in maps if "libpython" in path), sys.executable)
    subprocess.run(["perf", "probe", "-q", "-d", "bench:*"], check=False, capture_output=True)  # noqa: S607
    subprocess.run(["perf", "probe", "-q", "-x", library, "bench:lock=take_gil"], check=True)  # noqa: S607
    return "bench:lock"


def _count(work: str, library: str) -> dict[str, float]:
    """Counts how often one call takes the lock, with no other thread at work."""
    size, function = WORKS[work](library)
    function()
    command = ["perf", "stat", "-x", ",", "-e", os.environ[PROBE], "-p", str(os.getpid())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as perf:
        time.sleep(1)  # It attaches itself.
        cpu = cpu_seconds()
        function()
        cpu = cpu_seconds() - cpu
        perf.send_signal(signal.SIGINT)
        told = perf.communicate()[1]
    return {"MB": size / 1e6, "cpu_seconds": cpu, "count": float(told.split(",")[0])}


def _repeat(function: Callable[[], object]) -> tuple[float, float]:
    """Calls a function for a while; returns the seconds and the processor seconds of a call."""
    count, cpu, start = 0, cpu_seconds(), time.perf_counter()
    while count < _FEWEST or time.perf_counter() - start < _SECONDS:
        function()
        count += 1
    return (time.perf_counter() - start) / count, (cpu_seconds() - cpu) / count


class _Loop:
    """What a loop on the main thread has done, in how much time."""

    def __init__(self, count: int, seconds: float, cpu: float, handed_over: int) -> None:
        self.rate, self.seconds, self.cpu_seconds = count / seconds, seconds, cpu
        self.handed_over = handed_over


def _compute(beside: Callable[[], object]) -> _Loop:
    """Computes until a function has ended that another thread calls."""
    thread = threading.Thread(target=beside)
    count, number = 0, 1
    before, cpu, start = _sleeps(), time.thread_time(), time.perf_counter()
    thread.start()
    while thread.is_alive():
        for _ in range(1000):
            number = number * 1103515245 + 12345 & 0x7FFFFFFF
        count += 1
    return _Loop(count, time.perf_counter() - start, time.thread_time() - cpu, max(_sleeps() - before, 1))


def _sleeps() -> int:
    """How often this thread has gone to sleep, which a loop does only to hand over the interpreter's lock."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _print_table(figures: dict[tuple[str, str, str], list[dict[str, float]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="beside a main thread that computes")
    for column in (
        "", "work", "", "idle MB/s", "CPU s/GB", "busy MB/s", "speed", "CPU s/GB", "CPU", "hand-overs/GB",
        "main slowed",
    ):  # fmt: skip
        table.add_column(column, justify="right" if column not in {"", "work"} else "left")
    bases: dict[tuple[str, str], dict[str, float]] = {}
    for (scheme, work, name), rounds in figures.items():
        one = {field: statistics.median(figure[field] for figure in rounds) for field in rounds[0]}
        if name.endswith(BEFORE):
            bases[scheme, work] = one
        base = bases.setdefault((scheme, work), one)
        table.add_row(
            scheme,
            work,
            name,
            f"{one['MB'] / one['idle_seconds']:,.0f}",
            f"{1000 * one['idle_cpu_seconds'] / one['MB']:.2f}",
            f"{one['MB'] / one['busy_seconds']:,.0f}",
            f"{base['busy_seconds'] / one['busy_seconds']:.2f}x",
            f"{1000 * one['busy_cpu_seconds'] / one['MB']:.2f}",
            f"{one['busy_cpu_seconds'] / base['busy_cpu_seconds']:.2f}x",
            f"{1000 * one['handed_over'] / one['MB']:,.0f}",
            f"{one['slowed']:.2f}x",
        )
    Console().print(table)


def _print_counts(figures: dict[tuple[str, str, str], list[dict[str, float]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="how often the interpreter's lock is taken")
    for column in ("", "work", "", "for a GB", "CPU s/GB"):
        table.add_column(column, justify="left" if column in {"", "work"} else "right")
    for (scheme, work, name), rounds in figures.items():
        count, cpu = (
            statistics.median(1000 * one[field] / one["MB"] for one in rounds)
            for field in ("count", "cpu_seconds")
        )
        table.add_row(scheme, work, name, f"{count:,.0f}", f"{cpu:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()

"""How many samples a second do datasets give, with the time to the first byte that a region has?

Each library works in a process of its own, one after the other, round after round. Without latency SeaweedFS
has the objects; with it they come from a server that answers from memory after that time, see ``answers.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from contextlib import ExitStack, nullcontext
from importlib import import_module
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

import small_objects
from answers import start_answers
from measure import (
    BUCKET,
    REGION,
    add_scheme,
    boto_client,
    cpu_seconds,
    endpoint,
    in_child,
    schemes,
    server_cpu_seconds,
    start_seaweedfs,
    watch_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

URI = f"s3://{BUCKET}/{small_objects.PREFIX}"
SIZE = small_objects.SIZE
LIBRARIES = ("s3torchconnector", "s3torch")


def iterable(library: str) -> Iterable[Any]:
    """The iterable dataset in one process."""
    dataset: Iterable[Any] = _dataset(library, "S3IterableDataset")
    return dataset


def iterable_in_workers(library: str) -> Iterable[Any]:
    """The iterable dataset in two DataLoader workers."""
    from torch.utils.data import DataLoader

    dataset = _dataset(library, "S3IterableDataset", enable_sharding=True)
    return DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")


def batches(library: str) -> Iterable[Any]:
    """Batches of 32 from the map dataset in one process."""
    from torch.utils.data import DataLoader

    dataset = _dataset(library, "S3MapDataset")
    return DataLoader(dataset, batch_size=32, collate_fn=list)


def single(library: str) -> Iterable[Any]:
    """Samples of the map dataset, one index after the other."""
    dataset = _dataset(library, "S3MapDataset")
    return (dataset[index] for index in range(len(dataset)))


WAYS: dict[str, Callable[[str], Iterable[Any]]] = {
    "iterable": iterable,
    "2 workers": iterable_in_workers,
    "batches": batches,
    "single": single,
}


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=2000, help="objects of 100 KiB (default 2000)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each case runs (default 3)")
    parser.add_argument(
        "--latency", type=float, nargs="*", default=[0, 20], help="milliseconds, 0 for SeaweedFS as it is"
    )
    parser.add_argument("--ways", nargs="*", choices=sorted(WAYS), default=list(WAYS))
    parser.add_argument("--transport", help="the transport of s3torch")
    parser.add_argument(
        "--before",
        type=Path,
        help="another checkout of s3torch, to compare with in place of s3torchconnector",
    )
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    add_scheme(parser)
    arguments = parser.parse_args()
    if arguments.transport:
        os.environ["S3TORCH_TRANSPORT"] = arguments.transport
    if arguments.case:
        print(json.dumps(_measure(*arguments.case)))
        return
    figures = _run(arguments)
    _print_table(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps({", ".join(case): all_ for case, all_ in figures.items()}))


Case = tuple[str, str, str]


def _run(arguments: argparse.Namespace) -> dict[Case, list[dict[str, float]]]:
    small_objects.COUNT = arguments.objects
    figures: dict[Case, list[dict[str, float]]] = {}
    for scheme in schemes(arguments):
        _run_over(scheme, arguments, figures)
    return figures


def _run_over(
    scheme: str, arguments: argparse.Namespace, figures: dict[Case, list[dict[str, float]]]
) -> None:
    with ExitStack() as stack:
        server = start_seaweedfs(stack, tls=scheme == "https")
        boto = boto_client()
        boto.create_bucket(Bucket=BUCKET)
        small_objects.prepare(boto)
        for _ in range(arguments.rounds):
            for latency in arguments.latency:
                if latency and scheme == "https":
                    continue  # The server that answers from memory knows no TLS.
                where = f"{scheme}, {latency:g} ms"
                with _store(server.endpoint, latency / 1000) as url:
                    os.environ["AWS_ENDPOINT_URL"] = url
                    watch_server()
                    for way in arguments.ways:
                        for library in LIBRARIES:
                            other = arguments.before if library == LIBRARIES[0] else None
                            figure = in_child(way, LIBRARIES[1] if other else library, sources=other)
                            name = f"s3torch at {other}" if other else library
                            print(f"{where}, {way}, {name}: {figure}", file=sys.stderr, flush=True)
                            figures.setdefault((where, way, library), []).append(figure)


def _store(url: str, latency: float) -> AbstractContextManager[str]:
    if not latency:
        return nullcontext(url)
    # With many requests at once SeaweedFS and a proxy before it would take more of the machine than clients.
    return start_answers(
        prefix=small_objects.PREFIX, count=small_objects.COUNT, size=small_objects.SIZE, latency=latency
    )


def _dataset(library: str, name: str, **options: Any) -> Any:
    package = import_module("s3torch.datasets" if library == "s3torch" else library)
    if library != "s3torch":
        options["s3client_config"] = package.S3ClientConfig(force_path_style=True)
    return getattr(package, name).from_prefix(
        URI, region=REGION, endpoint=endpoint(), transform=methodcaller("read"), **options
    )


def _measure(way: str, library: str) -> dict[str, float]:
    # Imports and the first connections are not what is asked for.
    _dataset(library, "S3MapDataset")[0]
    samples = WAYS[way](library)
    server, before, start = server_cpu_seconds(), cpu_seconds(), time.perf_counter()
    count = 0
    for sample in samples:
        for data in sample if isinstance(sample, list) else [sample]:
            if len(data) != SIZE:
                raise SystemExit(f"a sample has {len(data)} bytes")
            count += 1
    seconds = time.perf_counter() - start
    del samples
    return {
        "objects": count,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - before,
        "server_cpu_seconds": server_cpu_seconds() - server,
    }


def _print_table(figures: dict[Case, list[dict[str, float]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="samples of 100 KiB, listed and read")
    for column in ("server", "way", "", "objects/s", "speed", "CPU ms/object", "CPU", "server ms"):
        table.add_column(column, justify="left" if column in {"way", ""} else "right")
    base: dict[str, float] = {}
    for (where, way, library), rounds in figures.items():
        rate = statistics.median(one["objects"] / one["seconds"] for one in rounds)
        cpu, server = (
            statistics.median(1000 * one[field] / one["objects"] for one in rounds)
            for field in ("cpu_seconds", "server_cpu_seconds")
        )
        if library == LIBRARIES[0]:
            base = {"rate": rate, "cpu": cpu}
        table.add_row(
            where,
            way,
            library,
            f"{rate:,.0f}",
            f"{rate / base['rate']:.1f}x",
            f"{cpu:.2f}",
            f"{cpu / base['cpu']:.2f}x",
            f"{server:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

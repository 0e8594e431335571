"""Runs the same work with several libraries, side by side, and prints ratios.

Each library works in a process of its own, one after the other, round after round, against one SeaweedFS on
loopback. What is compared are medians over the rounds: seconds, CPU seconds (user and system) of the client
process and of the server, and by how much the client's process grew at its peak. On one machine a client that
costs nothing would still wait for the server: its CPU seconds over the number of processors bound the speed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from answers import start_answers
from runner.notes import counting, mark, note

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.testing.servers import S3Server

MIB = 1024 * 1024
# A real one is used as it is; without it each question starts a server of its own.
REAL_BUCKET = os.environ.get("BENCH_BUCKET")
BUCKET = REAL_BUCKET or "bench"
REGION = os.environ.get("AWS_REGION", "us-east-1") if REAL_BUCKET else "us-east-1"
CONNECTOR = "s3torchconnector"
# How the names of our cases end that run with the packages of another checkout.
BEFORE = ", before"


# Makes a client or what else there has to be, and returns the work.
Case: TypeAlias = "Callable[[], Callable[[], object]]"


@dataclass(frozen=True)
class Figures:
    """What one run of one case costs."""

    seconds: float
    cpu_seconds: float
    server_cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Question:
    """A piece of work that several libraries can do.

    Attributes:
        title: What is asked.
        cases: For each library a function that returns the work to be measured; what it reads and writes is
            at ``AWS_ENDPOINT_URL``.
        units: How many ``unit`` one run does.
        unit: As in ``"GB"`` or ``"objects"``.
        prepare: Called once with a boto3 client, to put objects into the bucket.
        size: How many bytes one run moves; 0 where that is not the point.
        baseline: The case that ratios refer to.
        latency: Seconds by which each answer is held back on its way from the server.
        reads_back: It reads what was uploaded.
        measured: Does the work and measures it, in another way than it is done for most questions.
    """

    title: str
    cases: dict[str, Case]
    units: float
    unit: str
    prepare: Callable[[Any], None]
    size: int = 0
    baseline: str = CONNECTOR
    latency: float = 0.0
    reads_back: bool = False
    measured: Callable[[Any], Figures] | None = None


def main(question: Question) -> None:
    """Runs a question from the command line."""
    parser = argparse.ArgumentParser(description=question.title)
    parser.add_argument("--rounds", type=int, default=5, help="how often each case runs (default 5)")
    parser.add_argument("--only", nargs="*", choices=sorted(question.cases), help="run just these cases")
    add_scheme(parser)
    parser.add_argument(
        "--server",
        choices=("seaweedfs", "memory"),
        default="seaweedfs",
        help="memory: one that costs little itself, to see what clients can do",
    )
    parser.add_argument(
        "--before",
        type=Path,
        help="another checkout of s3torch: our cases run with its packages, too, and are compared with that",
    )
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(asdict((question.measured or _measure)(question.cases[arguments.case]()))))
        return
    names = [name for name in question.cases if not arguments.only or name in arguments.only]
    if arguments.before:
        ours = [name for name in names if name.startswith("s3torch") and not name.startswith(CONNECTOR)]
        names = [name for one in ours for name in (one + BEFORE, one)]
    raw: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for scheme in ["memory"] if arguments.server == "memory" else schemes(arguments):
        figures = _run(question, names, arguments, scheme)
        _print_table(f"{question.title} ({scheme})", question, figures)
        raw[scheme] = {name: [asdict(one) for one in rounds] for name, rounds in figures.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps({"title": question.title, "figures": raw}, indent=1))


def add_scheme(parser: argparse.ArgumentParser) -> None:
    """Adds the options that ``schemes`` reads."""
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--tls", action="store_true", help="only over TLS")
    only.add_argument("--plain", action="store_true", help="only without TLS")


def schemes(arguments: argparse.Namespace) -> list[str]:
    """How the server is reached, one after the other: as users do first. A real one is reached as it is."""
    if REAL_BUCKET:
        return ["https"]
    return [
        scheme
        for scheme, is_left_out in (("https", arguments.plain), ("http", arguments.tls))
        if not is_left_out
    ]


def by_library(
    *, connector: Case, s3torch: Callable[[str], Callable[[], object]], boto3: Case, s3fs: Case, obstore: Case
) -> dict[str, Case]:
    """The cases of a question that all libraries can answer, ours with either transport."""
    return {
        CONNECTOR: connector,
        "s3torch (crt)": lambda: s3torch("crt"),
        "s3torch (http)": lambda: s3torch("http"),
        "boto3": boto3,
        "s3fs": s3fs,
        "obstore": obstore,
    }


def endpoint() -> str:
    """The server of this run."""
    return os.environ["AWS_ENDPOINT_URL"]


def boto_client() -> Any:
    """A boto3 client for the server of this run."""
    import boto3

    # Of a session of its own: the default one keeps the keys of the server before.
    return boto3.Session().client("s3", endpoint_url=endpoint(), region_name=REGION)


def s3torch_client(transport: str | None) -> Any:
    """A client of ours with this transport; ``None`` for the default."""
    from s3torch.core import S3Client, S3ClientConfig

    return S3Client(REGION, endpoint=endpoint(), s3client_config=S3ClientConfig(transport=transport))


def connector_client() -> Any:
    """The client of s3torchconnector."""
    from s3torchconnector import S3ClientConfig
    from s3torchconnector._s3client import S3Client

    return S3Client(REGION, endpoint=endpoint(), s3client_config=S3ClientConfig(force_path_style=True))


def obstore_client() -> Any:
    """The store of obstore."""
    from obstore.store import S3Store

    return S3Store(BUCKET, endpoint=endpoint(), region=REGION, client_options={"allow_http": True})


def s3fs_client() -> Any:
    """The filesystem of s3fs."""
    import s3fs

    return s3fs.S3FileSystem(client_kwargs={"endpoint_url": endpoint(), "region_name": REGION})


def _run(
    question: Question, names: list[str], arguments: argparse.Namespace, scheme: str
) -> dict[str, list[Figures]]:
    figures: dict[str, list[Figures]] = {name: [] for name in names}
    with ExitStack() as stack:
        if REAL_BUCKET:
            _prepare(question)
        elif scheme == "memory":
            _start_memory(question, stack)
        else:
            _start_seaweedfs(question, stack, tls=scheme == "https")
        for number in range(arguments.rounds):
            for name in names:
                print(
                    f"\rround {number + 1} of {arguments.rounds}: {name:<30}",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
                case = name.removesuffix(BEFORE)
                figures[name].append(
                    Figures(**in_child(case, sources=arguments.before if case != name else None))
                )
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
    return figures


def start_seaweedfs(stack: ExitStack, *, tls: bool) -> S3Server:
    """Starts the server, and leads every library to it."""
    from s3torch.testing import servers

    server = stack.enter_context(servers.start_seaweedfs(tls=tls, volume_mib=1024))
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE"):
        os.environ.pop(name, None)
    os.environ.update(server.environment())
    if tls:
        os.environ.update(SSL_CERT_FILE=str(server.ca_file))
    watch_server()
    return server


def _start_seaweedfs(question: Question, stack: ExitStack, *, tls: bool) -> None:
    from s3torch.testing.faults import Fault, FaultProxy

    server = start_seaweedfs(stack, tls=tls)
    _prepare(question)
    if question.latency:
        proxy = stack.enter_context(FaultProxy(server.endpoint))
        proxy.add(Fault(latency=question.latency))
        os.environ.update(server.at(proxy.endpoint).environment())


def _start_memory(question: Question, stack: ExitStack) -> None:
    url = stack.enter_context(start_answers(latency=question.latency, keep=question.reads_back))
    os.environ.update(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret")  # noqa: S106
    watch_server()
    _prepare(question)


def _prepare(question: Question) -> None:
    boto = boto_client()
    if not REAL_BUCKET:
        boto.create_bucket(Bucket=BUCKET)
    question.prepare(boto)


def watch_server() -> None:
    """Tells the cases whose processor time is that of the server."""
    import psutil

    running = psutil.Process().children(recursive=True)
    os.environ["BENCH_SERVER"] = " ".join(str(one.pid) for one in running)


def in_child(*case: str, sources: Path | None = None) -> dict[str, Any]:
    """Runs a case in a process of its own and returns the figures that it prints as JSON.

    Args:
        case: The arguments that name it.
        sources: A checkout whose packages it imports instead of those that are installed.
    """
    command = [sys.executable, sys.argv[0], "--case", *case]
    environment = dict(os.environ)
    if sources is not None:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, sources.resolve().glob("packages/*/src")))
    with counting(environment) as count:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"case {' '.join(case)} failed:\n{done.stderr}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    note(case, figures, suffix=BEFORE if sources is not None else "", count=count)
    return figures


def _measure(work: Callable[[], object]) -> Figures:
    work()  # Connections, imports and page tables are not what is asked for.
    mark()
    Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
    before = _status("VmRSS")
    server, cpu, start = server_cpu_seconds(), cpu_seconds(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return Figures(seconds, cpu_seconds() - cpu, server_cpu_seconds() - server, _status("VmHWM") - before)


def cpu_seconds() -> float:
    """Returns the processor seconds that this process and its ended children have taken so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def server_cpu_seconds() -> float:
    """Returns the processor seconds that the server has taken so far."""
    import psutil

    times = [psutil.Process(int(pid)).cpu_times() for pid in os.environ["BENCH_SERVER"].split()]
    return float(sum(one.user + one.system for one in times))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise LookupError(field)


def _print_table(title: str, question: Question, figures: dict[str, list[Figures]]) -> None:
    from rich.console import Console
    from rich.table import Table

    def median(name: str, field: str) -> float:
        return float(statistics.median(getattr(one, field) for one in figures[name]))

    table = Table(title=title)
    for column in (
        "",
        f"{question.unit}/s",
        "speed",
        f"CPU s/{question.unit}",
        "CPU",
        "server",
        "peak MiB",
        "peak/byte",
    ):
        table.add_column(column, justify="right" if column else "left")
    common = question.baseline if question.baseline in figures else next(iter(figures))
    for name in figures:
        base = next((one for one in figures if one == name + BEFORE), common)
        seconds, cpu = median(name, "seconds"), median(name, "cpu_seconds")
        table.add_row(
            name,
            f"{question.units / seconds:,.2f}",
            f"{median(base, 'seconds') / seconds:.2f}x",
            f"{cpu / question.units:.3g}",
            f"{cpu / median(base, 'cpu_seconds'):.2f}x",
            f"{median(name, 'server_cpu_seconds') / question.units:.3g}",
            f"{median(name, 'peak_bytes') / MIB:.0f}",
            f"{median(name, 'peak_bytes') / question.size:.2f}" if question.size else "",
        )
    Console().print(table)

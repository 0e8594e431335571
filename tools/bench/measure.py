"""Runs the same work with several libraries, side by side, and prints ratios.

Each library works in a process of its own, one after the other, round after round, against one server on
loopback (``servers.py``). What is compared are medians over the rounds: seconds, CPU seconds (user and
system) of the client process and of the server, and by how much the client's process grew at its peak. On
one machine a client that costs nothing would still wait for the server: its CPU seconds over the number of
processors bound the speed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import servers
from libraries import (
    BUCKET,
    CONNECTOR,
    REAL_BUCKET,
    REGION,
    boto_client,
    connector_client,
    endpoint,
    s3torch_client,
)
from runner.notes import COUNT, counting, mark, note
from servers import start_seaweedfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from servers import Objects

__all__ = [
    "BEFORE",
    "BUCKET",
    "CONNECTOR",
    "MIB",
    "REGION",
    "CaseError",
    "Figures",
    "Question",
    "add_scheme",
    "boto_client",
    "connector_client",
    "cpu_seconds",
    "endpoint",
    "in_child",
    "main",
    "s3torch_client",
    "schemes",
    "server_cpu_seconds",
    "since_start",
    "start_seaweedfs",
]

MIB = 1024 * 1024
# How the names of our cases end that run with the packages of another checkout.
BEFORE = ", before"
# A case that takes so many times as long as the quickest is measured once.
_TOO_SLOW = 5
# A few of all libraries, for a first look.
_QUICK = (CONNECTOR, "s3torch", "obstore")

# Makes a client or what else there has to be, and returns the work.
Case: TypeAlias = "Callable[[], Callable[[], object]]"


@dataclass(frozen=True)
class Figures:
    """What one run of one case costs."""

    seconds: float
    cpu_seconds: float
    server_cpu_seconds: float
    peak_bytes: int


class CaseError(Exception):
    """A case has failed; the last line of what it printed."""


@dataclass(frozen=True)
class Question:
    """A piece of work that several libraries can do.

    Attributes:
        title: What is asked.
        cases: For each library a function that returns the work to be measured; what it reads and writes is
            at ``AWS_ENDPOINT_URL``.
        work: Its name, where a file has several.
        units: How many ``unit`` one run does.
        unit: As in ``"GB"`` or ``"objects"``.
        prepare: Called once with a boto3 client, to put objects into the bucket.
        objects: Equal objects to put there: what their keys start with, how many, and the bytes of each.
        size: How many bytes one run moves; 0 where that is not the point.
        baseline: The case that ratios refer to.
        on: Where it is asked, if nobody says: some of ``servers.PLACES``.
        only_gets: It can be asked of a server that knows only GET and HEAD.
        reads_back: It reads what was uploaded.
        measured: Does the work and measures it, in another way than it is done for most questions.
    """

    title: str
    cases: dict[str, Case]
    work: str = ""
    units: float = 1
    unit: str = "run"
    prepare: Callable[[Any], None] = lambda _: None
    objects: tuple[Objects, ...] = ()
    size: int = 0
    baseline: str = CONNECTOR
    on: tuple[str, ...] = ("https", "http")
    only_gets: bool = False
    reads_back: bool = False
    measured: Callable[[Any], Figures] | None = None


def main(*questions: Question) -> None:
    """Runs questions from the command line."""
    names = list(dict.fromkeys(name for one in questions for name in one.cases))
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each case runs (default 5)")
    parser.add_argument("--works", nargs="*", choices=[one.work for one in questions], help="some of them")
    parser.add_argument("--only", nargs="*", choices=names, help="just these libraries")
    parser.add_argument("--quick", action="store_true", help="one round, in one place, of some libraries")
    add_scheme(parser)
    parser.add_argument(
        "--before",
        type=Path,
        help="another checkout of s3torch: our cases run with its packages, too, and are compared with that",
    )
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        work, name = arguments.case
        question = next(one for one in questions if one.work == work)
        print(json.dumps(asdict((question.measured or _measure)(question.cases[name]()))))
        return
    wanted = [one for one in questions if arguments.works is None or one.work in arguments.works]
    raw: dict[str, dict[str, Any]] = {}
    for place in dict.fromkeys(place for one in wanted for place in _places(one, arguments)):
        here = [one for one in wanted if place in _places(one, arguments)]
        for question, figures in zip(here, _run(here, arguments, place), strict=True):
            title = f"{question.title} ({place})"
            _print_table(title, question, figures)
            raw[title] = {name: [asdict(one) for one in rounds] for name, rounds in figures.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(raw, indent=1))


def add_scheme(parser: argparse.ArgumentParser) -> None:
    """Adds the options that ``schemes`` reads."""
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--tls", action="store_true", help="only over TLS")
    only.add_argument("--plain", action="store_true", help="only without TLS")
    only.add_argument(
        "--on", nargs="*", choices=servers.PLACES, metavar="PLACE", help=", ".join(servers.PLACES)
    )


def schemes(arguments: argparse.Namespace, usual: Iterable[str] = ("https", "http")) -> list[str]:
    """Where it is asked, one after the other: as users do first. A real bucket is reached as it is."""
    if REAL_BUCKET:
        return ["https"]
    if arguments.on is not None:
        return list(arguments.on)
    without = {"http"} if arguments.tls else {"https"} if arguments.plain else set()
    return [place for place in usual if place not in without]


def _places(question: Question, arguments: argparse.Namespace) -> list[str]:
    places = schemes(arguments, question.on)
    if COUNT in os.environ:
        # The proxy that counts knows no TLS, and once is enough.
        places = [place for place in (*question.on, "http") if place != "https"][:1]
    if not question.only_gets:
        places = [place for place in places if place != "nginx"]
    return places[:1] if arguments.quick else places


def _names(question: Question, arguments: argparse.Namespace) -> list[str]:
    names = [
        name
        for name in question.cases
        if (arguments.only is None or name in arguments.only)
        and (not arguments.quick or name.startswith(_QUICK) or len(question.cases) <= len(_QUICK))
    ]
    if arguments.before:
        ours = [name for name in names if name.startswith("s3torch") and not name.startswith(CONNECTOR)]
        names = [name for one in ours for name in (one + BEFORE, one)]
    return names


def _run(
    questions: list[Question], arguments: argparse.Namespace, place: str
) -> list[dict[str, list[Figures]]]:
    """Asks all questions in one place, round after round, all libraries in turn."""
    found: list[dict[str, list[Figures]]] = [{} for _ in questions]
    with ExitStack() as stack:
        prepares = dict.fromkeys(one.prepare for one in questions)
        objects = list(dict.fromkeys(each for one in questions for each in one.objects))
        os.environ["BENCH_PLACE"] = place
        os.environ["BENCH_SCRATCH"] = stack.enter_context(tempfile.TemporaryDirectory())
        if REAL_BUCKET:
            servers.put_objects(boto_client(), objects)
            _each(prepares)(boto_client())
        else:
            keep = any(one.reads_back for one in questions)
            servers.enter(place, stack, _each(prepares), objects, keep=keep)
        failed: set[tuple[str, str]] = set()
        for _ in range(1 if arguments.quick else arguments.rounds):
            for question, figures in zip(questions, found, strict=True):
                for name in _names(question, arguments):
                    if (question.work, name) in failed or _is_too_slow(figures, name):
                        continue
                    case = name.removesuffix(BEFORE)
                    sources = arguments.before if case != name else None
                    print(f"{place}, {question.work}, {name}", file=sys.stderr, flush=True)
                    try:
                        made = Figures(**in_child(question.work, case, sources=sources))
                    except CaseError as exc:
                        print(f"  failed: {exc}", file=sys.stderr, flush=True)
                        failed.add((question.work, name))
                    else:
                        figures.setdefault(name, []).append(made)
    return found


def _is_too_slow(figures: dict[str, list[Figures]], name: str) -> bool:
    quickest = min((one.seconds for rounds in figures.values() for one in rounds), default=0.0)
    return name in figures and figures[name][0].seconds > _TOO_SLOW * quickest


def _each(functions: Iterable[Callable[[Any], None]]) -> Callable[[Any], None]:
    def call(boto: Any) -> None:
        for function in functions:
            function(boto)

    return call


def in_child(*case: str, sources: Path | None = None) -> dict[str, Any]:
    """Runs a case in a process of its own and returns the figures that it prints as JSON.

    Args:
        case: The arguments that name it.
        sources: A checkout whose packages it imports instead of those that are installed.

    Raises:
        CaseError: It failed, which is noted, too.
    """
    command = [sys.executable, sys.argv[0], "--case", *case]
    environment = dict(os.environ)
    suffix = BEFORE if sources is not None else ""
    if sources is not None:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, sources.resolve().glob("packages/*/src")))
    with counting(environment) as count:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else "no reason was given"
        note(case, {}, suffix=suffix, failed=reason)
        raise CaseError(f"case {' '.join(case)} failed: {reason}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    note(case, figures, suffix=suffix, **count)
    return figures


def since_start(work: Callable[[], object]) -> Figures:
    """Measures a process from its start to the end of the work, imports included."""
    import psutil

    work()
    seconds = time.time() - psutil.Process().create_time()
    return Figures(seconds, cpu_seconds(), 0.0, _status("VmHWM"))


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
    common = question.baseline if question.baseline in figures else next(iter(figures), "")
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
    Console(width=None if sys.stdout.isatty() else 140).print(table)

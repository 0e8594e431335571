"""From noted figures to rows: medians, spreads, and ratios between libraries that did the same work."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runner.questions import Run

OURS = "s3torch"
# Longer names first: one is the beginning of another. The first that took part is what ratios refer to.
PEERS = (
    "s3torchconnector",
    "s3fs",
    "boto3",
    "obstore",
    "multi-storage-client",
    "litdata",
    "streaming",
    "webdataset",
    "runai",
    "torch",
)
_BEFORE = ", before"
_FEWEST_FOR_SPREAD = 2
# The part of the time from which on a processor counts as what the work waited for.
_BUSY = 0.8
# The places where the line is what one waits for.
_SLOW = ("latency-", "memory-", "slow-", "bursts")
# By how much the speeds of two runs may differ.
_SAME = 0.1
# What ``measure.py`` notes; other questions have names of their own for it.
_SECONDS = ("blocked", "busy_seconds", "seconds")
_CPU = ("cpu_seconds", "busy_cpu_seconds")
_SERVER_CPU = ("server_cpu_seconds",)
_PEAK = ("peak_bytes", "extra")


@dataclass(frozen=True, slots=True)
class Row:
    """One library, one piece of work.

    Attributes:
        question: The name of the file.
        work: Which of its works, with the place.
        library: Who did it.
        rounds: How often.
        seconds: The median.
        spread: How far the rounds lie apart: half of the range between them, as a part of the median.
        speed: How many times as fast as the peer; ``None`` without one.
        cpu: Processor seconds of the client.
        cpu_ratio: That, as a part of the peer's.
        server_cpu: Processor seconds of the server.
        peak: Bytes by which the client grew.
        requests: What the server was asked.
        nbytes: Bytes of bodies that the server sent and received.
        peer: What it is compared with.
        fastest: The fastest of all peers, by name.
        best: How many times as fast as that one.
        before: ``speed``, as an earlier run had it.
        others: Medians of what else the question measures, by its own names.
    """

    question: str
    work: str
    library: str
    rounds: int
    seconds: float
    spread: float | None
    speed: float | None
    cpu: float | None
    cpu_ratio: float | None
    server_cpu: float | None
    peak: float | None
    requests: int | None
    nbytes: int | None
    peer: str | None
    fastest: str | None = None
    best: float | None = None
    before: float | None = None
    others: dict[str, float] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether it is one of our own cases."""
        return library_of((self.library,)) == OURS

    @property
    def place(self) -> str:
        """Where it was asked."""
        return self.work.rpartition(", ")[2]

    @property
    def repeats(self) -> bool:
        """Whether an earlier run had the same speed, as far as one can expect."""
        return bool(self.before and self.speed and abs(self.speed / self.before - 1) <= _SAME)

    def bound(self, processors: int) -> str:
        """Says what the work waited for most of the time, as far as processor seconds tell."""
        cpu, server = self.cpu or 0.0, self.server_cpu or 0.0
        busy = _BUSY * self.seconds
        if cpu + server >= processors * busy:
            return "all processors, most of them the server's" if server > cpu else "all processors"
        if max(cpu, server) >= busy:
            return "a processor of the client" if cpu >= server else "a processor of the server"
        return "the line" if self.place.startswith(_SLOW) else "waiting"

    @property
    def is_behind(self) -> bool:
        """Whether some peer was faster."""
        return self.best is not None and self.best < 1


def rows(runs: Iterable[Run], counted: Iterable[Run] = ()) -> list[Row]:
    """Makes the rows of some runs.

    Args:
        runs: What was measured.
        counted: Runs of the same questions through a proxy that counts; their times mean nothing.
    """
    counts = {
        (one.question, _work(note), _library(note)): (note["requests"], note["sent"] + note["received"])
        for one in counted
        for note in one.notes
        if "requests" in note
    }
    made = []
    for one in runs:
        cases: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for note in one.notes:
            if note["figures"]:
                cases.setdefault((note["place"], _work(note), _library(note)), []).append(note["figures"])
        for (place, work, library), figures in cases.items():
            peer = _peer_of(library, [name for s, w, name in cases if (s, w) == (place, work)])
            base = cases[place, work, peer] if peer else None
            count = counts.get((one.question, work, library), (None, None))
            title = ", ".join(filter(None, (work, place)))
            row = _row(one.question, title, library, figures, base, count, peer)
            others = {name: each for (s, w, name), each in cases.items() if (s, w) == (place, work)}
            made.append(_beside_all(row, others))
    return made


def merged(earlier: Iterable[dict[str, Any]], made: Sequence[Row]) -> list[Row]:
    """Puts rows in the place of those of an earlier run, and after those of other questions.

    Args:
        earlier: As ``as_json`` made them.
        made: The new ones, which learn how fast they were before.
    """
    old = {(one.question, one.work, one.library): one for one in (Row(**each) for each in earlier)}
    new = {(one.question, one.work, one.library): one for one in made}
    for key in old.keys() & new.keys():
        new[key] = replace(new[key], before=old[key].speed, **_counts(new[key], old[key]))
    order = list(dict.fromkeys(one.question for one in (*old.values(), *new.values())))
    return sorted((old | new).values(), key=lambda one: order.index(one.question))


def _counts(new: Row, old: Row) -> dict[str, Any]:
    # Requests may have been counted before only; they do not depend on how fast things are.
    return {} if new.requests is not None else {"requests": old.requests, "nbytes": old.nbytes}


def as_json(made: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the rows as plain values."""
    return [asdict(one) for one in made]


def library_of(case: Iterable[str]) -> str | None:
    """Says which library a case is of; ``None`` if its name does not tell."""
    for element in case:
        for name in (*PEERS[:1], OURS, *PEERS[1:]):
            if element.startswith(name):
                return name
    return None


def _library(note: dict[str, Any]) -> str:
    case: list[str] = note["case"]
    suffix: str = note["suffix"]
    return next((element for element in case if library_of((element,))), case[0]) + suffix


def _work(note: dict[str, Any]) -> str:
    found = _library(note)
    # Where the server is, is no part of the work.
    rest = (one for one in note["case"] if one + note["suffix"] != found and "://" not in one)
    return ", ".join(rest)


def _peer_of(library: str, names: Sequence[str]) -> str | None:
    if library_of((library,)) != OURS:
        return None
    if not library.endswith(_BEFORE) and library + _BEFORE in names:
        return library + _BEFORE
    peers = {library_of((name,)): name for name in reversed(names)}
    return next((peers[name] for name in PEERS if name in peers), None)


def _beside_all(row: Row, cases: dict[str, list[dict[str, Any]]]) -> Row:
    """Compares one of our own rows with all peers that did the same work."""
    peers = {
        name: seconds
        for name, figures in cases.items()
        if library_of((name,)) not in {OURS, None} and (seconds := _median(figures, _SECONDS))
    }
    if not row.is_ours or not peers or not row.seconds:
        return row
    fastest = min(peers, key=lambda name: peers[name])
    return replace(row, fastest=fastest, best=peers[fastest] / row.seconds)


def _row(
    question: str,
    work: str,
    library: str,
    figures: list[dict[str, Any]],
    base: list[dict[str, Any]] | None,
    count: tuple[int | None, int | None],
    peer: str | None,
) -> Row:
    seconds, cpu = _median(figures, _SECONDS) or 0.0, _median(figures, _CPU)
    base_seconds, base_cpu = _median(base or [], _SECONDS), _median(base or [], _CPU)
    return Row(
        question=question,
        work=work,
        library=library,
        rounds=len(figures),
        seconds=seconds,
        spread=_spread([one for figure in figures if (one := _first(figure, _SECONDS)) is not None]),
        speed=base_seconds / seconds if base_seconds and seconds else None,
        cpu=cpu,
        cpu_ratio=cpu / base_cpu if cpu is not None and base_cpu else None,
        server_cpu=_median(figures, _SERVER_CPU),
        peak=_median(figures, _PEAK),
        requests=count[0],
        nbytes=count[1],
        peer=peer,
        others={name: value for name in _others(figures) if (value := _median(figures, (name,))) is not None},
    )


def _others(figures: Sequence[dict[str, Any]]) -> list[str]:
    """The names of figures that have no column of their own."""
    columns = (_SECONDS, _CPU, _SERVER_CPU, _PEAK)
    shown = {next((name for name in names if name in figures[0]), None) for names in columns}
    numbers = (name for name, value in figures[0].items() if isinstance(value, int | float))
    return [name for name in numbers if name not in shown]


def _first(figure: dict[str, Any], names: Sequence[str]) -> float | None:
    return next((float(figure[name]) for name in names if name in figure), None)


def _median(figures: Sequence[dict[str, Any]], names: Sequence[str]) -> float | None:
    found = [one for figure in figures if (one := _first(figure, names)) is not None]
    return float(statistics.median(found)) if found else None


def _spread(values: Sequence[float]) -> float | None:
    if len(values) < _FEWEST_FOR_SPREAD:
        return None
    return (max(values) - min(values)) / 2 / statistics.median(values)

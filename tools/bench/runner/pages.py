"""Writes rows as JSON, as a table in Markdown, and as a plot."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from runner.results import OURS, as_json, merged

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from runner.questions import Run
    from runner.results import Row

NAME = "bench"
MIB = 1024 * 1024
_HEAD = (
    *("work", "library", "median s", "spread", "speed", "before", "best", "CPU s", "CPU", "server CPU s"),
    *("peak MiB", "requests", "MB", "bound by"),
)
_READING = (
    "Libraries take turns, round after round, in processes of their own, against one server on one"
    " machine. Speed is that of the peer times the number, before the same in an earlier run, best that of"
    " the fastest of all peers, CPU (processor seconds of the client) a part of the peer's; spread is half of"
    " the range of the rounds. Requests and megabytes are counted at a proxy, in a run of its own. Where"
    " client and server keep the processors busy that they share, work is bound by that, and would be faster"
    " on two machines. Whether a processor computes or waits for memory, these figures do not tell; `busy.py`"
    " tells what of it is the interpreter's."
)
_PLACES = (
    "`https` and `http` are SeaweedFS; `nginx` sends files and nothing else, the ceiling for GET; `memory` is"
    " a server that costs little, the ceiling for clients, and `memory-20` waits 20 ms before each object."
    " `latency-20` is SeaweedFS behind a proxy that waits 20 ms before each first byte, `slow-connections`"
    " gives 25 MB/s to each connection, `slow-line` 100 MB/s to all together, and `bursts` answers 503 for"
    " 0.2 s of each second."
)
# Okabe and Ito's, told apart with any kind of colour vision; the edge and the hatch tell them apart in print.
_AHEAD: dict[str, Any] = {"color": "#0072B2"}
_BEHIND: dict[str, Any] = {"color": "#E69F00", "hatch": "//"}


def write(made: Sequence[Row], runs: Sequence[Run], target: Path, about: dict[str, Any]) -> None:
    """Writes all of it, with what an earlier run has found for other questions.

    Args:
        made: The rows.
        runs: The runs that they come from, with those that failed.
        target: The folder.
        about: Machine, versions, command and whatever else has to be said.
    """
    target.mkdir(parents=True, exist_ok=True)
    earlier = _earlier(target, about)
    rows = merged(earlier["rows"], made)
    names = {one.question for one in rows}
    facts = {name: about[name] for name in ("command", "date", "load")}
    asked = {
        **{name: one for name, one in earlier["asked"].items() if name in names},
        **{one.question: {"title": one.title, "missing": _missing(one), **facts} for one in runs},
    }
    content = {"about": about, "asked": asked, "rows": as_json(rows)}
    (target / f"{NAME}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (target / f"{NAME}.md").write_text(_page(rows, asked, about), encoding="utf-8")
    if any(one.speed is not None for one in rows):
        _draw([one for one in rows if one.speed is not None], target / NAME)
    if summary := _summary(rows):
        _draw(summary, target / f"{NAME}-summary", briefly=True)


def _earlier(target: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What lies there, if the same versions on the same kind of machine have measured it."""
    path = target / f"{NAME}.json"
    nothing: dict[str, Any] = {"rows": [], "asked": {}}
    if not path.exists():
        return nothing
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = all(found["about"][name] == about[name] for name in ("processor", "processors", "versions"))
    return found if same and "asked" in found else nothing


def _missing(run: Run) -> list[str]:
    """Says which cases were not measured, and why."""
    cases = {
        f"{', '.join(filter(None, note['case']))} ({note['place']}): {note['failed']}": None
        for note in run.notes
        if "failed" in note
    }
    return [*cases, *([_last_line(run.failure)] if run.failure else [])]


def _summary(rows: Sequence[Row]) -> list[Row]:
    """The rows for a first look: over TLS, as users do, with the default transport."""
    return [
        one
        for one in rows
        if one.place == "https" and one.speed is not None and one.library in {OURS, f"{OURS} (http)"}
    ]


def _page(made: Sequence[Row], asked: dict[str, Any], about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    processors = f"{about['processors']} processors ({about['processor']})"
    told = (
        f"On {processors}, {about['memory_gib']} GiB, {about['system']}, Python {about['python']};"
        f" {versions}. {about['server']}"
    )
    parts = ["# Benchmarks", told, _READING, _PLACES]
    if any(one.speed is not None for one in made):
        parts.append(f"![speed beside the peer]({NAME}.png)")
    again = [one for one in made if one.before]
    if again:
        same = sum(one.repeats for one in again)
        parts.append(f"Of {len(again)} ratios that were measured twice, {same} are the same within 10 %.")
    for name, one in asked.items():
        rows = [row for row in made if row.question == name]
        if rows:
            told = f"`{one['command']}`, {one['date']}, load {one['load']:.1f} at the start."
            parts += [f"## {one['title']}", told, _table(rows, about["processors"])]
            parts += _others(rows)
            if name == "growth":
                parts += ["Seconds of the second of each pair, as a multiple of the first:", _growth(rows)]
    behind = [
        f"- {one.question}, {one.work}: {one.library} {one.best:.2f} beside {one.fastest}"
        for one in made
        if one.is_behind
    ]
    if behind:
        parts += ["## Where some peer is faster", "\n".join(behind)]
    missing = [f"- {name}: {reason}" for name, one in asked.items() for reason in one["missing"]]
    if missing:
        parts += ["## What was not measured", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def _others(rows: Sequence[Row]) -> list[str]:
    """What only this question measures; its docstring says what it is."""
    names = list(dict.fromkeys(name for one in rows for name in one.others))
    if not names:
        return []
    lines = [
        (one.work, one.library, *(f"{one.others[name]:,.4g}" if name in one.others else "" for name in names))
        for one in rows
        if one.others
    ]
    return [_lines(("work", "library", *(name.replace("_", " ") for name in names)), lines)]


def _growth(rows: Sequence[Row]) -> str:
    """How many times as long the second of each pair of rows took."""
    pairs: dict[tuple[str, str], list[Row]] = {}
    for one in rows:
        pairs.setdefault((one.work.partition(",")[0], one.library), []).append(one)
    return _lines(
        ("of", "library", "from", "to", "time"),
        [
            (of, library, _value(first), _value(second), f"{second.seconds / first.seconds:.2f}")
            for (of, library), (first, *others) in pairs.items()
            for second in others[-1:]
        ],
    )


def _value(row: Row) -> str:
    return row.work.split(", ")[1]


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no reason was given")


def _table(rows: Sequence[Row], processors: int) -> str:
    def number(value: float | None, form: str, factor: float = 1.0) -> str:
        return "" if value is None else format(value / factor, form)

    return _lines(
        _HEAD,
        [
            (
                one.work,
                one.library,
                number(one.seconds, ".3f"),
                number(one.spread, ".0%"),
                number(one.speed, ".2f"),
                number(one.before, ".2f"),
                number(one.best, ".2f"),
                number(one.cpu, ".3f"),
                number(one.cpu_ratio, ".2f"),
                number(one.server_cpu, ".3f"),
                number(one.peak, ".0f", MIB),
                number(one.requests, ",.0f"),
                number(one.nbytes, ",.1f", 1e6),
                "" if one.cpu is None else one.bound(processors),
            )
            for one in rows
        ],
    )


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ("---",) * len(head), *rows))


def _draw(shown: Sequence[Row], target: Path, *, briefly: bool = False) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 1.0 + 0.26 * len(shown)), layout="constrained")
    for place, one in enumerate(shown):
        speed = one.speed or 0.0
        error = speed * one.spread if one.spread else None
        style = _BEHIND if one.is_behind else _AHEAD
        axis.barh(place, speed - 1, left=1, xerr=error, edgecolor="black", linewidth=0.5, **style)
        end = (max(speed + (error or 0), 1), place)
        axis.annotate(f"{speed:.2f}", end, (4, 0), textcoords="offset points", va="center", fontsize=7)
    axis.axvline(1, color="black", linewidth=1, linestyle="--")
    axis.set_yticks(range(len(shown)), [_name(one, briefly=briefly) for one in shown], fontsize=7)
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.set_xscale("log")
    ticks = [at for at in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if _reached(shown, at)]
    axis.set_xticks(ticks, [f"{at:g}" for at in ticks])
    axis.minorticks_off()
    figure.supxlabel("speed of s3torch; that of the peer is 1; hatched where some peer is faster", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    for suffix in (".png", ".svg"):
        figure.savefig(
            target.with_suffix(suffix), dpi=150, metadata={"Date": None} if suffix == ".svg" else None
        )
    plt.close(figure)


def _name(row: Row, *, briefly: bool) -> str:
    question = row.question.replace("_", " ")
    if briefly:
        return f"{question}: {row.work.removesuffix('https').rstrip(', ')}, beside {row.peer}"
    return ", ".join(filter(None, (question, row.work, row.library)))


def _reached(shown: Sequence[Row], at: float) -> bool:
    speeds = [one.speed or 1.0 for one in shown]
    return min(*speeds, 0.5) <= at <= max(*speeds, 2.0) * 1.5

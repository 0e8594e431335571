"""Writes rows as JSON, as a table in Markdown, and as a plot."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from runner.results import as_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from runner.questions import Run
    from runner.results import Row

NAME = "bench"
MIB = 1024 * 1024
_HEAD = (
    *("work", "library", "median s", "spread", "speed", "best", "CPU s", "CPU", "server CPU s", "peak MiB"),
    *("requests", "MB", "bound by"),
)
_READING = (
    "Libraries take turns, round after round, in processes of their own, against one server on one"
    " machine. Speed is that of the peer times the number, best that of the fastest of all peers, CPU"
    " (processor seconds of the client) a part of the peer's; spread is half of the range of the rounds."
    " Requests and megabytes are counted at a proxy, in a run of its own. Where client and server keep"
    " the processors busy that they share, work is bound by that, and would be faster on two machines."
)
# Okabe and Ito's, told apart with any kind of colour vision; the edge and the hatch tell them apart in print.
_AHEAD: dict[str, Any] = {"color": "#0072B2"}
_BEHIND: dict[str, Any] = {"color": "#E69F00", "hatch": "//"}


def write(made: Sequence[Row], runs: Sequence[Run], target: Path, about: dict[str, Any]) -> None:
    """Writes all of it.

    Args:
        made: The rows.
        runs: The runs that they come from, with those that failed.
        target: The folder.
        about: Machine, versions, command and whatever else has to be said.
    """
    target.mkdir(parents=True, exist_ok=True)
    failed = {one.question: one.failure for one in runs if one.failure}
    content = {"about": about, "failed": failed, "rows": as_json(made)}
    (target / f"{NAME}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (target / f"{NAME}.md").write_text(_page(made, runs, about), encoding="utf-8")
    if any(one.speed is not None for one in made):
        _draw(made, target / NAME)


def _page(made: Sequence[Row], runs: Sequence[Run], about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    processors = f"{about['processors']} processors ({about['processor']})"
    told = (
        f"`{about['command']}`, {about['date']}, on {processors}, {about['memory_gib']} GiB,"
        f" {about['system']}, Python {about['python']}, load {about['load']:.1f} at the start; {versions}."
        f" {about['server']}"
    )
    parts = ["# Benchmarks", told, _READING]
    if any(one.speed is not None for one in made):
        parts.append(f"![speed beside the peer]({NAME}.png)")
    for run in runs:
        rows = [one for one in made if one.question == run.question]
        if rows:
            parts += [f"## {run.title}", _table(rows, about["processors"])]
    behind = [
        f"- {one.question}, {one.work}: {one.library} {one.best:.2f} beside {one.fastest}"
        for one in made
        if one.is_behind
    ]
    if behind:
        parts += ["## Where some peer is faster", "\n".join(behind)]
    failed = [f"- {run.question}: {_last_line(run.failure)}" for run in runs if run.failure]
    if failed:
        parts += ["## What was not measured", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no reason was given")


def _table(rows: Sequence[Row], processors: int) -> str:
    def number(value: float | None, form: str, factor: float = 1.0) -> str:
        return "" if value is None else format(value / factor, form)

    lines = [_HEAD, ("---",) * len(_HEAD)]
    for one in rows:
        cells = (
            one.work,
            one.library,
            number(one.seconds, ".3f"),
            number(one.spread, ".0%"),
            number(one.speed, ".2f"),
            number(one.best, ".2f"),
            number(one.cpu, ".3f"),
            number(one.cpu_ratio, ".2f"),
            number(one.server_cpu, ".3f"),
            number(one.peak, ".0f", MIB),
            number(one.requests, ",.0f"),
            number(one.nbytes, ",.1f", 1e6),
            "" if one.cpu is None else one.bound(processors),
        )
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _draw(made: Sequence[Row], target: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = [one for one in made if one.speed is not None]
    names = [
        ", ".join(filter(None, (one.question.replace("_", " "), one.work, one.library))) for one in shown
    ]
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.28 * len(shown)), layout="constrained")
    for place, one in enumerate(shown):
        speed = one.speed or 0.0
        error = speed * one.spread if one.spread else None
        style = _BEHIND if one.is_behind else _AHEAD
        axis.barh(place, speed - 1, left=1, xerr=error, edgecolor="black", linewidth=0.5, **style)
        end = (max(speed + (error or 0), 1), place)
        axis.annotate(f"{speed:.2f}", end, (4, 0), textcoords="offset points", va="center", fontsize=7)
    axis.axvline(1, color="black", linewidth=1, linestyle="--")
    axis.set_yticks(range(len(shown)), names, fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log")
    ticks = [at for at in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if _reached(shown, at)]
    axis.set_xticks(ticks, [f"{at:g}" for at in ticks])
    axis.minorticks_off()
    axis.set_xlabel("speed, the peer of the same run is 1; hatched where some peer is faster")
    axis.spines[["top", "right"]].set_visible(False)
    for suffix in (".png", ".svg"):
        figure.savefig(
            target.with_suffix(suffix), dpi=150, metadata={"Date": None} if suffix == ".svg" else None
        )
    plt.close(figure)


def _reached(shown: Sequence[Row], at: float) -> bool:
    speeds = [one.speed or 1.0 for one in shown]
    return min(*speeds, 0.5) <= at <= max(*speeds, 2.0) * 1.5

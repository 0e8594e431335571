"""Models one node and a thousand, simulates S3's request rates, and writes tables and plots.

    hatch run scale                 all of it, some minutes
    hatch run scale --shrink 200    coarser, some seconds
    hatch run scale --shrink 1      every request of every rank, an hour

The numbers of a run depend on ``--seed`` and ``--shrink`` alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scale import scenarios
from scale.model import (
    TB,
    Job,
    Prediction,
    connections_per_node,
    listing,
    load,
    load_once,
    manifest_memory,
    memory_per_node,
    nodes_that_fill_a_prefix,
    replicas,
    restart,
    save,
)
from scale.scenarios import BEFORE, DEFAULT, HEX_ABOVE, LAYOUTS, NOW
from scale.store import PUTS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scale.simulation import Outcome

TARGET = Path(__file__).resolve().parents[2] / "docs" / "performance"
NODES = (8, 16, 32, 64, 128, 256, 512, 1000)
MANY = 1000
SIZE = 10 * TB
SAVES = 6
# After some saves lasting load has split what could be split.
SHOWN_SAVE = 4
_MINUTE = 60
_FEWEST_RANKS = 32


@dataclass(frozen=True, slots=True)
class Results:
    """What was simulated."""

    by_nodes: dict[str, dict[int, Outcome]]
    large_parts: Outcome
    by_layout: dict[str, list[Outcome]]


def main() -> None:
    """Runs all and writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shrink", type=int, default=40, help="ranks and rates are divided by this (default 40)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", type=Path, default=TARGET, help="the folder for tables and plots")
    arguments = parser.parse_args()
    arguments.target.mkdir(parents=True, exist_ok=True)
    results = run(arguments.shrink, arguments.seed)
    write(results, arguments.target, shrink=arguments.shrink, seed=arguments.seed)
    print(f"written to {arguments.target}")


def run(shrink: int, seed: int, *, nodes: Sequence[int] = NODES, number: int = SAVES) -> Results:
    """Simulates loads of more and more nodes, and saves one after the other, by naming."""
    by_nodes = {
        name: {
            count: scenarios.alone(
                scenarios.load(count, SIZE), shrink=factor(count, shrink), policy=policy, seed=seed
            )
            for count in nodes
        }
        for name, policy in (("before", BEFORE), ("now", NOW))
    }
    large = scenarios.load(MANY, SIZE, part_size=8 * scenarios.PART)
    by_layout = {
        layout.title: scenarios.one_after_another(
            scenarios.saves(layout, nodes=MANY, size=SIZE), range(1, number + 1), shrink=shrink
        )
        for layout in LAYOUTS
    }
    return Results(by_nodes, scenarios.alone(large, shrink=shrink, seed=seed), by_layout)


def factor(nodes: int, shrink: int) -> int:
    """Returns by how much to divide ranks and rates, so that at least 32 ranks are left."""
    return max(1, min(shrink, nodes * scenarios.RANKS_PER_NODE // _FEWEST_RANKS))


def write(results: Results, target: Path, *, shrink: int, seed: int) -> None:
    """Writes JSON, Markdown and plots."""
    from scale import plots

    shown = {
        "default names": results.by_layout[DEFAULT.title][SHOWN_SAVE - 1],
        "hex prefixes above the step": results.by_layout[HEX_ABOVE.title][SHOWN_SAVE - 1],
    }
    plots.draw_rates(
        shown,
        PUTS_PER_SECOND,
        target / "scale-rates",
        scale=shrink,
        title=f"Save number {SHOWN_SAVE} of {SIZE // TB} TB by {MANY:,} nodes",
    )
    plots.draw_lines(
        {
            f"retries {name}": [(nodes, _seconds(outcome)) for nodes, outcome in outcomes.items()]
            for name, outcomes in results.by_nodes.items()
        },
        target / "scale-nodes",
        title=f"Loading {SIZE // TB} TB from one range of keys",
        x="nodes of 8 ranks",
        y="seconds",
        log=True,
        failed="load fails",
    )
    plots.draw_lines(
        {
            name: [(number, outcome.seconds) for number, outcome in enumerate(outcomes, 1)]
            for name, outcomes in results.by_layout.items()
        },
        target / "scale-saves",
        title=f"Saves of {SIZE // TB} TB by {MANY:,} nodes, one after the other",
        x="number of the save",
        y="seconds",
    )
    (target / "scale.json").write_text(json.dumps(_as_json(results, shrink, seed), indent=1) + "\n")
    (target / "scale.md").write_text(_page(results, shrink, seed))


def _seconds(outcome: Outcome) -> float | None:
    return None if outcome.given_up else outcome.seconds


def _as_json(results: Results, shrink: int, seed: int) -> dict[str, Any]:
    def short(outcome: Outcome) -> dict[str, Any]:
        names = ("wanted", "served", "given_up", "left", "refused", "seconds", "first_failure", "partitions")
        return {name: getattr(outcome, name) for name in names} | {"attempts": dict(outcome.attempts)}

    return {
        "shrink": shrink,
        "seed": seed,
        "by_nodes": {
            name: {nodes: short(one) for nodes, one in outcomes.items()}
            for name, outcomes in results.by_nodes.items()
        },
        "large_parts": short(results.large_parts),
        "saves": {name: [short(one) for one in outcomes] for name, outcomes in results.by_layout.items()},
    }


def _page(results: Results, shrink: int, seed: int) -> str:
    command = f"hatch run scale --shrink {shrink} --seed {seed}"
    simulated = [
        (f"{nodes:,}", name, *_columns(outcome))
        for name, outcomes in results.by_nodes.items()
        for nodes, outcome in outcomes.items()
    ]
    simulated.append((f"{MANY:,}", "now, parts of 64 MiB", *_columns(results.large_parts)))
    saved = [
        (title, number, *_columns(outcome), outcome.partitions)
        for title, outcomes in results.by_layout.items()
        for number, outcome in enumerate(outcomes, 1)
    ]
    head = ("time", "503s for a request", "failed, of those simulated", "first failure")
    return "\n\n".join(
        (
            "# Large jobs, simulated",
            (f"Written by `{command}`. Nothing here was measured at this size: it is arithmetic on measured"
            " costs, and a simulation of S3's request rates. `tools/scale/README.md` says what is assumed."),
            "## Model",
            _table(("what", "1 node", f"{MANY:,} nodes"), _limits()),
            _table(("work", "nodes", "requests", "from or to S3", "time at least", "bound by"), _work()),
            "## Simulation: a load from one range of keys",
            (
                f"{SIZE // TB} TB in parts of 8 MiB; all ranks begin within 5 seconds. Ranks and rates are"
                f" divided by {shrink}, or less where fewer than {_FEWEST_RANKS} ranks would be left."
            ),
            "![time by nodes](scale-nodes.png)",
            _table(("nodes", "retries", *head), simulated),
            "## Simulation: saves one after the other",
            f"{MANY:,} nodes save {SIZE // TB} TB to a bucket that was new before the first save.",
            "![requests served and refused over time](scale-rates.png)",
            "![time by number of the save](scale-saves.png)",
            _table(("names", "save", *head, "ranges of keys"), saved),
        )
    ) + "\n"  # fmt: skip


def _columns(outcome: Outcome) -> tuple[str, str, str, str]:
    failed = f"{outcome.given_up or 'none'} of {outcome.wanted:,}"
    first = "" if outcome.first_failure is None else _time(outcome.first_failure)
    return _time(outcome.seconds), f"{outcome.refused / outcome.wanted:.2f}", failed, first


def _limits() -> Iterable[tuple[str, ...]]:
    one, many = Job(), Job(nodes=MANY)
    yield "ranks, with 4 workers each", f"{one.ranks}", f"{many.ranks:,}"
    for what, count, unit in (
        ("connections at most", connections_per_node(one), ""),
        ("bytes in flight at most", memory_per_node(one) // 2**30, " GiB"),
    ):
        yield what, f"{count:,}{unit}", f"{count * MANY:,}{unit}"
    yield "nodes whose networks fill one prefix", f"{nodes_that_fill_a_prefix(one):.1f}", ""
    rows = manifest_memory(10**8) / 1e9
    yield "a dataset of 10⁸ objects, keys of 40 bytes", f"{rows:.1f} GB, shared on the node", ""
    for in_flight in (1, 16, 64):
        told = f"{_time(listing(10**8, in_flight=in_flight).seconds)}, 100,000 requests"
        pages = "1 page" if in_flight == 1 else f"{in_flight} pages"
        yield f"listing 10⁸ keys, {pages} at a time", told, "times the ranks, if each of them lists"
    yield "metadata of 64 MiB, read by every rank", *(_time(restart(job).seconds) for job in (one, many))


def _work() -> Iterable[tuple[object, ...]]:
    for nodes in (1, MANY):
        job = Job(nodes=nodes)
        for size in (TB, 10 * TB):
            copies = replicas(job, size)
            yield _row(f"load {size // TB} TB, each byte by one rank", nodes, load(job, size))
            if copies > 1:
                each = load(job, size, copies=copies)
                yield _row(f"load {size // TB} TB, by {copies} groups of nodes", nodes, each)
                yield _row("the same, read once and passed on", nodes, load_once(job, size, copies=copies))
            yield _row(f"save {size // TB} TB", nodes, save(job, size))


def _row(work: str, nodes: int, found: Prediction) -> tuple[object, ...]:
    moved = f"{found.nbytes / TB:,.0f} TB"
    return work, f"{nodes:,}", f"{found.requests:,}", moved, _time(found.seconds), found.bound


def _time(seconds: float) -> str:
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.2f} s"
    return f"{seconds / _MINUTE:,.0f} min" if seconds < 120 * _MINUTE else f"{seconds / 3600:,.1f} h"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    main()

"""What the measurements say: a table, bars, a plot, and what bounds the throughput."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rich.table import Table

from s3torch.core.cli._output import count_text
from s3torch.core.errors import ConfigurationError
from s3torch.core.observers.live import size_text
from s3torch.core.ranges import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from s3torch.core.cli.bench._measuring import Cell, Direction, Latency

_WIDTH = 80
_FIRST = 12
_BUSY = 0.85
_SCALES = 1.5
# So many programs want to run for each processor.
_CROWDED = 1.5
# One interpreter runs on one processor at a time, and what is native beside it.
_ONE_CORE = (0.85, 1.3)
_MILLI = 1000


def latency_table(found: Sequence[Latency]) -> Table:
    """Makes the table of small requests."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("one at a time")
    for heading in ("median", "slowest"):
        table.add_column(heading, justify="right")
    for one in found:
        table.add_row(one.operation, f"{one.median * _MILLI:.1f} ms", f"{one.slowest * _MILLI:.1f} ms")
    return table


def throughput_table(direction: Direction, cells: Sequence[Cell]) -> Table:
    """Makes the table of one direction: a row for each size, a column for each number at a time."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{direction}, MiB/s", min_width=_FIRST)
    counts = sorted({cell.at_a_time for cell in cells})
    headings = [f"{count} at a time" for count in counts]
    for heading in headings:
        table.add_column(heading, justify="right")
    table.add_column("")
    room = _WIDTH - _FIRST - sum(len(heading) + 2 for heading in headings) - 2
    most = max(cell.throughput for cell in cells)
    for size in sorted({cell.size for cell in cells}):
        row = {cell.at_a_time: cell.throughput for cell in cells if cell.size == size}
        numbers = [f"{row[count] / MIB:,.1f}" if count in row else "" for count in counts]
        bar = "█" * max(1, round(max(row.values()) / most * room))
        table.add_row(size_text(size), *numbers, bar)
    return table


def bound(direction: Direction, cells: Sequence[Cell]) -> str:
    """Says in a sentence what bounds the best throughput, as far as that can be seen from here."""
    best = max(cells, key=lambda cell: cell.throughput)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gbits = best.throughput * 8 / 1e9
    many = count_text(best.at_a_time, "object")
    begin = (
        f"{direction}: {best.throughput / MIB:,.0f} MiB/s ({gbits:.1f} Gbit/s) with {many} of "
        f"{size_text(best.size)} at a time. "
    )
    throttles = sum(cell.throttles for cell in cells)
    if throttles:
        return f"{begin}The store bounds it: it asked {throttles:,} times to slow down."
    if best.cores >= _BUSY * processors:
        return f"{begin}This machine bounds it: {best.cores:.1f} of its {processors} processors were busy."
    load = os.getloadavg()[0]
    if load >= _CROWDED * processors:
        return (
            f"{begin}Other programs may bound it: the load of this machine is {load:.0f}, with {processors} "
            "processors. Measure again when it is idle."
        )
    if _ONE_CORE[0] <= best.cores <= _ONE_CORE[1] and processors > 1:
        return (
            f"{begin}This process bounds it: {best.cores:.1f} processors were busy, which is about what one "
            "Python interpreter uses. Several processes, such as DataLoader workers, reach more."
        )
    same = sorted((cell for cell in cells if cell.size == best.size), key=lambda cell: cell.at_a_time)
    if best is same[-1] and len(same) > 1 and best.throughput >= _SCALES * same[-2].throughput:
        return (
            f"{begin}The number at a time bounds it: it still grew with that, so more would reach more "
            "(--at-a-time)."
        )
    return (
        f"{begin}The network or the store bounds it: more at a time brought no more, and "
        f"{best.cores:.1f} of {processors} processors were busy."
    )


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Draws the throughput of both directions.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as exc:
        raise ConfigurationError("--plot needs matplotlib; pip install matplotlib") from exc
    mpl.use("agg")
    from matplotlib import pyplot as plt

    directions = sorted({cell.direction for cell in cells})
    figure, axes = plt.subplots(1, len(directions), figsize=(5 * len(directions), 4), squeeze=False)
    for axis, direction in zip(axes[0], directions, strict=True):
        own = [cell for cell in cells if cell.direction == direction]
        for size in sorted({cell.size for cell in own}):
            line = sorted((cell.at_a_time, cell.throughput / MIB) for cell in own if cell.size == size)
            axis.plot(*zip(*line, strict=True), marker="o", label=size_text(size))
        axis.set(title=direction, xlabel="objects at a time", ylabel="MiB/s", xscale="log", ylim=(0, None))
        axis.set_xticks(sorted({cell.at_a_time for cell in own}))
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axis.legend(title="size")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)

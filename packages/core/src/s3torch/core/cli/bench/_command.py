"""The command ``bench``."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s3torch.core import parse_s3_uri
from s3torch.core.cli._output import console, shown
from s3torch.core.cli.bench._measuring import Bench
from s3torch.core.cli.bench._reporting import bound, draw, latency_table, throughput_table
from s3torch.core.cli.commands import CommandContext, ExitCode, command
from s3torch.core.errors import S3Error
from s3torch.core.observers.live import size_text

if TYPE_CHECKING:
    from s3torch.core.cli.bench._measuring import Cell, Direction, Latency

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_DIRECTIONS: tuple[Direction, ...] = ("PUT", "GET")


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Reads numbers with commas between them, such as ``64K,8M``."""
    found = []
    for text in value.lower().split(","):
        number = text.rstrip("kmg")
        unit = text[len(number) :]
        if not number.isdecimal() or not int(number) or unit not in _UNITS:
            raise click.BadParameter(f"{text!r} is not a list of numbers such as 16 or 8M", ctx, param)
        found.append(int(number) * _UNITS[unit])
    return tuple(sorted(set(found)))


@command
@click.argument("uri")
@click.option("--sizes", default="64K,1M,8M,64M", show_default=True, callback=_numbers, help="Object sizes.")
@click.option(
    "--at-a-time",
    default="1,4,16,64",
    show_default=True,
    callback=_numbers,
    help="Numbers of objects in flight.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 60),
    default=1.0,
    show_default=True,
    help="Seconds for each measurement.",
)
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Also draw a plot (needs matplotlib)."
)
def bench(
    context: CommandContext,
    uri: str,
    sizes: tuple[int, ...],
    at_a_time: tuple[int, ...],
    seconds: float,
    plot: Path | None,
) -> int:
    """Measure latency and throughput, and find the bottleneck.

    It stores objects below PREFIX/.s3torch-bench-…, reads them, and removes them in the end, also after
    Ctrl-C. The default takes about 40 seconds and moves what the network moves in that time, which may cost
    money. Objects of random bytes, one process, whole objects.
    """
    bucket, prefix = parse_s3_uri(uri)
    measured = Bench(context.client, bucket, prefix, seconds=seconds)
    cells: list[Cell] = []
    try:
        latency = measured.latency()
        with context.progress("measuring") as advance:
            for cell in measured.cells(sizes, at_a_time, advance):
                cells.append(cell)
                context.write(None, **asdict(cell), throughput=cell.throughput)
    except BaseException:
        # What failed first is what is wrong.
        with suppress(S3Error):
            _clean_up(context, measured, bucket)
        raise
    left = _clean_up(context, measured, bucket)
    _show(context, latency, cells)
    if plot is not None:
        draw(cells, plot)
        context.note(f"Plot: {plot}")
    removed = "; all objects were removed" if not left else ""
    context.note(f"{size_text(measured.moved)} were moved{removed}.")
    return ExitCode.PARTIAL if left else ExitCode.DONE


def _clean_up(context: CommandContext, measured: Bench, bucket: str) -> list[str]:
    left = measured.clean_up()
    for key in left:
        context.note(f"s3://{bucket}/{shown(key)} could not be deleted")
    return left


def _show(context: CommandContext, latency: list[Latency], cells: list[Cell]) -> None:
    for one in latency if context.as_json else ():
        context.write(None, **asdict(one))
    bounds = {}
    out = console()
    if not context.as_json:
        out.print(latency_table(latency))
    for direction in _DIRECTIONS:
        own = [cell for cell in cells if cell.direction == direction]
        bounds[direction] = bound(direction, own)
        if not context.as_json:
            out.print()
            out.print(throughput_table(direction, own))
            out.print(bounds[direction])
    context.write(None, bounds=bounds)

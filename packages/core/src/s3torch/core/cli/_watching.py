"""``watch``: what other processes do, from the counts that they write."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.live import Live

from s3torch.core.cli._output import console
from s3torch.core.cli.commands import CommandContext, ExitCode, command
from s3torch.core.observers import CounterSnapshot
from s3torch.core.observers._shared_counters import counts_in
from s3torch.core.observers.live import TransferPanel


@command
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--once", is_flag=True, help="Show the counts so far, and exit.")
def watch(context: CommandContext, folder: Path, once: bool) -> int:
    """Show throughput, requests and memory of a training.

    The training writes its counts into FOLDER, with all of its workers, if it was started with the variable
    S3TORCH_COUNTERS=FOLDER. Anyone who can write to the folder can run code here. Ctrl-C ends the
    view.
    """
    out = console()
    if context.as_json or once or not out.is_terminal:
        total = sum(counts_in(folder).values(), CounterSnapshot())
        if not context.as_json:
            out.print(TransferPanel(folder))
        context.write(
            None,
            requests=total.requests,
            retries=total.retries,
            throttles=total.throttles,
            bytes_read=total.bytes_read,
            bytes_written=total.bytes_written,
            errors=dict(total.errors),
        )
        return ExitCode.DONE
    with Live(TransferPanel(folder), console=out, refresh_per_second=4):
        while True:
            time.sleep(3600)

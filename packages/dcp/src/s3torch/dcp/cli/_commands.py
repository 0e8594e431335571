"""``s3torch checkpoint``: the commands that this package adds to the command line."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from s3torch.core.cli.commands import CommandContext, ExitCode, command, count_text, size_text, time_text
from s3torch.core.observers import TransferObserver, observe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta

    from s3torch.core import ObjectInfo, S3Client
    from s3torch.core.observers import TransferInfo, TransferProgress
    from s3torch.dcp._verifying import Depth

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
def checkpoint() -> None:
    """List, verify, compare, convert and delete checkpoints."""


@command
@click.argument("uri")
def ls(context: CommandContext, uri: str) -> None:
    """List the complete checkpoints below a folder, oldest first."""
    from s3torch.dcp import manage

    found = manage.list_checkpoints(uri, client=context.client)
    rows = [(time_text(one.committed), "" if one.step is None else str(one.step), one.uri) for one in found]
    context.write_table(("committed", "step", "checkpoint"), rows, numbers=("step",))
    for one in found:
        context.write(None, **asdict(one), step=one.step)


@command
@click.argument("uri")
@click.option("--match", default="", metavar="TEXT", help="Only names that contain this.")
def inspect(context: CommandContext, uri: str, match: str) -> None:
    """Show names, shapes, types and sizes, from the metadata alone."""
    from s3torch.dcp.cli._contents import stored_values

    found = [one for one in stored_values(uri, context.client) if match in one.name]
    rows = [
        (
            one.name,
            one.dtype or "object",
            "" if one.dtype is None else str(list(one.shape)),
            size_text(one.size),
            str(one.parts),
        )
        for one in found
    ]
    context.write_table(("name", "type", "shape", "size", "parts"), rows, numbers=("size", "parts"))
    for one in found:
        context.write(None, **{name: value for name, value in asdict(one).items() if name != "identity"})
    size = sum(one.size for one in found)
    context.write(f"{count_text(len(found), 'value')}, {size_text(size)}", values=len(found), total_size=size)


@command
@click.argument("uri")
@click.option(
    "--depth",
    type=click.Choice(["sizes", "checksums", "bytes"]),
    default="checksums",
    show_default=True,
    help="Compare sizes, the checksums that the store keeps, or all bytes.",
)
def verify(context: CommandContext, uri: str, depth: Depth) -> int:
    """Compare the files of a checkpoint with its metadata.

    Exit code 1 if something is wrong.
    """
    from s3torch.dcp import manage

    report = manage.verify_checkpoint(uri, depth=depth, client=context.client)
    for problem in report.problems:
        context.write(problem)
    if report.unchecked:
        context.note(
            f"Without a checksum, compared by size alone: {count_text(len(report.unchecked), 'file')}"
        )
    state = "is whole" if report.is_whole else f"is damaged: {count_text(len(report.problems), 'problem')}"
    files = f"{count_text(report.files, 'file')}, {size_text(report.size)}"
    context.write(f"{uri} {state} ({files})", **asdict(report), whole=report.is_whole)
    return ExitCode.DONE if report.is_whole else ExitCode.FAILED


@command
@click.argument("old")
@click.argument("new")
def diff(context: CommandContext, old: str, new: str) -> int:
    """Show which tensors differ between two checkpoints.

    Tensors with equal checksums in the metadata are not read. What has other ones, none, or is stored in
    other parts, is read from both and compared byte by byte. Exit code 1 if something differs.
    """
    from s3torch.dcp.cli._contents import differences

    count = 0
    for one in differences(old, new, context.client):
        count += 1
        context.write(f"{one.kind:8} {one.name}  {one.text}", **asdict(one))
    context.note(f"{count_text(count, 'difference')}.")
    return ExitCode.FAILED if count else ExitCode.DONE


@command
@click.argument("uri")
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would be deleted.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(context: CommandContext, uri: str, dry_run: bool, yes: bool) -> None:
    """Delete a checkpoint: its metadata first, then its files.

    Other objects in the folder, and checkpoints in folders below, stay.
    """
    from s3torch.dcp import manage

    report = manage.verify_checkpoint(uri, client=context.client)
    context.note(f"{uri}: {count_text(report.files, 'file')}, {size_text(report.size)}")
    if not dry_run:
        context.confirm("Delete this checkpoint?", yes=yes)
        manage.delete_checkpoint(uri, client=context.client)
    context.write("Deleted." if not dry_run else None, uri=uri, deleted=not dry_run)


@command
@click.argument("uri")
@click.option("--keep-last", type=click.IntRange(1), required=True, help="How many of the newest to keep.")
@click.option(
    "--keep-every", type=click.IntRange(1), help="Also keep those whose step is a multiple of this."
)
@click.option("--protect", multiple=True, metavar="URI", help="Also keep this one; may be repeated.")
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would be deleted.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def prune(
    context: CommandContext,
    uri: str,
    keep_last: int,
    keep_every: int | None,
    protect: tuple[str, ...],
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete all but the newest checkpoints of a run."""
    from s3torch.dcp import manage

    chosen = manage.prune_checkpoints(
        uri, last=keep_last, every=keep_every, protect=protect, dry_run=True, client=context.client
    )
    for one in chosen:
        context.write(f"{time_text(one.committed)}  {one.uri}", **asdict(one))
    if chosen and not dry_run:
        context.confirm(f"Delete {count_text(len(chosen), 'checkpoint')}?", yes=yes)
        for one in chosen:
            manage.delete_checkpoint(one.uri, client=context.client)
    done = "Would delete" if dry_run else "Deleted"
    context.write(
        f"{done} {count_text(len(chosen), 'checkpoint')}.", checkpoints=len(chosen), deleted=not dry_run
    )


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Reads a number of bytes such as ``5G``."""
    if value is None:
        return None
    number, unit = value.rstrip("kKmMgGtT"), value.lstrip("0123456789").lower()
    if not number.isdecimal() or unit not in _UNITS:
        raise click.BadParameter(f"{value!r} is not a size: give bytes, or as in 500M, 5G", ctx, param)
    return int(number) * _UNITS[unit]


@command
@click.argument("source")
@click.argument("target")
@click.option(
    "--to", required=True, type=click.Choice(["dcp", "torch", "safetensors"]), help="The new format."
)
@click.option(
    "--prefix",
    default="",
    metavar="TEXT",
    help="Only names that begin with this, such as model. (which is cut off).",
)
@click.option(
    "--max-shard-size", callback=_size, metavar="SIZE", help="Maximum size of a safetensors file, such as 5G."
)
@click.option("--overwrite", is_flag=True, help="Replace what exists at TARGET.")
def convert(
    context: CommandContext,
    source: str,
    target: str,
    to: str,
    prefix: str,
    max_shard_size: int | None,
    overwrite: bool,
) -> None:
    """Convert the checkpoint SOURCE to another format.

    Either may be a folder of torch.distributed.checkpoint (dcp), a file of torch.save (torch), or a
    safetensors file or a folder of them, on S3 or on a disk. Tensors go through memory in parts of 32 MiB.
    """
    from s3torch.dcp.converting import convert_checkpoint

    if os.path.exists(target) and not overwrite:  # noqa: PTH110
        raise click.UsageError(f"{target} exists; --overwrite replaces it")
    with context.progress("converting") as advance, observe(_Moved(advance)):
        try:
            convert_checkpoint(
                source,
                target,
                to=to,  # type: ignore[arg-type] # click has checked it.
                prefix=prefix,
                max_shard_size=max_shard_size,
                overwrite=overwrite,
                client=context.client,
            )
        except RuntimeError as exc:
            # As torch's writers say that there is a checkpoint already.
            raise click.ClickException(str(exc)) from exc
    context.write(f"{source} -> {target}", source=source, target=target, kind=to)


class _Moved(TransferObserver):
    """Moves a progress bar by the bytes that come from S3 and go there."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def progressed(self, transfer: TransferInfo, progress: TransferProgress) -> None:
        del transfer
        self._advance(progress.nbytes)


for _one in (ls, inspect, verify, diff, rm, prune, convert):
    checkpoint.add_command(_one)


def find_leftovers(client: S3Client, uri: str, older_than: timedelta) -> Iterator[ObjectInfo]:
    """Yields the files of saves below a folder that were not completed, for ``s3torch gc``."""
    from s3torch.dcp.cli._leftovers import leftovers_below

    return leftovers_below(client, uri, older_than)

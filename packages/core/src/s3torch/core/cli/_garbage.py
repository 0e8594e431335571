"""``gc``: uploads that nobody completes, and what plugins know to be left over."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from s3torch.core import parse_s3_uri
from s3torch.core.cli._objects import folder_of
from s3torch.core.cli._output import count_text, shown, time_text
from s3torch.core.cli.commands import CommandContext, ExitCode, command
from s3torch.core.observers.live import size_text
from s3torch.core.plugins._manager import leftover_finders

if TYPE_CHECKING:
    from s3torch.core import ObjectInfo, S3Client, UploadInfo

_AGE = re.compile(r"(\d+)([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _age(ctx: click.Context, param: click.Parameter, value: str) -> timedelta:
    """Reads a time span such as ``7d``."""
    match = _AGE.fullmatch(value)
    if match is None:
        text = f"{value!r} is no age: give minutes, hours, days or weeks, as in 30m, 12h, 7d, 2w"
        raise click.BadParameter(text, ctx, param)
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


@command
@click.argument("uri")
@click.option(
    "--older-than",
    callback=_age,
    metavar="AGE",
    default="7d",
    show_default=True,
    help="Only what is older: 30m, 12h, 7d, 2w. Must be longer than your longest save.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def gc(context: CommandContext, uri: str, older_than: timedelta, dry_run: bool, yes: bool) -> int:
    """Remove what interrupted uploads and saves left behind.

    These are multipart uploads that nobody completed, whose parts cost money although no listing shows them,
    and files that plugins know to belong to no checkpoint.
    """
    bucket, key = parse_s3_uri(uri)
    prefix = folder_of(key)
    uploads = _stale_uploads(context.client, bucket, prefix, older_than)
    files = {
        info.key: info
        for find in leftover_finders()
        for info in find(context.client, f"s3://{bucket}/{prefix}".rstrip("/"), older_than)
    }
    for upload in uploads:
        begun = time_text(upload.initiated)
        context.write(f"upload  {begun}  {shown(upload.key)}", upload=upload.key, initiated=upload.initiated)
    for info in files.values():
        context.write(
            f"file    {time_text(info.last_modified)}  {shown(info.key)}", file=info.key, size=info.size
        )
    size = sum(info.size for info in files.values())
    found = f"{count_text(len(uploads), 'upload')} and {count_text(len(files), 'file')} of {size_text(size)}"
    if dry_run or not (uploads or files):
        context.write(f"Found {found}.", uploads=len(uploads), files=len(files), removed=False)
        return ExitCode.DONE
    context.confirm(f"Remove {found}?", yes=yes)
    return _remove(context, bucket, prefix, older_than, files, uploads=len(uploads))


def _remove(
    context: CommandContext,
    bucket: str,
    prefix: str,
    older_than: timedelta,
    files: dict[str, ObjectInfo],
    *,
    uploads: int,
) -> int:
    # None that is younger than what was shown, but one whose parts came meanwhile is still nobody's.
    aborted = context.client.abort_stale_uploads(bucket, prefix, older_than=older_than) if uploads else []
    failures = context.client.delete_objects(bucket, files) if files else []
    for failure in failures:
        context.note(f"{shown(failure.key)} was not removed: {failure.message} [{failure.code}]")
    removed = len(files) - len(failures)
    context.write(
        f"Removed {count_text(len(aborted), 'upload')} and {count_text(removed, 'file')}.",
        uploads=len(aborted),
        files=removed,
        removed=True,
    )
    return ExitCode.PARTIAL if failures else ExitCode.DONE


def _stale_uploads(client: S3Client, bucket: str, prefix: str, older_than: timedelta) -> list[UploadInfo]:
    limit = (datetime.now(UTC) - older_than).timestamp()
    return [one for one in client.list_multipart_uploads(bucket, prefix) if one.initiated <= limit]

"""``ls`` and ``rm``: what is there, and its deletion by exact keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from s3torch.core import parse_s3_uri
from s3torch.core.cli._output import count_text, shown, time_text
from s3torch.core.cli.commands import CommandContext, ExitCode, command
from s3torch.core.errors import AccessDeniedError, NotFoundError
from s3torch.core.observers.live import size_text
from s3torch.core.transfer import run_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from s3torch.core import ObjectInfo, S3Client, S3Uri

_HEADS = 16
_SHOWN = 10


@command
@click.argument("uri")
@click.option("-r", "--recursive", is_flag=True, help="List everything below, not only the next level.")
@click.option("--glob", "as_glob", is_flag=True, help="The key is a pattern: ** * ? [a-z] {a,b}.")
@click.option("--bytes", "exact", is_flag=True, help="Show sizes in bytes.")
@click.option("--total", is_flag=True, help="End with the number of objects and their total size.")
def ls(context: CommandContext, uri: str, recursive: bool, as_glob: bool, exact: bool, total: bool) -> int:
    """List the objects whose keys begin with a prefix.

    Folders end in a slash. Times are in this machine's time zone. Unprintable characters of keys are escaped;
    --json has keys as they are.
    """
    bucket, key = parse_s3_uri(uri)
    count = size = folders = 0
    for item in _entries(context.client, bucket, key, recursive=recursive, as_glob=as_glob):
        if isinstance(item, str):
            folders += 1
            context.write(f"{'':19}  {'folder':>10}  {shown(item)}", folder=item)
            continue
        count, size = count + 1, size + item.size
        width = str(item.size) if exact else size_text(item.size)
        context.write(f"{time_text(item.last_modified)}  {width:>10}  {shown(item.key)}", **_facts(item))
    if total:
        whole = f"{size:,} bytes" if exact else size_text(size)
        context.write(f"{count_text(count, 'object')}, {whole}", objects=count, total_size=size)
    if key and not count and not folders:
        context.note(f"Nothing begins with {uri}")
        return ExitCode.NOT_FOUND
    return ExitCode.DONE


def _entries(
    client: S3Client, bucket: str, key: str, *, recursive: bool, as_glob: bool
) -> Iterator[ObjectInfo | str]:
    """Yields objects and, of a listing that is not recursive, folders, in the order of keys."""
    if as_glob:
        yield from client.glob(bucket, key)
    elif recursive:
        yield from client.walk(bucket, key)
    else:
        for page in client.list_objects(bucket, key, "/"):
            entries: dict[str, ObjectInfo | str] = {name: name for name in page.common_prefixes}
            entries |= {info.key: info for info in page.object_info}
            yield from (entries[name] for name in sorted(entries))


def _facts(info: ObjectInfo) -> dict[str, object]:
    return {
        "key": info.key,
        "size": info.size,
        "etag": info.etag,
        "last_modified": info.last_modified,
        "storage_class": info.storage_class,
    }


@dataclass(frozen=True, slots=True)
class _Doomed:
    """What is to be deleted: a key, or one version of it."""

    key: str
    size: int | None
    version_id: str | None = None


@command
@click.argument("uris", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Delete everything in the folders that the URIs name.")
@click.option("--versions", is_flag=True, help="Delete all versions and delete markers, permanently.")
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would be deleted.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(
    context: CommandContext,
    uris: tuple[str, ...],
    recursive: bool,
    versions: bool,
    dry_run: bool,
    yes: bool,
) -> int:
    """Delete objects by their exact keys.

    s3://bucket/a is the object a, and nothing else. With --recursive it is everything in the folder a/, and
    neither the object a nor the folder ab/. What was found is counted and shown before it is deleted, and
    only that is deleted.
    """
    places = [parse_s3_uri(uri) for uri in uris]
    found = [
        (bucket, _find(context.client, bucket, places, recursive=recursive, versions=versions))
        for bucket in dict.fromkeys(place.bucket for place in places)
    ]
    failed = 0
    _show(context, found)
    count = sum(len(doomed) for _, doomed in found)
    if dry_run or not count:
        context.write(None, found=count, deleted=0)
        return ExitCode.DONE
    context.confirm(f"Delete {count_text(count, 'version' if versions else 'object')}?", yes=yes)
    for bucket, doomed in found:
        targets = [one.key if one.version_id is None else (one.key, one.version_id) for one in doomed]
        for failure in context.client.delete_objects(bucket, targets):
            failed += 1
            text = f"s3://{bucket}/{shown(failure.key)} was not deleted: {failure.message} [{failure.code}]"
            context.note(text)
            context.write(None, not_deleted=failure.key, bucket=bucket, code=failure.code)
    context.write(f"Deleted {count_text(count - failed, 'object')}.", found=count, deleted=count - failed)
    return ExitCode.PARTIAL if failed else ExitCode.DONE


def _find(
    client: S3Client, bucket: str, places: Sequence[S3Uri], *, recursive: bool, versions: bool
) -> list[_Doomed]:
    """Lists what the URIs of one bucket name.

    Raises:
        NotFoundError: One of them names nothing.
    """
    keys = [place.key for place in places if place.bucket == bucket]
    if versions:
        return [one for key in keys for one in _versions(client, bucket, key, recursive=recursive)]
    if recursive:
        return [_Doomed(one.key, one.size) for key in keys for one in client.walk(bucket, folder_of(key))]
    if "" in keys:
        raise click.UsageError(f"s3://{bucket} is a bucket; --recursive deletes everything in it")

    def ask(key: str) -> _Doomed:
        try:
            return _Doomed(key, client.head_object(bucket, key).size)
        except AccessDeniedError:
            # Who may delete may not be allowed to read.
            return _Doomed(key, None)

    return list(run_ahead(ask, keys, workers=_HEADS, name="s3torch-rm"))


def _versions(client: S3Client, bucket: str, key: str, *, recursive: bool) -> Iterator[_Doomed]:
    prefix = folder_of(key) if recursive else key
    found = False
    for page in client.list_object_versions(bucket, prefix):
        for one in page.versions:
            if recursive or one.key == key:
                found = True
                yield _Doomed(one.key, one.size, one.version_id)
    if not found and not recursive:
        raise NotFoundError("this key has no versions", bucket=bucket, key=key)


def folder_of(key: str) -> str:
    """Returns the prefix of all that is below a folder; that of a bucket is empty."""
    return key if not key or key.endswith("/") else f"{key}/"


def _show(context: CommandContext, found: Sequence[tuple[str, Sequence[_Doomed]]]) -> None:
    for bucket, doomed in found:
        for one in doomed[:_SHOWN]:
            version = "" if one.version_id is None else f"  version {one.version_id}"
            context.note(f"s3://{bucket}/{shown(one.key)}{version}")
        size = sum(one.size or 0 for one in doomed)
        more = f"… and {len(doomed) - _SHOWN:,} more, " if len(doomed) > _SHOWN else ""
        context.note(f"{more}{count_text(len(doomed), 'object')} in s3://{bucket}, {size_text(size)}")
        for one in doomed if context.as_json else ():
            context.write(None, bucket=bucket, key=one.key, size=one.size, version_id=one.version_id)

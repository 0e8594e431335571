"""``s3torch manifest``: the commands that this package adds to the command line."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import click

from s3torch.core import parse_s3_uri
from s3torch.core.cli.commands import CommandContext, ExitCode, command, count_text, size_text

if TYPE_CHECKING:
    from s3torch.core import S3BucketKeyData
    from s3torch.datasets.sources._manifest import Manifest, ManifestChanges
    from s3torch.datasets.sources._sources import ObjectSource

_SHOWN = 20


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
def manifest() -> None:
    """Pin which objects a run reads, and in which version."""


def _source(uris: tuple[str, ...], *, as_glob: bool) -> ObjectSource:
    from s3torch.datasets.sources._sources import GlobSource, PrefixSource

    if not as_glob:
        return PrefixSource.from_uri(uris)
    if len(uris) > 1:
        raise click.UsageError("--glob takes one URI; use {a,b} in it for alternatives")
    return GlobSource(parse_s3_uri(uris[0]))


def _tell(context: CommandContext, made: Manifest, path: str) -> None:
    size = sum(item.object_info.size for item in made if item.object_info is not None)
    context.write(
        f"{path}: {count_text(len(made), 'object')}, {size_text(size)}, identity {made.identity[:16]}",
        manifest=path,
        objects=len(made),
        total_size=size,
        identity=made.identity,
    )


@command
@click.argument("path")
@click.argument("uris", nargs=-1, required=True)
@click.option("--glob", "as_glob", is_flag=True, help="The URI is a pattern: ** * ? [a-z] {a,b}.")
@click.option(
    "--versions", is_flag=True, help="Keep the version of each object, where the bucket keeps some."
)
def build(context: CommandContext, path: str, uris: tuple[str, ...], as_glob: bool, versions: bool) -> None:
    """Store a listing of URIS as the manifest PATH.

    PATH is local or on S3 and ends in .jsonl, .jsonl.gz or .parquet.
    """
    from s3torch.datasets.sources._manifest import Manifest, format_of

    format_of(path)
    made = Manifest.build(_source(uris, as_glob=as_glob), context.client, versions=versions)
    made.save(path, context.client)
    _tell(context, made, path)


@command
@click.argument("path")
@click.argument("uris", nargs=-1)
@click.option("--glob", "as_glob", is_flag=True, help="The URI is a pattern: ** * ? [a-z] {a,b}.")
def check(context: CommandContext, path: str, uris: tuple[str, ...], as_glob: bool) -> int:
    """Compare a manifest with what is in S3 now.

    Without URIS each object of the manifest is asked for by a HEAD; with the URIS that it was built of, a
    listing also finds what is new. Exit code 1 if anything differs.
    """
    from s3torch.datasets.sources._manifest import Manifest

    known = Manifest.load(path, context.client)
    if uris:
        _, changes = known.refresh(_source(uris, as_glob=as_glob), context.client)
    else:
        changes = _asked(known, context)
    _show(context, changes)
    return ExitCode.FAILED if changes else ExitCode.DONE


@command
@click.argument("path")
@click.argument("uris", nargs=-1, required=True)
@click.option("--glob", "as_glob", is_flag=True, help="The URI is a pattern: ** * ? [a-z] {a,b}.")
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would change.")
def refresh(context: CommandContext, path: str, uris: tuple[str, ...], as_glob: bool, dry_run: bool) -> None:
    """List URIS again, and update the manifest.

    What stays keeps its place; new objects come at the end.
    """
    from s3torch.datasets.sources._manifest import Manifest

    known = Manifest.load(path, context.client)
    fresh, changes = known.refresh(_source(uris, as_glob=as_glob), context.client)
    _show(context, changes)
    if changes and not dry_run:
        fresh.save(path, context.client)
        _tell(context, fresh, path)


def _asked(known: Manifest, context: CommandContext) -> ManifestChanges:
    """Asks for each object of a manifest, in the version that it names."""
    from s3torch.core.errors import NotFoundError
    from s3torch.core.transfer import run_ahead
    from s3torch.datasets.sources._manifest import ManifestChanges
    from s3torch.datasets.sources._sources import uri_of, version_of

    client = context.client

    def ask(item: S3BucketKeyData) -> tuple[str, str] | None:
        info = item.object_info
        try:
            head = client.head_object(item.bucket, item.key, version_id=version_of(item))
        except NotFoundError:
            return "dropped", uri_of(item)
        same = info is not None and (head.size, head.etag) == (info.size, info.etag)
        return None if same else ("changed", uri_of(item))

    found = [one for one in run_ahead(ask, known, workers=32, name="s3torch-manifest") if one is not None]
    dropped, changed = (
        tuple(uri for kind, uri in found if kind == wanted) for wanted in ("dropped", "changed")
    )
    return ManifestChanges((), dropped, changed)


def _show(context: CommandContext, changes: ManifestChanges) -> None:
    for kind in ("added", "dropped", "changed"):
        uris = getattr(changes, kind)
        for uri in uris if context.as_json else islice(uris, _SHOWN):
            context.write(f"{kind:8} {uri}", change=kind, uri=uri)
        if len(uris) > _SHOWN and not context.as_json:
            context.write(f"{kind:8} … and {len(uris) - _SHOWN:,} more")
    counts = {kind: len(getattr(changes, kind)) for kind in ("added", "dropped", "changed")}
    context.write(", ".join(f"{count:,} {kind}" for kind, count in counts.items()), **counts)


for _one in (build, check, refresh):
    manifest.add_command(_one)

"""``cp``: what is copied where, many objects at a time."""

from __future__ import annotations

import os
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s3torch.core import PutOptions, S3Uri, parse_s3_uri
from s3torch.core._process import submit
from s3torch.core.cli._objects import folder_of
from s3torch.core.cli._output import count_text, error_facts, error_text, shown
from s3torch.core.cli._process import cancel_all, stopping
from s3torch.core.cli._transfers import STANDARD_STREAM, Copier, Job, Outcome
from s3torch.core.cli.commands import CommandContext, ExitCode, command, exit_code_of
from s3torch.core.errors import S3Error
from s3torch.core.observers.live import size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from s3torch.core import S3Client


_GRACE_SECONDS = 2.0


@command
@click.argument("source")
@click.argument("target")
@click.option("-r", "--recursive", is_flag=True, help="Copy everything in a folder into the folder TARGET.")
@click.option(
    "--resume",
    is_flag=True,
    help="Skip what is already there with the same bytes; continue interrupted transfers.",
)
@click.option("--jobs", type=click.IntRange(1, 256), default=16, show_default=True, help="Objects in flight.")
@click.option("--storage-class", metavar="NAME", help="Storage class of what is stored, such as STANDARD_IA.")
@click.option("--content-type", metavar="TYPE", help="Media type of what is stored.")
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would be copied.")
def cp(
    context: CommandContext,
    source: str,
    target: str,
    recursive: bool,
    resume: bool,
    jobs: int,
    storage_class: str | None,
    content_type: str | None,
    dry_run: bool,
) -> int:
    """Copy objects from S3, to S3, or within S3.

    SOURCE and TARGET are s3:// URIs or local paths, and - is stdin or stdout. One object keeps its name
    where TARGET ends in a slash or is a local folder. Objects and files appear whole or not at all; bytes
    from S3 are compared with the checksum that the store keeps, and uploads carry one. An interrupted command
    removes what it began; with --resume, partial downloads and the parts of large uploads stay, and the same
    command continues with them.
    """
    options = PutOptions(storage_class=storage_class, content_type=content_type)
    plan = _plan(context.client, source, target, recursive=recursive)
    if dry_run:
        for job in plan:
            context.write(f"{shown(str(job.source))} -> {shown(job.place)}", **_facts(job))
        return ExitCode.DONE
    copier = Copier(context.client, options, resume=resume)
    return _copy_all(context, copier, plan, workers=jobs)


def _copy_all(context: CommandContext, copier: Copier, plan: Iterable[Job], *, workers: int) -> int:
    done = _Totals()
    errors: list[Exception] = []
    with context.progress("copying") as advance:
        copier.advance = advance
        for job, outcome in _in_any_order(copier.copy, plan, workers=workers):
            if isinstance(outcome, Outcome):
                done.add(outcome)
                context.write(None, **_facts(job), nbytes=outcome.nbytes, skipped=outcome.skipped)
                continue
            errors.append(outcome)
            told, source = error_text(outcome), str(job.source)
            context.note(f"Error: {shown(told if source in told else f'{source}: {told}')}")
            context.write(None, **_facts(job), **error_facts(outcome))
    if done.copied or done.skipped or not errors:
        there = "that is there" if done.skipped == 1 else "that are there"
        left_out = f"; left out {count_text(done.skipped, 'object')} {there}" if done.skipped else ""
        context.note(f"Copied {count_text(done.copied, 'object')}, {size_text(done.nbytes)}{left_out}.")
    if not errors:
        return ExitCode.DONE
    context.note(f"{count_text(len(errors), 'object')} could not be copied.")
    if done.copied or done.skipped:
        return ExitCode.PARTIAL
    return exit_code_of(errors[0])


@dataclass(slots=True)
class _Totals:
    """What was copied so far."""

    copied: int = 0
    skipped: int = 0
    nbytes: int = 0

    def add(self, outcome: Outcome) -> None:
        """Counts an object."""
        self.skipped += outcome.skipped
        self.copied += not outcome.skipped
        self.nbytes += outcome.nbytes


def _in_any_order(
    copy: Callable[[Job], Outcome], plan: Iterable[Job], *, workers: int
) -> Iterator[tuple[Job, Outcome | Exception]]:
    """Copies so many objects at a time, and yields each when it is done, so that a large one delays none."""
    jobs = iter(plan)
    running: dict[Future[Outcome], Job] = {}
    pool = ThreadPoolExecutor(workers, "s3torch-cp")
    try:
        while True:
            for job in islice(jobs, workers - len(running)):
                running[submit(pool, copy, job)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    outcome: Outcome | Exception = future.result()
                except (S3Error, OSError, ValueError) as error:
                    outcome = error
                yield job, outcome
    except BaseException:
        stopping.set()
        # An upload whose beginning is cancelled before the store has told its id could not be aborted.
        wait(running, timeout=_GRACE_SECONDS)
        cancel_all()
        raise
    finally:
        # Those under way see that they are to stop, and remove what they had begun.
        pool.shutdown(cancel_futures=True)


def _facts(job: Job) -> dict[str, object]:
    return {"source": str(job.source), "target": job.place}


def _plan(client: S3Client, source: str, target: str, *, recursive: bool) -> Iterator[Job]:
    """Says what is copied where; checks the arguments before the first object is looked for."""
    begin, end = _place(source), _place(target)
    if not isinstance(begin, S3Uri) and not isinstance(end, S3Uri):
        raise click.UsageError("neither SOURCE nor TARGET is an s3:// URI; use the system's own cp")
    if recursive:
        if STANDARD_STREAM in {begin, end}:
            raise click.UsageError("- (stdin or stdout) is one object and does not go with --recursive")
        return _plan_tree(client, begin, end)
    if isinstance(begin, S3Uri) and not begin.key.rpartition("/")[2]:
        raise click.UsageError(f"{source} is a folder; --recursive copies everything in it")
    if isinstance(begin, Path) and begin.is_dir():
        raise click.UsageError(f"{source} is a folder; --recursive copies everything in it")
    name = begin.key.rpartition("/")[2] if isinstance(begin, S3Uri) else begin.name
    return iter([_single(begin, end, name, is_folder=target.endswith("/"))])


def _place(text: str) -> S3Uri | Path:
    if text.startswith("s3:"):
        return parse_s3_uri(text)
    return Path(text)


def _single(begin: S3Uri | Path, end: S3Uri | Path, name: str, *, is_folder: bool) -> Job:
    """Says where one object goes, which keeps its name in a folder."""
    if isinstance(end, Path):
        keeps_name = end != STANDARD_STREAM and (is_folder or end.is_dir())
        return Job(begin, end, below=name if keeps_name else None)
    if end.key and not end.key.endswith("/"):
        return Job(begin, end)
    if begin == STANDARD_STREAM:
        raise click.UsageError("TARGET needs a key when SOURCE is stdin")
    return Job(begin, S3Uri(end.bucket, end.key + name))


def _plan_tree(client: S3Client, begin: S3Uri | Path, end: S3Uri | Path) -> Iterator[Job]:
    found = _found_in_s3(client, begin) if isinstance(begin, S3Uri) else _found_on_disk(begin)
    empty = True
    for name, job in found:
        empty = False
        if isinstance(end, S3Uri):
            yield Job(job.source, S3Uri(end.bucket, folder_of(end.key) + name), job.info)
        else:
            yield Job(job.source, end, job.info, below=name)
    if empty:
        raise FileNotFoundError(f"there is nothing in {begin}")


def _found_in_s3(client: S3Client, begin: S3Uri) -> Iterator[tuple[str, Job]]:
    prefix = folder_of(begin.key)
    for info in client.walk(begin.bucket, prefix):
        # What ends in a slash stands for a folder, with nothing in it.
        if not info.key.endswith("/"):
            uri = S3Uri(begin.bucket, info.key)
            yield info.key.removeprefix(prefix), Job(uri, uri, info)


def _found_on_disk(begin: Path) -> Iterator[tuple[str, Job]]:
    if not begin.is_dir():
        raise FileNotFoundError(f"{begin} is not a folder; leave out --recursive to copy one file")

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(begin, onerror=refuse):
        folders.sort()
        for name in sorted(files):
            path = Path(folder, name)
            if path.is_file():
                yield path.relative_to(begin).as_posix(), Job(path, path)

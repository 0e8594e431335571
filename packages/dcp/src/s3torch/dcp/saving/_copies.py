"""A save that lets S3 copy what has not changed, and sends the rest.

Whatever a copy fails of, its items are sent instead: the older checkpoint may vanish at any moment, and a
store may not copy, or not tell the checksum of what it has copied, without which nobody knows what that is.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.storage import WriteResult

from s3torch.core import S3ReaderConstructor, parse_s3_uri
from s3torch.core.errors import S3Error, TransferCancelledError
from s3torch.core.ranges import ByteRange
from s3torch.core.transfer import checksum_type, piece_algorithm
from s3torch.dcp._checksums import NOTE as CHECKSUMS
from s3torch.dcp._filesystem import join_path, read_whole
from s3torch.dcp._metadata import CheckpointError, decode_metadata, note_facts
from s3torch.dcp._tensors import NOTE as LAYOUT
from s3torch.dcp.saving._files import write_files
from s3torch.dcp.saving._plan import SUFFIX, FilePlan, new_save_id, plan_files
from s3torch.dcp.saving._reuse import CopyPlan, OldCheckpoint, Run, plan_copies, unchanged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.distributed.checkpoint.planner import WriteItem

    from s3torch.dcp._filesystem import S3FileSystem
    from s3torch.dcp._metadata import FileFacts
    from s3torch.dcp.saving._files import RankFiles

LATEST = "latest"
_FEWEST_WHOLE = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What a save with ``reuse`` has sent, and what S3 has copied for it.

    Attributes:
        sent_bytes: The bytes of the items that were sent.
        copied_bytes: The bytes of those that S3 has copied from the older checkpoint.
        why_sent: Why items were sent that have perhaps not changed; empty if only what has changed was sent.
    """

    sent_bytes: int = 0
    copied_bytes: int = 0
    why_sent: tuple[str, ...] = ()

    def __add__(self, other: SaveReport) -> SaveReport:
        reasons = dict.fromkeys((*self.why_sent, *other.why_sent))
        return SaveReport(
            self.sent_bytes + other.sent_bytes, self.copied_bytes + other.copied_bytes, tuple(reasons)
        )


@dataclass(frozen=True)
class ReportedResult(WriteResult):
    """The result of the first item of a file, which tells the rank that commits of the whole file, too."""

    report: SaveReport = SaveReport()


def find_old(fs: S3FileSystem, reuse: str, path: str, name: str) -> OldCheckpoint:
    """Reads what an older checkpoint says of its items; if it cannot, the result says why.

    Args:
        fs: Reads it.
        reuse: Its URI, or ``"latest"`` for the one that was committed last beside the new one.
        path: The URI of the new one.
        name: The name of the metadata.
    """
    uri = reuse
    try:
        if reuse == LATEST:
            found = _latest(fs, path)
            if found is None:
                return OldCheckpoint(path, why_not=f"there is no older checkpoint beside {path}")
            uri = found
        place = join_path(uri, name)
        body = read_whole(fs, place, S3ReaderConstructor.sequential())
        return OldCheckpoint.of(uri, decode_metadata(body, uri=place))
    except S3Error as exc:
        return OldCheckpoint(uri, why_not=f"{uri} cannot be read: {exc}")


def _latest(fs: S3FileSystem, path: str) -> str | None:
    from s3torch.dcp.manage import latest_checkpoint

    folder = path.rstrip("/").rpartition("/")[0]
    if not parse_s3_uri(f"{folder}/").key.strip("/"):
        # It could take long to look through a whole bucket.
        raise CheckpointError(f"reuse='latest' looks in the folder of {path}, which is a whole bucket")
    found = latest_checkpoint(folder, client=fs.client)
    return None if found is None else found.uri


class RankCopies:
    """Writes the files of one rank, of which S3 copies some.

    Args:
        files: Writes what is sent.
        old: The older checkpoint.
        threads: How many files are written at a time.
        joins: Whether items of several files may be put together in one.
    """

    def __init__(self, files: RankFiles, old: OldCheckpoint, *, threads: int, joins: bool) -> None:
        self._files = files
        self._old = old
        self._threads = threads
        self._joins = joins
        self._save_id = new_save_id()
        self._planned: dict[str, CopyPlan] = {}
        self._why_not = old.why_not or self._why_no_checksums()

    def write(
        self, items: Sequence[WriteItem], prefix: str, plan: Callable[[list[WriteItem]], list[FilePlan]]
    ) -> list[WriteResult]:
        """Writes items; ``plan`` shares those that are sent out between files."""
        copies = self._compare(items) if self._why_not is None else CopyPlan()
        kept = {item.index for item in self._items_of(copies)}
        files = plan([item for item in items if item.index not in kept])
        for run in copies.whole:
            files.append(self._file(prefix, len(files), CopyPlan(whole=(run,))))
        if copies.runs or (self._joins and copies.small):
            files.append(self._file(prefix, len(files), replace(copies, whole=())))
        return write_files(
            [file.named_for(self._save_id) for file in files], self._write, threads=self._threads
        )

    def _items_of(self, copies: CopyPlan) -> list[WriteItem]:
        runs = [item for run in (*copies.whole, *copies.runs) for item, _ in run.items]
        return [*runs, *copies.small] if self._joins else runs

    def _file(self, prefix: str, number: int, copies: CopyPlan) -> FilePlan:
        file = FilePlan(f"{prefix}{number}{SUFFIX}", tuple(self._items_of(copies)))
        if copies.whole or copies.runs:
            self._planned[file.named_for(self._save_id).name] = copies
        return file

    def _compare(self, items: Sequence[WriteItem]) -> CopyPlan:
        known = [item for item in items if item.index in self._old.entries]

        def compare(file: FilePlan, check: Callable[[], None]) -> list[tuple[WriteItem, Any]]:
            files = self._files
            return unchanged(file.items, self._old, files.planner, copy_ahead=files.copy_ahead, check=check)

        same = write_files(plan_files(known, "", files=self._threads), compare, threads=self._threads)
        most = max(_FEWEST_WHOLE, 2 * self._threads) if self._joins else len(known)
        return plan_copies(same, self._old, most_files=most, joins=self._joins)

    def _why_no_checksums(self) -> str | None:
        algorithm = self._files.fs.client.s3client_config.upload_checksum
        if self._files.transforms.extensions:
            return "what goes through an extension cannot be compared"
        if algorithm is None or checksum_type(algorithm) == "COMPOSITE":
            return "without a CRC for uploads nobody knows what S3 has copied"
        return None

    def _write(self, file: FilePlan, check: Callable[[], None]) -> list[WriteResult]:
        copies = self._planned.get(file.name)
        if copies is not None and self._why_not is None:
            try:
                results, report = self._copy(file, copies, check)
                return _reported(results, report)
            except TransferCancelledError:
                raise
            except S3Error as exc:
                self._why_not = f"S3 could not copy from {self._old.uri}: {exc}"
                _log.warning("%s; what has not changed is sent again", self._why_not)
                # What the failed copy has left, or may yet leave, has another name.
                with suppress(S3Error):
                    self._files.fs.rm_file(join_path(self._files.path, file.name))
                file = replace(file, name=file.name.replace(self._save_id, new_save_id()))
        results = self._files.write(file, check)
        why = () if self._why_not is None else (self._why_not,)
        return _reported(results, SaveReport(sum(one.size_in_bytes for one in results), 0, why))

    def _copy(
        self, file: FilePlan, copies: CopyPlan, check: Callable[[], None]
    ) -> tuple[list[WriteResult], SaveReport]:
        check()
        if copies.whole:
            (run,) = copies.whole
            self._copy_whole(file.name, run, self._old.facts[run.file])
            results = _moved(run, file.name, 0)
            note_facts(results[0].storage_data, self._old.facts[run.file])
            return results, SaveReport(0, run.stop)
        small = FilePlan(file.name, copies.small)
        size = sum(run.stop - run.start for run in copies.runs)
        results = self._files.write(small, check, before=partial(self._join, copies.runs, file.name))
        head = self._head(file.name)
        noted = getattr(results[0].storage_data, "file_facts", {})
        self._confirm(file.name, head, noted["size"], noted["checksum"])
        return results, SaveReport(sum(one.size_in_bytes for one in results) - size, size)

    def _join(self, runs: Sequence[Run], name: str, stream: Any) -> list[WriteResult]:
        """Lets S3 copy ranges to the beginning of a file."""
        algorithm = piece_algorithm(self._files.fs.client.s3client_config.upload_checksum)
        results = []
        for run in runs:
            crc = run.crc(algorithm)
            if crc is None:
                raise CheckpointError(f"{run.file} has checksums of another kind than {algorithm}")
            source = parse_s3_uri(join_path(self._old.uri, run.file))
            results += _moved(run, name, stream.tell() - run.start)
            stream.copy_from(source.bucket, source.key, ByteRange(run.start, run.stop), crc=crc)
        return results

    def _copy_whole(self, name: str, run: Run, facts: FileFacts) -> None:
        if facts.checksum is None or "-" in facts.checksum[1]:
            raise CheckpointError(f"{run.file} has no checksum to compare its copy with")
        source = parse_s3_uri(join_path(self._old.uri, run.file))
        target = parse_s3_uri(join_path(self._files.path, name))
        self._files.fs.client.copy_object(
            *(source.bucket, source.key, target.bucket, target.key), options=self._files.options
        )
        self._confirm(name, self._head(name), facts.size, facts.checksum)

    def _head(self, name: str) -> Any:
        target = parse_s3_uri(join_path(self._files.path, name))
        return self._files.fs.client.head_object(target.bucket, target.key)

    @staticmethod
    def _confirm(name: str, head: Any, size: int, checksum: tuple[str, str] | None) -> None:
        algorithm, value = checksum or ("", "")
        if head.size != size or head.checksums.get(algorithm) != value:
            raise CheckpointError(
                f"{name} should have {size} bytes with the {algorithm} {value}, but the store tells "
                f"{head.size} bytes and {dict(head.checksums) or 'no checksum'}"
            )


def _moved(run: Run, name: str, by: int) -> list[WriteResult]:
    """Returns the results of copied items: their old entries at another place."""
    results = []
    for item, old in run.items:
        entry = _StorageInfo(name, old.offset + by, old.length)
        for note in (LAYOUT, CHECKSUMS):
            if (noted := getattr(old, note, None)) is not None:
                setattr(entry, note, noted)
        results.append(WriteResult(item.index, entry.length, entry))
    return results


def _reported(results: Sequence[WriteResult], report: SaveReport) -> list[WriteResult]:
    first, *rest = results
    return [ReportedResult(first.index, first.size_in_bytes, first.storage_data, report), *rest]


def report_of(results: Sequence[WriteResult]) -> SaveReport:
    """Adds up what the results of files tell."""
    return sum((one.report for one in results if isinstance(one, ReportedResult)), SaveReport())

"""A save that lets S3 copy what has not changed, and sends the rest.

Whatever a copy fails of, its items are sent instead: the older checkpoint may vanish at any moment, and a
store may not copy, or not tell the checksum of what it has copied, without which nobody knows what that is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.storage import WriteResult

from s3torch.core import parse_s3_uri
from s3torch.core.errors import S3Error
from s3torch.core.ranges import ByteRange
from s3torch.core.transfer import piece_algorithm
from s3torch.dcp._filesystem import join_path
from s3torch.dcp._metadata import CHECKSUMS, CheckpointError, ItemChecksums, note_facts
from s3torch.dcp._tensors import NOTE as LAYOUT
from s3torch.dcp.saving._assembly import (
    AssembledStream,
    CopyAttempts,
    Extent,
    SaveReport,
    plan_assembly,
)
from s3torch.dcp.saving._files import tensor_layout, write_files
from s3torch.dcp.saving._plan import SUFFIX, FilePlan, new_save_id, plan_files
from s3torch.dcp.saving._reuse import CopyPlan, OldCheckpoint, Run, plan_copies, unchanged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.distributed.checkpoint.planner import WriteItem

    from s3torch.dcp._filesystem import S3FileSystem
    from s3torch.dcp._metadata import FileFacts
    from s3torch.dcp.hugging_face._safetensors import FileTensor
    from s3torch.dcp.saving._files import RankFiles

LATEST = "latest"
_FEWEST_WHOLE = 8


@dataclass(frozen=True)
class ReportedResult(WriteResult):
    """The result of the first item of a file, which tells the rank that commits of the whole file, too."""

    report: SaveReport = field(default_factory=SaveReport)


def find_old(fs: S3FileSystem, reuse: str, path: str, read: Callable[[str], OldCheckpoint]) -> OldCheckpoint:
    """Finds out what an older checkpoint says of its items; if it cannot, the result says why.

    Args:
        fs: Looks for it.
        reuse: Its URI, or ``"latest"`` for the one that was committed last beside the new one.
        path: The URI of the new one.
        read: Reads the one with a URI.
    """
    uri = reuse
    try:
        if reuse == LATEST:
            found = _latest(fs, path)
            if found is None:
                return OldCheckpoint(path, why_not=f"there is no older checkpoint beside {path}")
            uri = found
        return read(uri)
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
        self._algorithm = piece_algorithm(files.fs.client.s3client_config.upload_checksum)
        why_not = old.why_not
        if why_not is None and files.transforms.extensions:
            why_not = "what goes through an extension cannot be compared"
        self._attempts = CopyAttempts(files.fs, files.path, old.uri, why_not)

    def write(
        self, items: Sequence[WriteItem], prefix: str, plan: Callable[[list[WriteItem]], list[FilePlan]]
    ) -> list[WriteResult]:
        """Writes items; ``plan`` shares those that are sent out between files."""
        files = plan(list(items))
        # A safetensors file is put together of what is the same and what is not.
        loose = [item for file in files if not file.is_safetensors for item in file.items]
        copies = self._compare(loose) if self._attempts.why_not is None else CopyPlan()
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
        same = write_files(plan_files(known, "", files=self._threads), self._same, threads=self._threads)
        most = max(_FEWEST_WHOLE, 2 * self._threads) if self._joins else len(known)
        return plan_copies(same, self._old, most_files=most, joins=self._joins)

    def _same(self, file: FilePlan, check: Callable[[], None]) -> list[tuple[WriteItem, Any]]:
        files = self._files
        return unchanged(file, self._old, files.planner, copy_ahead=files.copy_ahead, check=check)

    def _write(self, file: FilePlan, check: Callable[[], None]) -> list[WriteResult]:
        copies = self._planned.get(file.name)
        if copies is None and not file.is_safetensors:
            return self._send(file, check)
        return self._attempts.write(
            file.name,
            self._save_id,
            lambda: self._assemble(file, check) if copies is None else self._copy(file, copies, check),
            lambda name: self._send(replace(file, name=name), check),
        )

    def _assemble(self, file: FilePlan, check: Callable[[], None]) -> list[WriteResult]:
        """Writes a safetensors file, of which S3 copies what has not changed."""
        same = {item.index: info for item, info in self._same(file, check)}
        header, places = tensor_layout(file)
        pairs = zip(file.items, places, strict=True)
        found = (self._extent(place, same[item.index]) for item, place in pairs if item.index in same)
        copies = plan_assembly(filter(None, found), places[-1].stop if places else len(header))
        if not copies:
            return self._send(file, check)
        results = self._files.write(
            file, check, through=lambda stream: AssembledStream(stream, copies, self._algorithm)
        )
        for result in results:
            if (old := same.get(result.index)) is not None:
                setattr(result.storage_data, CHECKSUMS, getattr(old, CHECKSUMS))
        noted = getattr(results[0].storage_data, "file_facts", {})
        self._attempts.confirm(file.name, noted["size"], noted["checksum"])
        copied = sum(copy.size for copy in copies)
        return _reported(results, SaveReport(sum(one.size_in_bytes for one in results) - copied, copied))

    def _extent(self, place: FileTensor, old: Any) -> Extent | None:
        """Returns where the bytes of a tensor that has not changed are in the older checkpoint."""
        noted = ItemChecksums.of(getattr(old, CHECKSUMS), old.length)
        if noted is None or noted.algorithm != self._algorithm or not old.length:
            return None
        pieces = tuple(
            (place.start + start, place.start + stop, crc)
            for start, stop, crc in noted.pieces(old.length, 0, old.length)
        )
        return Extent(
            place.start, place.stop, join_path(self._old.uri, old.relative_path), old.offset, pieces
        )

    def _send(self, file: FilePlan, check: Callable[[], None]) -> list[WriteResult]:
        results = self._files.write(file, check)
        why = () if self._attempts.why_not is None else (self._attempts.why_not,)
        return _reported(results, SaveReport(sum(one.size_in_bytes for one in results), 0, why))

    def _copy(self, file: FilePlan, copies: CopyPlan, check: Callable[[], None]) -> list[WriteResult]:
        check()
        if copies.whole:
            (run,) = copies.whole
            self._copy_whole(file.name, run, self._old.facts[run.file])
            results = _moved(run, file.name, 0)
            note_facts(results[0].storage_data, self._old.facts[run.file])
            return _reported(results, SaveReport(0, run.stop))
        small = FilePlan(file.name, copies.small)
        size = sum(run.stop - run.start for run in copies.runs)
        results = self._files.write(small, check, before=partial(self._join, copies.runs, file.name))
        noted = getattr(results[0].storage_data, "file_facts", {})
        self._attempts.confirm(file.name, noted["size"], noted["checksum"])
        return _reported(results, SaveReport(sum(one.size_in_bytes for one in results) - size, size))

    def _join(self, runs: Sequence[Run], name: str, stream: Any) -> list[WriteResult]:
        """Lets S3 copy ranges to the beginning of a file."""
        results = []
        for run in runs:
            crc = run.crc(self._algorithm)
            if crc is None:
                raise CheckpointError(f"{run.file} has checksums of another kind than {self._algorithm}")
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
        self._attempts.confirm(name, facts.size, facts.checksum)


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

"""What a save can take over from an older checkpoint: which items are the same, and how S3 copies them.

An item is the same when all its bytes, as they would be sent now, have the checksums that the older
checkpoint notes. The first piece that differs ends the comparison, so what has changed costs hardly anything.

Of a file of the older checkpoint whose items are all the same, one request makes a copy. What is the same in
other files is put together in one new file, from ranges that S3 copies, and what is too small for that is
sent behind them. So what does not change gathers in files of its own, which are copied whole the next time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from s3torch.core.ranges import GIB
from s3torch.core.transfer import combine_crcs, compute_crc, is_computable
from s3torch.dcp._metadata import CHECKSUMS, ItemChecksums, file_facts
from s3torch.dcp._tensors import archive_frame
from s3torch.dcp.saving._assembly import smallest_copy
from s3torch.dcp.saving._values import HostValues

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
    from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

    from s3torch.dcp._metadata import FileFacts
    from s3torch.dcp.saving._plan import FilePlan
    from s3torch.dcp.saving._values import HostValue

# What one CopyObject copies.
_LARGEST_COPY = 5 * GIB


@dataclass(frozen=True, slots=True)
class OldCheckpoint:
    """What a save knows of an older checkpoint; it travels with the plan of each rank.

    Attributes:
        uri: Where it is.
        entries: Where its items are, as its metadata has it.
        facts: What is known of its files.
        counts: How many items each file has.
        why_not: Why nothing of it can be taken over.
    """

    uri: str
    entries: Mapping[MetadataIndex, Any] = field(default_factory=dict)
    facts: Mapping[str, FileFacts] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    why_not: str | None = None

    @classmethod
    def of(cls, uri: str, metadata: Metadata) -> OldCheckpoint:
        """Takes what counts from the metadata of a checkpoint."""
        entries: dict[MetadataIndex, Any] = metadata.storage_data or {}
        counts: dict[str, int] = {}
        for info in entries.values():
            counts[info.relative_path] = counts.get(info.relative_path, 0) + 1
        noted = {index: info for index, info in entries.items() if getattr(info, CHECKSUMS, None) is not None}
        why = None if noted else f"{uri} has no checksums to compare with"
        return cls(uri, noted, file_facts(metadata), counts, why)

    def for_items(self, items: Sequence[WriteItem]) -> OldCheckpoint:
        """Returns what a rank needs that writes these items."""
        entries = {item.index: self.entries[item.index] for item in items if item.index in self.entries}
        files = {info.relative_path for info in entries.values()}
        return OldCheckpoint(
            self.uri,
            entries,
            {name: facts for name, facts in self.facts.items() if name in files},
            {name: count for name, count in self.counts.items() if name in files},
            self.why_not,
        )


class _ChangedError(Exception):
    """The bytes are others than they were."""


class _Comparison:
    """A stream that compares what is written to it, piece by piece.

    Args:
        noted: What the bytes were.
        length: How many there were.
    """

    def __init__(self, noted: ItemChecksums, length: int) -> None:
        self._algorithm = noted.algorithm
        self._pieces = noted.pieces(length, 0, length)
        self._missing = length
        self._rest = self._crc = self._expected = 0

    def write(self, data: Any) -> None:
        rest = memoryview(data).cast("B")
        if len(rest) > self._missing:
            raise _ChangedError
        self._missing -= len(rest)
        while rest:
            if not self._rest:
                start, stop, self._expected = next(self._pieces)
                self._rest, self._crc = stop - start, 0
            count = min(self._rest, len(rest))
            crc = compute_crc(self._algorithm, rest[:count])
            self._crc = combine_crcs(self._algorithm, self._crc, crc, count)
            self._rest -= count
            rest = rest[count:]
            if not self._rest and self._crc != self._expected:
                raise _ChangedError

    lend = write

    @property
    def is_complete(self) -> bool:
        return not self._missing


def unchanged(
    file: FilePlan,
    old: OldCheckpoint,
    planner: SavePlanner,
    *,
    copy_ahead: int,
    check: Callable[[], None],
) -> list[tuple[WriteItem, Any]]:
    """Lists the items of a file that are the same as in the older checkpoint, and where they are there."""
    same = []
    known = [item for item in file.items if item.index in old.entries]
    for value in HostValues(known, planner.resolve_data, ahead=copy_ahead):
        check()
        info = old.entries[value.item.index]
        noted = ItemChecksums.of(getattr(info, CHECKSUMS), info.length)
        if noted is None or not is_computable(noted.algorithm):
            continue
        if _is_same(_sent(value, file), noted, info.length):
            same.append((value.item, info))
    return same


def _is_same(sent: Iterable[Callable[[Any], object]], noted: ItemChecksums, length: int) -> bool:
    compared = _Comparison(noted, length)
    try:
        for send in sent:
            send(compared)
    except _ChangedError:
        return False
    return compared.is_complete


def _sent(value: HostValue[WriteItem], file: FilePlan) -> Iterator[Callable[[Any], object]]:
    """Yields what writes an item as a save does; nothing for what only ``torch.save`` can write."""
    if file.is_safetensors:
        yield value.send_elements
    elif value.make_plain():
        frame = archive_frame(value.data.dtype, tuple(value.data.shape))
        if frame is not None:
            yield lambda stream: stream.write(frame.head)
            yield value.send
            yield lambda stream: stream.write(frame.tail)
    elif not isinstance(value.data, torch.Tensor):
        body: io.BytesIO = value.on_host()
        yield lambda stream: stream.write(body.getbuffer())


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring items of a file of the older checkpoint.

    Attributes:
        file: The file.
        items: They follow each other without a gap.
    """

    file: str
    items: tuple[tuple[WriteItem, Any], ...]

    @property
    def start(self) -> int:
        """Where they begin in the file."""
        return int(self.items[0][1].offset)

    @property
    def stop(self) -> int:
        """Where they end."""
        return int(self.items[-1][1].offset + self.items[-1][1].length)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start

    def crc(self, algorithm: str) -> int | None:
        """Returns the CRC of all their bytes; ``None`` where it is noted in another algorithm."""
        crc = 0
        for _, info in self.items:
            noted = ItemChecksums.of(getattr(info, CHECKSUMS), info.length)
            if noted is None or noted.algorithm != algorithm:
                return None
            crc = combine_crcs(algorithm, crc, noted.whole(info.length), info.length)
        return crc


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """How what is the same comes into the new checkpoint.

    Attributes:
        whole: Files of which all items are the same, and which are copied as they are.
        runs: What is put together in one file.
        small: What is sent behind that, because S3 does not copy so little.
    """

    whole: tuple[Run, ...] = ()
    runs: tuple[Run, ...] = ()
    small: tuple[WriteItem, ...] = ()


def plan_copies(
    same: Sequence[tuple[WriteItem, Any]], old: OldCheckpoint, *, most_files: int, joins: bool
) -> CopyPlan:
    """Decides how S3 copies items.

    Args:
        same: The items, and where they are in the older checkpoint.
        old: The older checkpoint.
        most_files: How many files are copied as they are; the smaller ones of more are put together.
        joins: Whether items of several files may be put together.
    """
    by_file: dict[str, list[tuple[WriteItem, Any]]] = {}
    for one in same:
        by_file.setdefault(one[1].relative_path, []).append(one)
    whole: list[Run] = []
    runs: list[Run] = []
    for name, items in sorted(by_file.items()):
        found = list(_runs(name, sorted(items, key=lambda one: one[1].offset)))
        facts = old.facts.get(name)
        is_all = len(found) == 1 and old.counts[name] == len(items) and facts is not None
        if is_all and facts is not None and (found[0].start, found[0].stop) == (0, facts.size):
            whole.append(found[0])
        else:
            runs += found
    if joins:
        whole.sort(key=lambda run: run.stop, reverse=True)
        large = [run for run in whole if run.stop > _LARGEST_COPY]
        whole = [run for run in whole if run.stop <= _LARGEST_COPY]
        runs += [*large, *whole[most_files:]]
        del whole[most_files:]
    least = smallest_copy(sum(run.size for run in runs))
    copied = tuple(run for run in runs if joins and run.size >= least)
    small = tuple(item for run in runs if not (joins and run.size >= least) for item, _ in run.items)
    return CopyPlan(tuple(whole), copied, small)


def _runs(file: str, items: Sequence[tuple[WriteItem, Any]]) -> Iterator[Run]:
    run: list[tuple[WriteItem, Any]] = []
    for item, info in items:
        if run and run[-1][1].offset + run[-1][1].length != info.offset:
            yield Run(file, tuple(run))
            run = []
        run.append((item, info))
    if run:
        yield Run(file, tuple(run))

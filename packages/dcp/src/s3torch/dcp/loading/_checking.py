"""Comparing what a load fetches with the checksums that the writer has noted, as it arrives."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3torch.core.errors import ChecksumMismatchError
from s3torch.core.transfer import compute_crc, encoded_crc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from s3torch.core.ranges import Span
    from s3torch.core.transfer import FetchSource, MemoryBudget, ObjectRange, ObjectSource

# So much more of a load may be fetched, so that pieces of which it wants only a part can be compared.
_WIDENED_SHARE = 0.03
HEAD_ALGORITHM = "CRC32"


@dataclass(frozen=True, slots=True)
class Check:
    """Bytes of a file and the checksum that they must have.

    Attributes:
        start: Where they begin in the file.
        stop: Where they end.
        algorithm: That of the checksum.
        crc: The checksum.
        name: The tensor or the object that has them.
    """

    start: int
    stop: int
    algorithm: str
    crc: int
    name: str

    def holds(self, data: memoryview) -> bool:
        """Whether these bytes are the right ones."""
        return compute_crc(self.algorithm, data) == self.crc

    def error(self, data: memoryview, *, bucket: str, key: str) -> ChecksumMismatchError:
        """Returns the error for bytes that are not."""
        found = encoded_crc(self.algorithm, compute_crc(self.algorithm, data))
        error = ChecksumMismatchError(
            f"{self.name} is damaged: the bytes {self.start} to {self.stop} of its file have the "
            f"{self.algorithm} {found}, but {encoded_crc(self.algorithm, self.crc)} was noted when they were "
            "saved; load another checkpoint",
            operation="GetObject",
            bucket=bucket,
            key=key,
        )
        error.attempts = 2
        return error


class FileChecks:
    """What can be compared of the bytes that are fetched from a file.

    Args:
        checks: They do not overlap.
    """

    def __init__(self, checks: Iterable[Check]) -> None:
        self._checks = sorted(checks, key=lambda check: check.start)
        self._starts = [check.start for check in self._checks]

    def fitting(self, start: int, stop: int) -> int:
        """Returns where a request that begins at ``start`` ends, so that it cuts nothing that is compared.

        That is ``start`` itself, where what begins there ends behind ``stop``.
        """
        index = bisect_left(self._starts, stop) - 1
        if index >= 0 and self._checks[index].stop > stop and self._starts[index] >= start:
            return self._starts[index]
        return stop

    def inside(self, start: int, stop: int) -> list[Check]:
        """Lists what can be compared of a range."""
        first = bisect_left(self._starts, start)
        last = bisect_left(self._starts, stop, first)
        return [check for check in self._checks[first:last] if check.stop <= stop]

    def comparable(self, start: int, stop: int) -> int:
        """Returns how many bytes of a range are compared."""
        return sum(check.stop - check.start for check in self.inside(start, stop))


class CheckedSource:
    """A file whose ranges are compared with the checksums of their pieces as they arrive.

    A piece that is not right is fetched once more: a bit that flipped on the way is right then.
    """

    def __init__(self, source: FetchSource, checks: FileChecks) -> None:
        self.bucket = source.bucket
        self.key = source.key
        self.part_size = source.part_size
        self._source = source
        self._checks = checks

    def budget(self) -> MemoryBudget | None:
        return self._source.budget()

    def start(self, start: int, stop: int, into: memoryview | None = None) -> ObjectRange:
        pending = self._source.start(start, stop, into)
        checks = self._checks.inside(start, stop)
        if not checks or into is None:
            return pending
        return _CheckedRange(self._source, pending, start, into[: stop - start], checks)


class _CheckedRange:
    """A range in flight, which is compared on the thread that has received it."""

    def __init__(
        self,
        source: FetchSource,
        pending: ObjectRange,
        start: int,
        into: memoryview,
        checks: Sequence[Check],
    ) -> None:
        self._source = source
        self._pending: ObjectRange | None = pending
        self._start = start
        self._into = into
        self._checks = checks
        self._wrong: list[Check] | None = None

    def add_done_callback(self, fn: Callable[[], object], /) -> None:
        def arrived() -> None:
            try:
                self._wrong = self._compare(self._checks)
            finally:
                fn()

        assert self._pending is not None  # noqa: S101 - For the type checker; nobody has waited yet.
        self._pending.add_done_callback(arrived)

    def wait(self) -> memoryview:
        # It refers to this range, and to the memory, which must be free with its piece.
        pending, self._pending = self._pending, None
        assert pending is not None  # noqa: S101 - For the type checker; nobody waits twice.
        data = pending.wait()
        if len(data) == len(self._into):
            for check in self._compare(self._checks) if self._wrong is None else self._wrong:
                self._fetch_again(check)
        self._into = memoryview(b"")
        return data

    def cancel(self) -> None:
        self._checks = ()
        if self._pending is not None:
            self._pending.cancel()

    def _compare(self, checks: Sequence[Check]) -> list[Check]:
        # What came last is in the caches of the processor still.
        return [check for check in reversed(checks) if not check.holds(self._bytes_of(check))]

    def _bytes_of(self, check: Check) -> memoryview:
        return self._into[check.start - self._start : check.stop - self._start]

    def _fetch_again(self, check: Check) -> None:
        into = self._bytes_of(check)
        data = self._source.start(check.start, check.stop, into).wait()
        if len(data) != len(into) or not check.holds(into):
            raise check.error(into, bucket=self._source.bucket, key=self._source.key)


class Padding:
    """Bytes that are fetched only because a checksum is of them, too, and thrown away.

    Args:
        start: Where they begin in the file.
        stop: Where they end.
    """

    held = 0
    name = ""

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self._memory: memoryview | None = None

    def open(self) -> memoryview:
        if self._memory is None:
            self._memory = memoryview(bytearray(self.stop - self.start))
        return self._memory


@dataclass(frozen=True, slots=True)
class Head:
    """What is before the tensors of a file of which nothing else can be compared.

    Attributes:
        stop: Where the tensors begin.
        size: The size of the file, which ends with the last tensor.
        crc: The CRC32 of the bytes that were parsed.
    """

    stop: int
    size: int
    crc: int


class WholeFile(Padding):
    """The head of a file that the store's checksum verifies as a whole: fetched again, with all tensors.

    Args:
        source: The file.
        head: What is known of it.
    """

    def __init__(self, source: ObjectSource, head: Head) -> None:
        super().__init__(0, head.stop)
        self._source = source
        self._crc = head.crc
        source.verify_whole()

    def compare(self) -> None:
        """Compares the head, which is verified now, with the one that was parsed.

        Raises:
            ChecksumMismatchError: A byte of that one has flipped on the way.
        """
        if compute_crc(HEAD_ALGORITHM, self.open()) != self._crc:
            raise ChecksumMismatchError(
                "the head of the file was read before with other bytes, so what was made of it may be wrong; "
                "load it again",
                operation="GetObject",
                bucket=self._source.bucket,
                key=self._source.key,
            )


def union(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Joins ranges that overlap or touch."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if found and start <= found[-1][1]:
            if stop > found[-1][1]:
                found[-1] = (found[-1][0], stop)
        elif start < stop:
            found.append((start, stop))
    return found


def missing(wanted: Sequence[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """Lists what ranges, as ``union`` returns them, lack of these bytes."""
    index = max(bisect_right(wanted, (start, stop)) - 1, 0)
    gaps: list[tuple[int, int]] = []
    for begin, end in wanted[index:]:
        if begin >= stop:
            break
        if begin > start:
            gaps.append((start, begin))
        start = max(start, end)
    return [*gaps, (start, stop)] if start < stop else gaps


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """What a load compares.

    Attributes:
        files: What can be compared of each file.
        paddings: What has to be fetched for that in addition.
        checked: How many of the bytes that are wanted are compared.
        unchecked: How many are not.
    """

    files: Mapping[str, FileChecks]
    paddings: Mapping[str, Sequence[Padding]]
    checked: int
    unchecked: int


def plan_checks(
    pieces: Mapping[str, Iterable[Span]], checks: Mapping[str, Sequence[Check]], *, widens: bool = True
) -> CheckPlan:
    """Decides what is compared of what a load wants.

    Args:
        pieces: What it wants of each file.
        checks: The checksums of all that has some of these bytes, by the files.
        widens: A little more may be fetched, so that more can be compared.
    """
    wanted = {file: union((one.start, one.stop) for one in ones) for file, ones in pieces.items()}
    total = sum(stop - start for ranges in wanted.values() for start, stop in ranges)
    whole: dict[str, list[Check]] = {}
    cut: list[tuple[int, str, Check, list[tuple[int, int]]]] = []
    for file, ones in checks.items():
        there = whole[file] = []
        # What several want is there once.
        for one in {one.start: one for one in ones}.values():
            gaps = missing(wanted[file], one.start, one.stop)
            if gaps:
                cut.append((sum(stop - start for start, stop in gaps), file, one, gaps))
            else:
                there.append(one)
    compared = sum(one.stop - one.start for ones in whole.values() for one in ones)
    paddings: dict[str, list[Padding]] = {}
    room = int(total * _WIDENED_SHARE) if widens else 0
    for cost, file, one, gaps in sorted(cut, key=lambda found: found[0]):
        if cost > room:
            break
        room -= cost
        compared += one.stop - one.start - cost
        whole[file].append(one)
        paddings.setdefault(file, []).extend(Padding(*gap) for gap in gaps)
    files = {file: FileChecks(ones) for file, ones in whole.items()}
    return CheckPlan(files, paddings, compared, total - compared)

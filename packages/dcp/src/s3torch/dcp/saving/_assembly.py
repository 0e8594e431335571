"""How a file whose layout is given is put together: of ranges that S3 copies, and of what is sent between.

S3 wants parts of at least 5 MiB, but for the last one. So what is sent between two copies is made that long,
by what would otherwise be copied, and where checksums are noted a copy begins and ends with a piece of them:
then S3 verifies what it has copied. Where a copy fails, the file is sent: a store may not copy, or not tell
the checksum of what it has copied, without which nobody knows what that is.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core import parse_s3_uri
from s3torch.core.errors import S3Error, TransferCancelledError
from s3torch.core.ranges import MAX_PARTS, MIN_PART_SIZE, ByteRange
from s3torch.core.transfer import checksum_type, combine_crcs
from s3torch.dcp._filesystem import join_path
from s3torch.dcp._metadata import CheckpointError
from s3torch.dcp.saving._plan import new_save_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.dcp._filesystem import S3FileSystem

T = TypeVar("T")
# Where nothing is noted, a copy may begin at each multiple of this: that of all sizes of elements.
_STEP = 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What was sent for new files, and what S3 has copied for them.

    Attributes:
        sent_bytes: The bytes that were sent.
        copied_bytes: Those that S3 has copied from older files.
        why_sent: Why bytes were sent that S3 could perhaps have copied; empty where there are none.
    """

    sent_bytes: int = 0
    copied_bytes: int = 0
    why_sent: tuple[str, ...] = ()

    def __add__(self, other: SaveReport) -> SaveReport:
        reasons = dict.fromkeys((*self.why_sent, *other.why_sent))
        return SaveReport(
            self.sent_bytes + other.sent_bytes, self.copied_bytes + other.copied_bytes, tuple(reasons)
        )


@dataclass(frozen=True, slots=True)
class Extent:
    """Neighbouring bytes of a new file that are neighbours in an older one, too.

    Attributes:
        start: Where they begin in the new file.
        stop: Where they end.
        uri: The older file.
        origin: Where they begin there.
        pieces: Begin and end in the new file, and CRC, of the pieces that make them up; none where nobody has
            noted any.
        etag: The ETag of the older file, where it is known.
    """

    start: int
    stop: int
    uri: str
    origin: int
    pieces: tuple[tuple[int, int, int], ...] = ()
    etag: str | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start

    def follows(self, other: Extent) -> bool:
        """Whether these bytes come directly behind others, in both files."""
        return (
            (other.uri, other.stop, other.origin + other.size) == (self.uri, self.start, self.origin)
            and bool(other.pieces) == bool(self.pieces)
        )  # fmt: skip

    def behind(self, position: int) -> Extent | None:
        """Returns what can be copied of the bytes behind a position of the new file."""
        if position <= self.start:
            return self
        if self.pieces:
            pieces = tuple(piece for piece in self.pieces if piece[0] >= position)
            start = pieces[0][0] if pieces else self.stop
        else:
            pieces, start = (), position + (self.start - position) % _STEP
        if start >= self.stop:
            return None
        return replace(self, start=start, origin=self.origin + start - self.start, pieces=pieces)

    def crc(self, algorithm: str) -> int | None:
        """Returns the CRC of the bytes, from those of their pieces."""
        crc = None
        for start, stop, value in self.pieces:
            crc = value if crc is None else combine_crcs(algorithm, crc, value, stop - start)
        return crc

    def copy_to(self, stream: Any, algorithm: str) -> None:
        """Lets S3 append the bytes to a file that is being written."""
        source = parse_s3_uri(self.uri)
        there = ByteRange(self.origin, self.origin + self.size)
        stream.copy_from(source.bucket, source.key, there, crc=self.crc(algorithm), if_match=self.etag)


def joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Joins bytes that follow each other in both files."""
    some: list[Extent] = []
    for extent in extents:
        if some and not extent.follows(some[-1]):
            yield _one(some)
            some = []
        some.append(extent)
    if some:
        yield _one(some)


def _one(some: list[Extent]) -> Extent:
    pieces = tuple(piece for extent in some for piece in extent.pieces)
    return replace(some[0], stop=some[-1].stop, pieces=pieces)


def smallest_copy(size: int) -> int:
    """Returns how many bytes a copy should have at least, in a new file of so many bytes.

    So copies, and what is sent between them, are no more parts than an upload may have.
    """
    return max(MIN_PART_SIZE, -(-4 * size // MAX_PARTS))


def plan_assembly(extents: Iterable[Extent], size: int) -> list[Extent]:
    """Decides what S3 copies of a new file of so many bytes; the rest is sent.

    Args:
        extents: What older files have of it, in order and without overlaps.
        size: The bytes of the new file.
    """
    least = smallest_copy(size)
    copies: list[Extent] = []
    end = 0
    for extent in joined(extents):
        copy = extent if extent.start == end else extent.behind(end + MIN_PART_SIZE)
        if copy is None:
            continue
        # S3 copies ranges only of objects of more than 5 MiB.
        is_last = copy.stop == size and copy.origin + copy.size > MIN_PART_SIZE
        if copy.size >= least or is_last:
            copies.append(copy)
            end = copy.stop
    return copies


class AssembledStream:
    """A file that is being written, of which S3 copies some: what is written of that is dropped.

    Args:
        stream: The file.
        copies: What S3 copies, in order.
        algorithm: That of the upload.
    """

    def __init__(self, stream: Any, copies: Iterable[Extent], algorithm: str) -> None:
        self._stream = stream
        self._copies = deque(copies)
        self._algorithm = algorithm
        self._position = 0
        self._expect()

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        return self._take(data, self._stream.write)

    def lend(self, data: Any) -> int:
        return self._take(data, self._stream.lend)

    def begin_piece(self, size: int) -> None:
        if self._position == self._stream.tell():
            self._stream.begin_piece(size)

    def _expect(self) -> None:
        if self._copies:
            self._stream.expect_copy(self._copies[0].start - self._position)

    def _take(self, data: Any, write: Callable[[memoryview], object]) -> int:
        rest = memoryview(data).cast("B")
        while rest:
            copy = self._copies[0] if self._copies else None
            if copy is None or self._position < copy.start:
                count = len(rest) if copy is None else min(len(rest), copy.start - self._position)
                write(rest[:count])
            else:
                if self._position == copy.start:
                    copy.copy_to(self._stream, self._algorithm)
                count = min(len(rest), copy.stop - self._position)
            self._position += count
            rest = rest[count:]
            if copy is not None and self._position == copy.stop:
                self._copies.popleft()
                self._expect()
        return memoryview(data).nbytes


class CopyAttempts:
    """Makes files with the help of S3, as long as it copies; what it could not copy is sent.

    Args:
        fs: Knows the store.
        path: The URI of the folder of the new files.
        source: The URI of what is copied from.
        why_not: Why S3 should copy nothing, if there is a reason.

    Attributes:
        why_not: Why S3 copies nothing, or nothing any more.
    """

    def __init__(self, fs: S3FileSystem, path: str, source: str, why_not: str | None = None) -> None:
        self._fs = fs
        self._path = path
        self._source = source
        algorithm = fs.client.s3client_config.upload_checksum
        if why_not is None and (algorithm is None or checksum_type(algorithm) == "COMPOSITE"):
            why_not = "without a CRC for uploads nobody knows what S3 has copied"
        self.why_not = why_not

    def write(self, name: str, save_id: str, copy: Callable[[], T], send: Callable[[str], T]) -> T:
        """Writes a file by ``copy``, or by ``send``, which gets its name.

        Args:
            name: The name of the file, with the id of the save.
            save_id: That id.
            copy: Writes it with the help of S3.
            send: Writes it without.
        """
        if self.why_not is not None:
            return send(name)
        try:
            return copy()
        except TransferCancelledError:
            raise
        except S3Error as exc:
            self.why_not = f"S3 could not copy from {self._source}: {exc}"
            _log.warning("%s; everything is sent", self.why_not)
        # What the failed copy has left, or may yet leave, has another name.
        with suppress(S3Error):
            self._fs.rm_file(join_path(self._path, name))
        return send(name.replace(save_id, new_save_id()))

    def confirm(self, name: str, size: int, checksum: tuple[str, str] | None) -> dict[str, str]:
        """Compares a file with what it should be; returns the checksums that the store tells.

        Raises:
            CheckpointError: It is something else, or the store tells no checksum that is expected.
        """
        target = parse_s3_uri(join_path(self._path, name))
        head = self._fs.client.head_object(target.bucket, target.key)
        algorithm, value = checksum or ("", None)
        if head.size != size or head.checksums.get(algorithm) != value:
            raise CheckpointError(
                f"{name} should have {size} bytes with the {algorithm} {value}, but the store tells "
                f"{head.size} bytes and {dict(head.checksums) or 'no checksum'}"
            )
        return dict(head.checksums)

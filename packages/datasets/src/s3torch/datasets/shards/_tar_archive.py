"""Reads tar archives from front to back, and never takes a damaged one for one that ended.

``tarfile`` of the standard library is not used: it ends silently at the first damaged header after the first
member, and takes five times as long for each member. What it writes is supported: ustar, GNU (long names,
sizes in base 256) and PAX. Sparse members are refused.

The layout is that of POSIX (pax, "ustar Interchange Format"): a header of 512 bytes before each member, whose
bytes are padded to a multiple of 512, and two blocks of zeros at the end. What follows those is another
archive (``cat a.tar b.tar``), or zeros.

Samples are those of WebDataset: files that follow each other and have the same name up to the first dot of
the file name. Of ``dir/0001.jpg`` and ``dir/0001.seg.png`` the key is ``dir/0001``, and the parts are ``jpg``
and ``seg.png``.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

_BLOCK = 512
_CHUNK = 1024 * 1024
# Names and attributes; what claims to be larger is damaged.
_LONGEST_EXTENSION = 1024 * 1024
_LONGEST_NUMBER = 20
# Files cannot be read or skipped that far: their offsets are signed numbers of 64 bits.
_LARGEST = 1 << 62
_FILES = frozenset(b"\x0007")
_EXTENSIONS = frozenset(b"xgXLK")
_ZEROS = bytes(_BLOCK)
# What a sample has beside its files.
RESERVED = frozenset({"__key__", "__url__"})
_REMEMBERED = 1_000_000
_COMPRESSED_CHUNK = 256 * 1024
_GZIP = 16 + zlib.MAX_WBITS


class ArchiveError(Exception):
    """Something in an archive is wrong; turned into a ``DamagedShardError`` where the object is known."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(offset, why)
        self.offset = offset
        self.why = why


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in an archive; reading may go on at ``start``, where its first header begins."""

    name: str
    start: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """Where the padding after its bytes ends, and the next header begins."""
        return self.offset + -(-self.size // _BLOCK) * _BLOCK


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """The most bytes that a member may have, and where the last one has to end; ``what`` says of what."""

    member: int
    end: int
    what: str


class ForwardStream:
    """Reads bytes one after the other from a file, with few calls of it; skips by ``seek`` if it can.

    ``limits`` returns what members may have; it is called once something was read.
    """

    def __init__(
        self,
        file: Any,
        *,
        seekable: bool = False,
        chunk: int = _CHUNK,
        limits: Callable[[], ArchiveLimits] | None = None,
    ) -> None:
        self.offset = 0
        self._file = file
        self._seekable = seekable
        self._size = chunk
        self._chunk = b""
        self._at = 0
        self._limits = limits
        # Whatever ends before is within the limits.
        self._safe = 0

    def check(self, name: str, size: int) -> None:
        """Raises ``ArchiveError`` if something that begins here cannot or must not have so many bytes."""
        if size > _LARGEST:
            raise ArchiveError(self.offset, f"{name!r} claims {size} bytes")
        if self._limits is not None and self.offset + size > self._safe:
            limits = self._limits()
            self._safe = min(limits.member, limits.end)
            most = min(limits.member, limits.end - self.offset)
            if size > most:
                why = f"{name!r} claims {size} bytes, and {limits.what} has room for {most}"
                raise ArchiveError(self.offset, why)

    def take(self, count: int) -> bytes:
        """Returns the next ``count`` bytes, fewer only at the end."""
        ready = self._chunk[self._at : self._at + count]
        self._at += len(ready)
        if len(ready) < count:
            pieces, missing = [ready], count - len(ready)
            while missing:
                if missing >= self._size:
                    data = self._file.read(missing)
                else:
                    self._chunk, self._at = self._file.read(self._size), missing
                    data = self._chunk[:missing]
                if not data:
                    break
                pieces.append(data)
                missing -= len(data)
            # A single one is not copied.
            ready = b"".join(pieces if ready else pieces[1:])
        self.offset += len(ready)
        return ready

    def skip(self, count: int) -> bool:
        """Skips the next ``count`` bytes and returns whether they were all there."""
        ready = min(count, max(0, len(self._chunk) - self._at))
        self._at += ready
        self.offset += ready
        count -= ready
        if count and self._seekable:
            self._chunk, self._at = b"", 0
            begin = self._file.tell()
            passed = self._file.seek(begin + count) - begin
            self.offset += passed
            return bool(passed == count)
        while count:
            passed = len(self.take(min(count, self._size)))
            if not passed:
                return False
            count -= passed
        return True


class GzipStream:
    """Decompresses a file of one gzip member or several, and returns all that came before a damage.

    ``gzip.GzipFile`` loses it: a large read of a truncated file raises and returns nothing.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(_GZIP)
        self._waiting = b""
        # Between two members the file may end; before the first, it is no gzip file.
        self._within = True

    def read(self, size: int) -> bytes:
        """Returns up to ``size`` bytes, none only at the end; raises ``EOFError`` within a member."""
        while True:
            data = self._waiting or self._file.read(_COMPRESSED_CHUNK)
            if not data:
                if self._within:
                    raise EOFError("the compressed data ends too early")
                return b""
            if self._inflate.eof:
                # Some programs pad with zeros after the last member.
                data = data.lstrip(b"\0")
                self._inflate, self._within = zlib.decompressobj(_GZIP), bool(data)
            self._waiting = data
            if not data:
                continue
            found = self._inflate.decompress(data, size)
            if self._inflate.eof:
                self._waiting, self._within = self._inflate.unused_data, False
            else:
                self._waiting = self._inflate.unconsumed_tail
            if found:
                return found


def read_members(stream: ForwardStream, *, require_end: bool = True) -> Iterator[TarMember]:
    """Yields the regular files of an archive; folders, links and devices are left out.

    The stream is before a header. While a file is yielded, its bytes may be taken from the stream, all or
    none of them. With ``require_end``, an archive without a block of zeros at its end, as few programs write,
    is truncated. A damaged one, one with a sparse member, and one whose members claim more than the limits of
    the stream raises ``ArchiveError``.
    """
    start, attributes = stream.offset, _Attributes()
    while True:
        header = _next_header(stream, needs_end=require_end or bool(attributes))
        if header is None:
            return
        place = stream.offset - _BLOCK
        start = start if attributes else place
        kind = header[156]
        size = attributes.size
        if kind in _EXTENSIONS or size is None:
            size = _number(header[124:136], place)
        data = stream.offset
        if kind in _EXTENSIONS:
            attributes.extend(kind, _extension(stream, size, place), place)
        elif kind in _FILES:
            name = attributes.name or _name(header)
            stream.check(name, size)
            if not name.endswith("/"):
                yield TarMember(name, start, data, size)
            attributes = _Attributes()
        elif kind == ord("S"):
            raise ArchiveError(place, f"{_name(header)!r} is sparse; pack it without --sparse")
        else:
            # Links, devices and folders have no bytes, whatever their header says; other kinds do.
            size = 0 if kind in b"123456" else size
            stream.check(_name(header), size)
            attributes = _Attributes()
        _finish(stream, data, size, place)


def _next_header(stream: ForwardStream, *, needs_end: bool) -> bytes | None:
    """Returns the next header, checked; ``None`` where the archive ends, which has to be marked or not."""
    header = stream.take(_BLOCK)
    if len(header) < _BLOCK or header == _ZEROS:
        is_marked = header == _ZEROS
        while header == _ZEROS:
            stream.check("the padding", 0)
            header = stream.take(_BLOCK)
        if not header.strip(b"\0") and (is_marked or not (header or needs_end)):
            return None
        if len(header) < _BLOCK:
            raise ArchiveError(stream.offset - len(header), "the archive ends here, without an end marker")
    _check(header, stream.offset - _BLOCK)
    return header


class _Attributes:
    """The name and the size that extension headers give to the member after them."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.size: int | None = None
        self._seen = False

    def __bool__(self) -> bool:
        return self._seen

    def extend(self, kind: int, data: bytes, place: int) -> None:
        if kind == ord("L"):
            self.name = self.name or _text(data.partition(b"\0")[0])
        elif kind == ord("g"):
            if {"path", "size"} & _records(data, place).keys():
                raise ArchiveError(place, "a global header sets names or sizes, which is not supported")
            return
        elif kind in b"xX":
            records = _records(data, place)
            if any(name.startswith("GNU.sparse.") for name in records):
                raise ArchiveError(place, "a member is sparse; pack it without --sparse")
            if "path" in records:
                self.name = _text(records["path"])
            size = records.get("size")
            if size is not None and not (size.isdigit() and len(size) <= _LONGEST_NUMBER):
                raise ArchiveError(place, f"the size {size[:_LONGEST_NUMBER]!r} is not a number")
            self.size = self.size if size is None else int(size)
        self._seen = True


def _check(header: bytes, place: int) -> None:
    """Compares the checksum of a header, which some old programs computed from signed bytes."""
    expected = _number(header[148:156], place)
    rest = header[:148] + header[156:]
    if expected == sum(rest) + 256:
        return
    if expected != sum(rest) + 256 - 256 * sum(byte > 127 for byte in rest):
        raise ArchiveError(place, "the checksum of the header is wrong")


def _number(field: bytes, place: int) -> int:
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise ArchiveError(place, "a number of the header is negative")
        return int.from_bytes(field, "big") - (1 << (8 * len(field) - 1))
    digits = field.partition(b"\0")[0].strip() or b"0"
    # int() also takes signs and underscores.
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            pass
    raise ArchiveError(place, f"a number of the header is malformed: {digits!r}")


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return _text(name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _extension(stream: ForwardStream, size: int, place: int) -> bytes:
    if size > _LONGEST_EXTENSION:
        raise ArchiveError(place, f"an extension header claims {size} bytes")
    data = stream.take(size)
    if len(data) < size:
        raise ArchiveError(stream.offset, "the archive ends within an extension header")
    return data


def _records(data: bytes, place: int) -> dict[str, bytes]:
    """Reads a PAX header: records of length, name, value and a line feed, where the length counts it all."""
    records: dict[str, bytes] = {}
    at, end = 0, len(data.rstrip(b"\0"))
    while at < end:
        space = data.find(b" ", at, at + _LONGEST_NUMBER)
        digits = data[at:space]
        stop = at + int(digits) if space > 0 and digits.isdigit() else 0
        name, equals, value = data[space + 1 : stop].partition(b"=")
        if not (equals and space < stop <= end and value.endswith(b"\n")):
            raise ArchiveError(place, "a PAX header is damaged")
        records[name.decode("utf-8", "replace")] = value[:-1]
        at = stop
    return records


def _finish(stream: ForwardStream, data: int, size: int, place: int) -> None:
    """Goes to the header after a member."""
    end = data + -(-size // _BLOCK) * _BLOCK
    if not stream.skip(end - stream.offset) and stream.offset < data + size:
        why = f"it ends within the member that begins at {place} and has {size} bytes"
        raise ArchiveError(stream.offset, why)


@dataclass(frozen=True, slots=True)
class SampleParts(Generic[T]):
    """One sample of an archive, whose first header is at ``start``.

    ``parts`` has what was made of each file, by its suffix in lower case and without the dot.
    """

    key: str
    start: int
    parts: dict[str, T]


def split_name(name: str) -> tuple[str, str] | None:
    """Returns the key and the suffix of a file; ``None`` for files that belong to no sample.

    Those are files without a suffix, hidden ones, and those that WebDataset reserves (``__name__``).
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    if not stem or not dot or (file.startswith("__") and file.endswith("__")):
        return None
    return f"{folder}{slash}{stem}", suffix.lower()


def group_members(members: Iterable[TarMember], load: Callable[[TarMember], T]) -> Iterator[SampleParts[T]]:
    """Yields the samples of an archive; ``load`` makes a part of each file before the next one is read.

    A sample that has a suffix twice, a reserved one, or files that are not side by side raises
    ``ArchiveError``. To be bounded in memory, only the first million samples are remembered for that.
    """
    sample: SampleParts[T] | None = None
    # Hashes take less than half of the memory of the keys.
    seen: set[int] = set()
    for member in members:
        split = split_name(member.name)
        if split is None:
            continue
        key, suffix = split
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample, mark = SampleParts(key, member.start, {}), hash(key)
            if mark in seen:
                raise ArchiveError(member.start, f"the files of the sample {key!r} are not side by side")
            if len(seen) < _REMEMBERED:
                seen.add(mark)
        if suffix in RESERVED:
            raise ArchiveError(member.start, f"{member.name!r} has a suffix that names no file of a sample")
        if suffix in sample.parts:
            raise ArchiveError(member.start, f"the sample {key!r} has two files with the suffix {suffix!r}")
        sample.parts[suffix] = load(member)
    if sample is not None:
        yield sample

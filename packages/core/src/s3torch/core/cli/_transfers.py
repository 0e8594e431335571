"""How ``cp`` copies one object: it appears whole, or not at all."""

from __future__ import annotations

import hashlib
import mimetypes
import os
import re
import stat
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from errno import EACCES
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4

from s3torch.core import S3Uri
from s3torch.core.cli._process import stopping
from s3torch.core.cli._resuming import has_parts, resumable_writer
from s3torch.core.errors import (
    ChecksumMismatchError,
    NotFoundError,
    ObjectChangedError,
    TransferCancelledError,
)
from s3torch.core.ranges import MIB
from s3torch.core.transfer import PartedChecksum, read_again

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from s3torch.core import HeadObjectResult, ObjectInfo, PutOptions, S3Client, S3Writer
    from s3torch.core.cli._output import Advance

STANDARD_STREAM = Path("-")
_PIECE = 8 * MIB
_NO_NAME = {"", ".", ".."}
_NO_LINK = os.O_NOFOLLOW | os.O_NONBLOCK
_MD5 = re.compile(r'"([0-9a-f]{32})"')
# Of these the checksum of a whole can be made without knowing its parts; the fastest first.
_COMPARABLE = ("CRC64NVME", "CRC32C", "CRC32")


@dataclass(frozen=True, slots=True)
class Job:
    """One object that is to be copied.

    Attributes:
        source: Where it is.
        target: Where it goes, or the local folder that it goes to.
        info: What a listing told of it.
        below: Its path in the folder.
    """

    source: S3Uri | Path
    target: S3Uri | Path
    info: ObjectInfo | None = None
    below: str | None = None

    @property
    def place(self) -> str:
        """Where it goes, for people."""
        return str(self.target) if self.below is None else f"{self.target}/{self.below}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an object: how many bytes were moved, or whether it was there already."""

    nbytes: int = 0
    skipped: bool = False


@dataclass
class Copier:
    """Copies single objects; used by many threads at a time.

    Attributes:
        client: Serves the requests.
        options: How objects are stored.
        resume: Whether to leave out what is there, and to keep what had arrived when it was stopped.
        advance: Is told of bytes.
    """

    client: S3Client
    options: PutOptions
    resume: bool = False
    advance: Advance = lambda _: None

    def copy(self, job: Job) -> Outcome:
        """Copies an object."""
        _stop_if_asked()
        source, target = job.source, job.target
        if isinstance(source, Path):
            assert isinstance(target, S3Uri)  # noqa: S101 - One side is in S3.
            return self._upload_stream(target) if source == STANDARD_STREAM else self._upload(source, target)
        if isinstance(target, S3Uri):
            return self._copy_within(source, target, job.info)
        if target == STANDARD_STREAM:
            return self._write_out(source)
        path = target if job.below is None else local_path(target, job.below)
        return self._download(source, path, job.info)

    def _copy_within(self, source: S3Uri, target: S3Uri, info: ObjectInfo | None) -> Outcome:
        head: Any = info
        if info is None or self.resume:
            head = self.client.head_object(*source)
        if self.resume and _are_same(head, self._head(target)):
            return Outcome(skipped=True)
        self.client.copy_object(*source, *target, options=self.options, object_info=head)
        self.advance(head.size)
        return Outcome(head.size)

    def _upload_stream(self, target: S3Uri) -> Outcome:
        with self.client.put_object(*target, options=self.options) as writer:
            return Outcome(self._pump(sys.stdin.buffer, writer))

    def _upload(self, source: Path, target: S3Uri) -> Outcome:
        with source.open("rb") as file:
            before = os.fstat(file.fileno())
            if self.resume and self._has_bytes_of(file, before.st_size, self._head(target)):
                return Outcome(skipped=True)
            options = self.options
            if options.content_type is None:
                options = replace(options, content_type=mimetypes.guess_type(source.name)[0])
            opened: AbstractContextManager[S3Writer]
            if self.resume and has_parts(self.client, before.st_size):
                opened = resumable_writer(self.client, source, file, target, options)
            else:
                opened = self.client.put_object(*target, options=options, expected_size=before.st_size)
            with opened as writer:
                count = self._pump(file, writer)
                after = os.fstat(file.fileno())
                if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                    raise OSError(f"{source} changed while it was read; nothing was stored")
        return Outcome(count)

    def _write_out(self, source: S3Uri) -> Outcome:
        with self.client.get_object(*source) as reader:
            count = self._pump(reader, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return Outcome(count)

    def _download(self, source: S3Uri, path: Path, info: ObjectInfo | None) -> Outcome:
        if not self.resume:
            with _fresh_file(path) as file:
                return Outcome(read_again(lambda: self._read(source, info, file)))
        head = self.client.head_object(*source)
        if path.is_file():
            with path.open("rb") as file:
                if self._has_bytes_of(file, path.stat().st_size, head):
                    return Outcome(skipped=True)
        return self._go_on(source, path, head)

    def _go_on(self, source: S3Uri, path: Path, head: HeadObjectResult) -> Outcome:
        """Downloads what is missing of a file that an earlier command has begun, and keeps what has come.

        Its name tells which version of the object it is of.
        """
        version = hashlib.sha256(f"{source}\n{head.etag}".encode()).hexdigest()[:16]
        part = path.with_name(f".{path.name}.{version}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        with _begun_file(part) as file:
            begin = file.seek(0, os.SEEK_END)
            if begin > head.size:
                begin = file.truncate(0)
            self.advance(begin)
            try:
                count = read_again(lambda: self._read(source, head, file, begin))
            except (ChecksumMismatchError, ObjectChangedError):
                part.unlink()
                raise
            file.flush()
            # The reader verifies what it has read as a whole; of the rest nobody has seen all but this.
            if begin and not self._has_bytes_of(file, head.size, head, unknown=True):
                part.unlink()
                raise ChecksumMismatchError(
                    "the resumed download does not have the stored checksum; its partial file was removed, "
                    "try again",
                    operation="GetObject",
                    bucket=source.bucket,
                    key=source.key,
                )
        part.replace(path)
        return Outcome(count)

    def _read(self, source: S3Uri, info: Any, file: BinaryIO, begin: int = 0) -> int:
        # What has come in an attempt before was not what is stored.
        self.advance(begin - file.seek(0, os.SEEK_END))
        file.truncate(begin)
        file.seek(begin)
        with self.client.get_object(*source, object_info=info) as reader:
            reader.seek(begin)
            return self._pump(reader, file)

    def _pump(self, source: Any, target: Any) -> int:
        """Moves all bytes, and stops where that is asked for."""
        total = 0
        while data := source.read(_PIECE):
            _stop_if_asked()
            target.write(data)
            total += len(data)
            self.advance(len(data))
        _stop_if_asked()
        return total

    def _head(self, place: S3Uri) -> HeadObjectResult | None:
        try:
            return self.client.head_object(*place)
        except NotFoundError:
            return None

    def _has_bytes_of(
        self, file: BinaryIO, size: int, head: HeadObjectResult | None, *, unknown: bool = False
    ) -> bool:
        """Whether a file has the bytes of an object, by the checksum that the store keeps.

        Args:
            file: The file; it is read, and then again at its beginning.
            size: How long it is.
            head: What the store tells of the object.
            unknown: What to say where the store tells nothing to compare with.
        """
        if head is None or head.size != size:
            return False
        expected = _comparable(head.checksums)
        md5 = _MD5.fullmatch(head.etag)
        if expected is None and md5 is None:
            return unknown
        file.seek(0)
        try:
            if expected is not None:
                return self._checksum(file, expected[0]) == expected[1]
            # So it is with whole objects that are not encrypted with a key of KMS.
            digest = hashlib.md5(usedforsecurity=False)
            while data := file.read(_PIECE):
                _stop_if_asked()
                digest.update(data)
            return (md5 is not None and digest.hexdigest() == md5[1]) or unknown
        finally:
            file.seek(0)

    @staticmethod
    def _checksum(file: BinaryIO, algorithm: str) -> str:
        parts = PartedChecksum(algorithm)
        buffer = memoryview(bytearray(_PIECE))
        while count := file.readinto(buffer):  # type: ignore[attr-defined]
            _stop_if_asked()
            parts.add(buffer[:count])
        return parts.value[1]


def local_path(root: Path, name: str) -> Path:
    """Returns the file below a folder that a key stands for.

    Raises:
        ValueError: The name, or a link on the way, leads out of the folder.
    """
    parts = name.split("/")
    if _NO_NAME & set(parts) or "\0" in name:
        raise ValueError(f"the key {name!r} names no file below {root}; copy that object by itself")
    path = root.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{path} is outside of {root}: a symbolic link on the way leads out of it")
    return path


@contextmanager
def _fresh_file(path: Path) -> Iterator[BinaryIO]:
    """Writes a file that takes the place of an older one at the end, unless something is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; no file can be stored in its place")
    part = path.with_name(f".{path.name[:100]}.{uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            yield file
        part.replace(path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def _begun_file(path: Path) -> BinaryIO:
    """Opens a file that this user may have begun; others can guess its name, too."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _NO_LINK, 0o666)
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
        os.close(descriptor)
        raise PermissionError(EACCES, "it is not a file of this user", str(path))
    return os.fdopen(descriptor, "a+b")


def _are_same(one: HeadObjectResult, other: HeadObjectResult | None) -> bool:
    """Whether two objects have the same bytes, as far as the store tells."""
    if other is None or one.size != other.size:
        return False
    shared = [name for name in _COMPARABLE if name in one.checksums and name in other.checksums]
    pairs = [(one.checksums[name], other.checksums[name]) for name in shared]
    whole = [pair for pair in pairs if "-" not in pair[0] and "-" not in pair[1]]
    return all(a == b for a, b in whole) if whole else one.etag == other.etag


def _comparable(checksums: Mapping[str, str]) -> tuple[str, str] | None:
    """Chooses a checksum of all bytes; those of parts end in ``-N``."""
    known = ((name, checksums.get(name)) for name in _COMPARABLE)
    return next(((name, value) for name, value in known if value and "-" not in value), None)


def _stop_if_asked() -> None:
    if stopping.is_set():
        raise TransferCancelledError("stopped")

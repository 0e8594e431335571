"""Files that are read through fsspec: a reader of ours with what fsspec's buffered files have."""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import atexit
import io
import sys
import time
from typing import TYPE_CHECKING, Any, TypeAlias

from s3torch.core import ConfigurationError
from s3torch.fsspec._files import FileFacts

if TYPE_CHECKING:
    from s3torch.core import S3Reader
    from s3torch.fsspec._attributes import S3Attributes

Known: TypeAlias = dict[tuple[int, int], bytes]
# Ten times what a thread waits for the interpreter's lock.
_DROPPING_SECONDS = 0.05


@atexit.register
def _let_pyarrow_drop_files() -> None:
    """Lets threads of pyarrow drop the files that they have read, before the interpreter ends.

    They do so a moment after the read has returned. The lock of an interpreter that has ended is not to be
    had, and the process would abort with "terminate called without an active exception", whatever kind of
    Python file it was.
    """
    if "pyarrow" in sys.modules:
        time.sleep(_DROPPING_SECONDS)


class S3ReadFile(FileFacts):
    """An object being read. Nothing is sent before the first read or question for the size.

    Args:
        fs: The filesystem.
        path: ``bucket/key``.
        reader: What reads the object.
        block_size: The block size to tell; some caches of fsspec cut files by it.
        size: Where the file ends, if that is before the end of the object.
        version_id: The version that is read.
        known: Bytes of the object by their start and stop, as ``fsspec.parquet`` fetches them before.
    """

    mode = "rb"
    autocommit = True

    def __init__(
        self,
        fs: S3Attributes,
        path: str,
        reader: S3Reader,
        *,
        block_size: int,
        size: int | None = None,
        version_id: str | None = None,
        known: Known | None = None,
    ) -> None:
        self.fs = fs
        self.path = path
        self.reader = reader
        self.blocksize = block_size
        self.version_id = version_id
        self._size = size
        self._known = known or {}
        # ``blockcache::`` puts a cache of its own here.
        self.cache: Any = None

    def __getattr__(self, name: str) -> Any:
        # What readers have besides: bucket, key, etag, last_modified, prefetch.
        if name == "reader":
            raise AttributeError(name)
        return getattr(self.reader, name)

    @property
    def size(self) -> int:
        """The size of the file; one HEAD where nothing has told it yet."""
        return self.reader.size if self._size is None else self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    @property
    def _is_plain(self) -> bool:
        return self._size is None and self.cache is None and not self._known

    def read(self, size: int | None = -1, /) -> bytes:
        if self._is_plain:
            return self.reader.read(size)
        start = self.reader.tell()
        rest = max(0, self.size - start)
        count = rest if size is None or size < 0 else min(size, rest)
        if self.cache is not None:
            data = bytes(self.cache._fetch(start, start + count)) if count else b""
        else:
            data = self._known_bytes(start, start + count)
        if not data:
            return self.reader.read(count)
        self.reader.seek(start + len(data))
        return data

    def _known_bytes(self, start: int, stop: int) -> bytes:
        for (first, last), block in self._known.items():
            if first <= start and stop <= last:
                return block[start - first : stop - first]
        return b""

    def readinto(self, buffer: Any, /) -> int:
        if self._is_plain:
            return self.reader.readinto(buffer)
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    readinto1 = readinto

    def read1(self, size: int = -1, /) -> bytes:
        if self._is_plain:
            return self.reader.read1(size)
        return self.read(size)

    def peek(self, size: int = 0, /) -> bytes:
        position = self.reader.tell()
        data = self.read(max(size, io.DEFAULT_BUFFER_SIZE))
        self.reader.seek(position)
        return data

    def readuntil(self, char: bytes = b"\n", blocks: int | None = None) -> bytes:
        """Returns the bytes up to the next ``char``, with it, or up to the end of the file.

        Args:
            char: What to look for.
            blocks: How many bytes to read at a time.
        """
        begin, found = self.tell(), bytearray()
        while block := self.read(blocks or self.blocksize):
            before = max(0, len(found) - len(char) + 1)
            found += block
            position = found.find(char, before)
            if position >= 0:
                del found[position + len(char) :]
                self.seek(begin + len(found))
                break
        return bytes(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if self._size is None:
            return self.reader.seek(offset, whence)
        if whence == io.SEEK_END:
            offset, whence = self._size + offset, io.SEEK_SET
        return self.reader.seek(offset, whence)

    def tell(self) -> int:
        return self.reader.tell()

    def close(self) -> None:
        if not self.closed:
            self.reader.close()
        super().close()

    def __del__(self) -> None:
        # io.IOBase would close it, and so wait; a reader that is dropped cancels what it has in flight.
        pass

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.cat_file(self.path, start, end, version_id=self.version_id))

    def __reduce__(self) -> Any:
        size, version, known = self._size, self.version_id, self._known
        return _read_again, (self.fs, self.path, self.reader, self.blocksize, size, version, known)


def _read_again(
    fs: S3Attributes,
    path: str,
    reader: S3Reader,
    block_size: int,
    size: int | None,
    version_id: str | None,
    known: Known | None,
) -> S3ReadFile:
    return S3ReadFile(fs, path, reader, block_size=block_size, size=size, version_id=version_id, known=known)


def known_ranges(cache_type: str | None, cache_options: dict[str, Any] | None) -> Known | None:
    """Returns what a cache knows of the file; caches that know nothing yet are hints.

    fsspec's own has zeros in place of bytes that it does not know; here they are read.
    """
    if cache_type != "parts":
        return None
    if not cache_options or "data" not in cache_options:
        raise ConfigurationError("cache_type='parts' needs cache_options with data")
    return dict(cache_options["data"])

"""What all readers share: the contract that user code and torch rely on."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, BinaryIO

__all__ = ["S3Reader"]


if TYPE_CHECKING:
    # What torch, Pillow and others ask for in their annotations.
    class _BinaryFile(io.BufferedIOBase, BinaryIO):
        pass
else:
    _BinaryFile = io.BufferedIOBase


class S3Reader(_BinaryFile, ABC):
    """A binary file that is read from S3.

    Nothing is sent before the first read or question for the size. A reader belongs to one thread at a time
    and to the process that began to read; before the first read it can be pickled.
    """

    @property
    @abstractmethod
    def bucket(self) -> str:
        """The bucket."""

    @property
    @abstractmethod
    def key(self) -> str:
        """The key."""

    @abstractmethod
    def read(self, size: int | None = None) -> bytes:
        """Reads ``size`` bytes, fewer only at the end; ``None`` and ``-1`` read to the end."""

    @abstractmethod
    def readinto(self, buf: Any) -> int:
        """Fills a writable buffer as far as there is data and returns the number of bytes."""

    @abstractmethod
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves the position and returns it."""

    @abstractmethod
    def tell(self) -> int:
        """Returns the position."""

    @property
    def size(self) -> int:
        """The size of the object in bytes."""
        position = self.tell()
        size = self.seek(0, io.SEEK_END)
        self.seek(position)
        return size

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True; torch would copy every item otherwise."""
        return True

    def writable(self) -> bool:
        """False."""
        return False

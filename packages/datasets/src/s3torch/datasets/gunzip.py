"""Decompresses gzip from front to back, and gives out all that came before a damage.

``gzip.GzipFile`` loses it: a large read of a truncated file raises and returns nothing.
"""

from __future__ import annotations

import zlib
from typing import Any

__all__ = ["GzipStream"]

_CHUNK = 256 * 1024
_GZIP = 16 + zlib.MAX_WBITS


class GzipStream:
    """A file that reads what is compressed in another one, of one gzip member or several.

    Args:
        file: Something with ``read``.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(_GZIP)
        self._waiting = b""
        # Between two members the file may end; before the first, it is no gzip file.
        self._within = True

    def read(self, size: int) -> bytes:
        """Returns up to ``size`` bytes, none only at the end.

        Raises:
            EOFError: The file ends within a member.
            zlib.error: It is no gzip file, or damaged.
        """
        while True:
            data = self._waiting or self._file.read(_CHUNK)
            if not data:
                if self._within:
                    raise EOFError("the compressed data ends too early")
                return b""
            if self._inflate.eof:
                # Some programs pad with zeros behind the last member.
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

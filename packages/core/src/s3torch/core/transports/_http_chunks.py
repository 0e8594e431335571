"""The chunked transfer encoding of HTTP/1.1 (RFC 9112, section 7.1)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from s3torch.core.errors import S3ConnectionError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
_MAX_LINE = 16 * 1024


class ChunkedDecoder:
    """Takes a body in chunks piece by piece, as it comes, and gives what is in the chunks.

    Attributes:
        ended: Whether the last chunk and what follows it were seen.
        rest: What was taken beyond the end.
    """

    def __init__(self) -> None:
        self.ended = False
        self.rest = b""
        self._pending = b""
        # Bytes of this chunk that have not come.
        self._missing = 0
        # What comes next: a "size", "data", the line "break" behind it, or the "trailer".
        self._state = "size"

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Takes the next bytes and gives the content in them.

        Raises:
            S3ConnectionError: These are no chunks.
        """
        self._pending += data
        while not self.ended:
            if self._state == "data":
                piece, self._pending = self._pending[: self._missing], self._pending[self._missing :]
                if not piece:
                    return
                self._missing -= len(piece)
                self._state = "data" if self._missing else "break"
                yield piece
                continue
            line, found, after = self._pending.partition(b"\r\n")
            if not found:
                if len(line) > _MAX_LINE:
                    raise S3ConnectionError("the answer has a chunk without an end of its size")
                return
            self._pending = after
            self._take_line(line)
        self.rest, self._pending = self._pending, b""

    def _take_line(self, line: bytes) -> None:
        if self._state == "trailer":
            self.ended = not line
        elif self._state == "break":
            if line:
                raise S3ConnectionError("the answer has a chunk that is longer than its size")
            self._state = "size"
        else:
            size = _SIZE_LINE.fullmatch(line)
            if size is None:
                raise S3ConnectionError(f"the answer has a chunk of no size: {line[:60]!r}")
            self._missing = int(size[1], 16)
            self._state = "data" if self._missing else "trailer"

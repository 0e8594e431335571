"""How bodies go through the boto3 client: piece by piece, so that a transfer can be cancelled between."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import TruncatedError
from s3torch.core.models import GetResult
from s3torch.core.ranges import KIB, MIB
from s3torch.core.transports._http import announced_length, head_from_headers

if TYPE_CHECKING:
    from s3torch.core.ranges import ByteRange
    from s3torch.core.transports._pool import PooledTransfer

_RECEIVE = 256 * KIB
_SEND = 64 * KIB
_SENT_WHOLE = 1 * MIB


def receive(
    response: Any,
    transfer: PooledTransfer[GetResult],
    byte_range: ByteRange | None,
    room: int | None,
) -> GetResult:
    """Reads the body of a GetObject response into the buffer of the transfer, or into the result.

    Args:
        response: What the boto3 client returned.
        transfer: Whose buffer is filled.
        byte_range: What was asked for.
        room: How long the buffer is; ``None`` if there is none.
    """
    headers = response["ResponseMetadata"]["HTTPHeaders"]
    body = response["Body"]
    with body as raw:
        transfer.on_cancel(lambda: _shut_down(raw))
        length = announced_length(headers, byte_range)
        if room is not None and length is not None and length > room:
            raise TruncatedError(f"the body has {length} bytes, more than the {room} asked for")
        data = body.read() if room is None else None
        received = _receive_into(body, transfer, room) if room is not None else len(data or b"")
        transfer.on_cancel(None)
    if length is not None and received != length:
        raise TruncatedError(f"got {received} of {length} bytes")
    return GetResult(head_from_headers(headers), received, data)


def sendable(transfer: PooledTransfer[Any], size: int) -> bytes | BodyStream:
    """Makes what the boto3 client sends of the buffer of a transfer."""
    return transfer.copy() if size <= _SENT_WHOLE else BodyStream(transfer, size)


class BodyStream(io.RawIOBase):
    """The buffer of a transfer as a file.

    It gives copies of small pieces, so that a cancelled upload stops at the next one and never sends bytes
    that its caller has changed since.
    """

    def __init__(self, transfer: PooledTransfer[Any], size: int) -> None:
        super().__init__()
        self._transfer = transfer
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True: each attempt begins again."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Returns the next bytes, at most 64 KiB and at least 16 KiB if there are so many."""
        # The HTTP library asks for 16 KiB at a time, which would be a system call for each.
        self._transfer.check()
        count = min(_SEND if size < 0 or size >= 16 * KIB else size, self._size - self._position)
        piece = self._transfer.copy(self._position, self._position + count)
        self._position += count
        return piece

    def readinto(self, buffer: Any, /) -> int:
        """Fills a buffer with the next bytes: how the native signer of botocore reads."""
        piece = b"" if self._transfer.stopped else self.read(min(len(buffer), _SEND))
        buffer[: len(piece)] = piece
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves the position."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = max(0, origin[whence] + offset)
        return self._position

    def tell(self) -> int:
        """Returns the position."""
        return self._position


def _receive_into(body: Any, transfer: PooledTransfer[GetResult], room: int) -> int:
    received = 0
    while chunk := body.read(_RECEIVE):
        if received + len(chunk) > room:
            raise TruncatedError(f"the body has more than the {room} bytes asked for")
        transfer.fill(received, chunk)
        received += len(chunk)
    return received


def _shut_down(raw: Any) -> None:
    """Wakes up the thread that reads a body; where urllib3 cannot, the thread ends at its time-out."""
    with suppress(AttributeError, OSError, RuntimeError, ValueError):
        raw.shutdown()

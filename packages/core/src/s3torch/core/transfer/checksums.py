"""Checksums as S3 writes them: the big-endian value in base64."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from s3torch.core.config import checksum_type
from s3torch.core.errors import ChecksumMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PartedChecksum", "checksum", "verify"]

# In the order in which they are verified where a server sends more than one: the fastest first.
_BYTES = {"CRC64NVME": 8, "CRC32C": 4, "CRC32": 4, "SHA256": 32}


class PartedChecksum:
    """The checksum of an object whose parts come one after the other; each byte is read once.

    Args:
        algorithm: ``"CRC64NVME"``, ``"CRC32C"``, ``"CRC32"`` or ``"SHA256"``.
    """

    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self._parts = 0
        self._crc = 0
        self._digests = hashlib.sha256()

    def add(self, part: memoryview) -> tuple[str, str]:
        """Adds a part, with the GIL free, and returns the algorithm and the part's checksum in base64."""
        raw = _raw(self._algorithm, part)
        self._parts += 1
        if checksum_type(self._algorithm) == "COMPOSITE":
            self._digests.update(raw)
        else:
            from awscrt import checksums

            combine = getattr(checksums, f"combine_{self._algorithm.lower()}")
            self._crc = combine(self._crc, int.from_bytes(raw, "big"), len(part))
        return self._algorithm, _base64(raw)

    @property
    def value(self) -> tuple[str, str]:
        """The algorithm and the checksum of all parts so far, in base64, as S3 makes it of theirs."""
        if checksum_type(self._algorithm) == "COMPOSITE":
            return self._algorithm, f"{_base64(self._digests.digest())}-{self._parts}"
        return self._algorithm, _base64(self._crc.to_bytes(_BYTES[self._algorithm], "big"))


def checksum(algorithm: str | None, data: memoryview) -> tuple[str, str] | None:
    """Returns the algorithm and the checksum of some bytes, ``None`` without an algorithm."""
    return None if algorithm is None else (algorithm, _base64(_raw(algorithm, data)))


def verify(data: memoryview, checksums: Mapping[str, str], *, bucket: str, key: str) -> None:
    """Compares the bytes of a whole object with a checksum that the server sent with them.

    Raises:
        ChecksumMismatchError: They are other bytes than were stored.
    """
    for algorithm in _BYTES:
        expected = checksums.get(algorithm)
        if expected is None:
            continue
        found = _base64(_raw(algorithm, data))
        if found != expected:
            raise ChecksumMismatchError(
                f"{algorithm} of the bytes is {found}, but {expected} was stored",
                operation="GetObject",
                bucket=bucket,
                key=key,
            )
        return


def _raw(algorithm: str, data: memoryview) -> bytes:
    if algorithm == "SHA256":
        return hashlib.sha256(data).digest()
    from awscrt import checksums

    value: int = getattr(checksums, algorithm.lower())(data)
    return value.to_bytes(_BYTES[algorithm], "big")


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")

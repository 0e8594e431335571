"""Checksums as S3 writes them: the big-endian value in base64."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from s3torch.core.errors import ChecksumMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RunningChecksum", "checksum", "verify"]

_BYTES = {"CRC64NVME": 8, "CRC32C": 4, "CRC32": 4}


class RunningChecksum:
    """The checksum of bytes that come one piece after the other.

    Args:
        algorithm: ``"CRC64NVME"``, ``"CRC32C"`` or ``"CRC32"``.
    """

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self._value = 0

    def update(self, data: memoryview) -> None:
        """Adds bytes; the GIL is free meanwhile."""
        from awscrt import checksums

        self._value = getattr(checksums, self.algorithm.lower())(data, self._value)

    def extend(self, other: RunningChecksum, length: int) -> None:
        """Adds the ``length`` bytes that another checksum was made of, without reading them again."""
        from awscrt import checksums

        combine = getattr(checksums, f"combine_{self.algorithm.lower()}")
        self._value = combine(self._value, other._value, length)

    @property
    def value(self) -> tuple[str, str]:
        """The algorithm and the checksum of all bytes so far, in base64."""
        raw = self._value.to_bytes(_BYTES[self.algorithm], "big")
        return self.algorithm, base64.b64encode(raw).decode("ascii")


def checksum(algorithm: str | None, data: memoryview) -> tuple[str, str] | None:
    """Returns the algorithm and the checksum of some bytes, ``None`` without an algorithm."""
    if algorithm is None:
        return None
    running = RunningChecksum(algorithm)
    running.update(data)
    return running.value


def verify(data: memoryview, checksums: Mapping[str, str], *, bucket: str, key: str) -> None:
    """Compares the bytes of a whole object with a checksum that the server sent with them.

    Raises:
        ChecksumMismatchError: They are other bytes than were stored.
    """
    for algorithm in _BYTES:
        expected = checksums.get(algorithm)
        if expected is None:
            continue
        found = checksum(algorithm, data)
        if found is not None and found[1] != expected:
            raise ChecksumMismatchError(
                f"{algorithm} of the bytes is {found[1]}, but {expected} was stored",
                operation="GetObject",
                bucket=bucket,
                key=key,
            )
        return

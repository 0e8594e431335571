"""Checksums as S3 writes them: the big-endian value in base64.

awscrt computes the CRCs, with the GIL free. Where it is not installed, CRC32 comes from zlib, and CRC64NVME
and CRC32C cannot be computed: an upload with the default algorithm then carries CRC32, another choice is
refused at once, and a download is verified by what can be computed, if the server sends that.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import zlib
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from s3torch.core._config import CHECKSUM_ALGORITHMS, checksum_type
from s3torch.core.errors import ChecksumMismatchError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(__name__)

# In the order in which they are verified where a server sends more than one: the fastest first.
_BYTES = {"CRC64NVME": 8, "CRC32C": 4, "CRC32": 4, "SHA256": 32}
_FALLBACK = "CRC32"


class PartedChecksum:
    """The checksum of an object whose parts come one after the other."""

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
            self._crc = _extend(self._algorithm, self._crc, part, int.from_bytes(raw, "big"))
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


def usable_algorithm(wanted: str | None) -> str | None:
    """Returns the algorithm for uploads: the one that is wanted, or CRC32 for the default without awscrt.

    Raises:
        ConfigurationError: It cannot be computed here.
    """
    if wanted is None or wanted in {"SHA256", _FALLBACK} or _is_installed():
        return wanted
    if wanted != CHECKSUM_ALGORITHMS[0]:
        raise _needs_awscrt(wanted)
    _log_fallback(wanted)
    return _FALLBACK


def verify(data: memoryview, checksums: Mapping[str, str], *, bucket: str, key: str) -> None:
    """Compares the bytes of a whole object with a checksum that the server sent with them.

    Raises:
        ChecksumMismatchError: They are other bytes than were stored.
    """
    for algorithm in _BYTES:
        expected = checksums.get(algorithm)
        if expected is None or not _is_computable(algorithm):
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


@cache
def _is_installed() -> bool:
    """Whether there is an awscrt, without importing it."""
    try:
        return find_spec("awscrt") is not None
    except ValueError:  # Somebody has blocked it.
        return False


@cache
def _crcs() -> Any:
    """Returns awscrt's checksums; ``None`` where it cannot be imported."""
    try:
        from awscrt import checksums
    except ImportError:
        return None
    return checksums


def _is_computable(algorithm: str) -> bool:
    return algorithm in {"SHA256", _FALLBACK} or _crcs() is not None


@cache
def _log_fallback(wanted: str) -> None:
    _log.debug("awscrt is not installed, so uploads carry %s instead of %s", _FALLBACK, wanted)


def _needs_awscrt(algorithm: str) -> ConfigurationError:
    return ConfigurationError(
        f"{algorithm} is computed by awscrt, which cannot be imported; pip install awscrt, or use "
        f"checksum_algorithm={_FALLBACK!r}"
    )


def _raw(algorithm: str, data: memoryview) -> bytes:
    if algorithm == "SHA256":
        return hashlib.sha256(data).digest()
    crcs = _crcs()
    if crcs is not None:
        value: int = getattr(crcs, algorithm.lower())(data)
    elif algorithm == _FALLBACK:
        value = zlib.crc32(data)
    else:
        raise _needs_awscrt(algorithm)
    return value.to_bytes(_BYTES[algorithm], "big")


def _extend(algorithm: str, crc: int, part: memoryview, crc_of_part: int) -> int:
    """Returns the CRC of all bytes so far and a part; zlib has to read the part again for that."""
    crcs = _crcs()
    if crcs is None:
        return zlib.crc32(part, crc)
    combined: int = getattr(crcs, f"combine_{algorithm.lower()}")(crc, crc_of_part, len(part))
    return combined


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")

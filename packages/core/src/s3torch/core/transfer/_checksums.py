"""Checksums as S3 writes them: the big-endian value in base64.

awscrt computes the CRCs, with the GIL free, and the fastest library there is computes CRC32. Where awscrt is
not installed, CRC64NVME and CRC32C cannot be computed: an upload with the default algorithm then carries
CRC32, another choice is refused at once, and a download is verified by what can be computed, if the server
sends that.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import platform
import zlib
from collections import deque
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core._config import CHECKSUM_ALGORITHMS, checksum_type
from s3torch.core.errors import ChecksumMismatchError, ConfigurationError
from s3torch.core.ranges import MAX_OBJECT_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

V = TypeVar("V")

_log = logging.getLogger(__name__)

# In the order in which they are verified where a server sends more than one: the fastest first.
_BYTES = {"CRC64NVME": 8, "CRC32C": 4, "CRC32": 4, "SHA256": 32}
# Those of which two, of neighbouring bytes, make that of both.
COMBINED = ("CRC64NVME", "CRC32C", "CRC32")
_FALLBACK = "CRC32"
_X86 = {"x86_64", "amd64", "i386", "i686", "x86"}
# Of CRC-32, with the bits reversed; as are 1 and x to the 8th.
_POLYNOMIAL, _ONE, _X8 = 0xEDB88320, 1 << 31, 1 << 23


class PartedChecksum:
    """The checksum of an object whose parts come one after the other."""

    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self._parts = 0
        self._crc = 0
        self._digests = hashlib.sha256()

    def add(self, part: memoryview, crc: int | None = None) -> tuple[str, str]:
        """Adds a part, with the GIL free, and returns the algorithm and the part's checksum in base64.

        Args:
            part: The bytes.
            crc: Their CRC in this algorithm, where it is known already.
        """
        self._parts += 1
        if checksum_type(self._algorithm) == "COMPOSITE":
            raw = hashlib.sha256(part).digest()
            self._digests.update(raw)
            return self._algorithm, encoded(raw)
        if crc is None:
            crc = compute_crc(self._algorithm, part)
        self.add_known(crc, len(part))
        return self._algorithm, encoded_crc(self._algorithm, crc)

    def add_known(self, crc: int, size: int) -> None:
        """Adds bytes that are elsewhere, by their CRC."""
        self._crc = combine_crcs(self._algorithm, self._crc, crc, size)

    @property
    def value(self) -> tuple[str, str]:
        """The algorithm and the checksum of all parts so far, in base64, as S3 makes it of theirs."""
        if checksum_type(self._algorithm) == "COMPOSITE":
            return self._algorithm, f"{encoded(self._digests.digest())}-{self._parts}"
        return self._algorithm, encoded_crc(self._algorithm, self._crc)


class PieceChecksums:
    """The CRCs of pieces of an object whose bytes come in order, and of what the object is sent in.

    Both are combined from what lies between the borders of either, so no byte is summed twice.

    Args:
        algorithm: One of ``COMBINED``.
        position: Where the bytes begin that come first.

    Attributes:
        algorithm: The algorithm.
        complete: Begin, end and CRC of each complete piece, in order.
    """

    def __init__(self, algorithm: str, position: int = 0) -> None:
        self.algorithm = algorithm
        self.complete: list[tuple[int, int, int]] = []
        # From each position on there are pieces of one size.
        self._sizes: deque[tuple[int, int]] = deque([(position, MAX_OBJECT_SIZE)])
        self._position = self._begin = position
        self._crc = 0

    def begin(self, position: int, size: int) -> None:
        """Begins a piece at a position that has not come yet, and another one every ``size`` bytes."""
        self._sizes.append((position, size))

    def add(self, data: memoryview) -> int:
        """Takes the bytes that follow, with the GIL free, and returns their CRC."""
        whole = done = 0
        while done < len(data):
            border = self._next_border()
            count = min(border - self._position, len(data) - done)
            crc = compute_crc(self.algorithm, data[done : done + count])
            whole = combine_crcs(self.algorithm, whole, crc, count) if done else crc
            is_first = self._position == self._begin
            self._crc = crc if is_first else combine_crcs(self.algorithm, self._crc, crc, count)
            self._position += count
            done += count
            if self._position == border:
                self.finish()
        return whole

    def skip(self, size: int) -> None:
        """Passes over bytes that are elsewhere, in no piece."""
        self.finish()
        self._position += size
        self._begin = self._position

    def finish(self) -> None:
        """Ends the last piece."""
        if self._begin < self._position:
            self.complete.append((self._begin, self._position, self._crc))
            self._begin = self._position

    def _next_border(self) -> int:
        while len(self._sizes) > 1 and self._sizes[1][0] <= self._position:
            self._sizes.popleft()
        begin, size = self._sizes[0]
        border = self._position + size - (self._position - begin) % size
        return min(border, self._sizes[1][0]) if len(self._sizes) > 1 else border


def piece_algorithm(preferred: str | None = None) -> str:
    """Returns the algorithm for CRCs of pieces: the one that is preferred, or the best that is here."""
    usable = [name for name in COMBINED if is_computable(name)]
    return preferred if preferred in usable else usable[0]


def checksum(algorithm: str | None, data: memoryview, crc: int | None = None) -> tuple[str, str] | None:
    """Returns the algorithm and the checksum of some bytes, ``None`` without an algorithm.

    ``crc`` is their CRC in this algorithm, where it is known already.
    """
    if algorithm is None:
        return None
    return algorithm, _checksum(algorithm, data) if crc is None else encoded_crc(algorithm, crc)


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


def verify(data: memoryview, checksums: Mapping[str, str], *, bucket: str, key: str) -> bool:
    """Compares the bytes of a whole object with a checksum that the server sent with them.

    Returns:
        Whether there was one with which that could be done.

    Raises:
        ChecksumMismatchError: They are other bytes than were stored.
    """
    for algorithm in _BYTES:
        expected = checksums.get(algorithm)
        if expected is None or "-" in expected or not is_computable(algorithm):
            continue
        found = _checksum(algorithm, data)
        if found != expected:
            raise mismatch(algorithm, found, expected, bucket=bucket, key=key)
        return True
    return False


def mismatch(algorithm: str, found: str, expected: str, *, bucket: str, key: str) -> ChecksumMismatchError:
    """Returns the error for bytes that are not those that were stored."""
    return ChecksumMismatchError(
        f"{algorithm} of the bytes is {found}, but {expected} was stored",
        operation="GetObject",
        bucket=bucket,
        key=key,
    )


def is_computable(algorithm: str) -> bool:
    """Whether this checksum can be computed here."""
    return algorithm in {"SHA256", _FALLBACK} or _crcs() is not None


def compute_crc(algorithm: str, data: memoryview) -> int:
    """Returns a CRC, computed with the GIL free."""
    if algorithm == _FALLBACK:
        return _crc32()(data)
    crcs = _crcs()
    if crcs is None:
        raise _needs_awscrt(algorithm)
    value: int = getattr(crcs, algorithm.lower())(data)
    return value


def combine_crcs(algorithm: str, first: int, second: int, size: int) -> int:
    """Returns the CRC of some bytes and those that follow, from the CRC of each.

    Args:
        algorithm: One of ``COMBINED``.
        first: The CRC of the bytes that come first.
        second: That of those that follow.
        size: How many these are.
    """
    crcs = _crcs()
    if crcs is not None:
        combined: int = getattr(crcs, f"combine_{algorithm.lower()}")(first, second, size)
        return combined
    # The first bytes count as much as x to the power of the bits that follow.
    factor, power = _ONE, _X8
    while size:
        if size & 1:
            factor = _times(power, factor)
        power = _times(power, power)
        size >>= 1
    return _times(factor, first) ^ second


def _times(a: int, b: int) -> int:
    """Multiplies two polynomials modulo that of CRC-32."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def raw_crc(algorithm: str, crc: int) -> bytes:
    """Returns the bytes of a CRC in the order in which S3 has them."""
    return crc.to_bytes(_BYTES[algorithm], "big")


def encoded_crc(algorithm: str, crc: int) -> str:
    """Returns a CRC as S3 writes it."""
    return encoded(raw_crc(algorithm, crc))


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


@cache
def _crc32() -> Callable[[memoryview], int]:
    """Returns the fastest function there is.

    Those of isal and zlib-ng, where they are installed, take as long as the memory does. awscrt has
    instructions for it on ARM; on x86, measured with 0.38, zlib is faster.
    """
    for name in ("isal.isal_zlib", "zlib_ng.zlib_ng"):
        with suppress(ImportError):
            found: Callable[[memoryview], int] = import_module(name).crc32
            return found
    crcs = _crcs()
    return zlib.crc32 if crcs is None or platform.machine().lower() in _X86 else crcs.crc32


@cache
def _log_fallback(wanted: str) -> None:
    _log.debug("awscrt is not installed, so uploads carry %s instead of %s", _FALLBACK, wanted)


def _needs_awscrt(algorithm: str) -> ConfigurationError:
    return ConfigurationError(
        f"{algorithm} is computed by awscrt, which cannot be imported; pip install awscrt, or use "
        f"checksum_algorithm={_FALLBACK!r}"
    )


def _checksum(algorithm: str, data: memoryview) -> str:
    if algorithm == "SHA256":
        return encoded(hashlib.sha256(data).digest())
    return encoded_crc(algorithm, compute_crc(algorithm, data))


def encoded(raw: bytes) -> str:
    """Returns a checksum as S3 writes it."""
    return base64.b64encode(raw).decode("ascii")


def read_again(read: Callable[[], V]) -> V:
    """Calls what reads all of an object, and once more if the bytes do not have the checksum of the store.

    What flipped on the way is right the next time. Who hands bytes out before the last has come cannot do so.

    Raises:
        ChecksumMismatchError: The object was fetched twice and is not what was stored.
    """
    try:
        return read()
    except ChecksumMismatchError as exc:
        if exc.attempts:  # It was fetched twice already.
            raise
    try:
        return read()
    except ChecksumMismatchError as exc:
        exc.attempts = 2
        raise

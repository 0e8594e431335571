"""What is in a bucket in memory, and the rules of S3 that its operations follow."""

from __future__ import annotations

import base64
import hashlib
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError, S3Error, error_from_response
from s3torch.core.models import HeadObjectResult, ObjectInfo, PutOptions
from s3torch.core.ranges import MIN_PART_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from s3torch.core.models import CompletedPart, MultipartUpload

_MAX_KEY_BYTES = 1024
_STANDARD = "STANDARD"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it was stored."""

    data: bytes
    etag: str
    last_modified: int
    options: PutOptions
    checksums: Mapping[str, str] = field(default_factory=dict)

    @property
    def head(self) -> HeadObjectResult:
        """What S3 tells of the object."""
        storage_class = self.options.storage_class
        return HeadObjectResult(
            etag=self.etag,
            size=len(self.data),
            last_modified=self.last_modified,
            storage_class=None if storage_class == _STANDARD else storage_class,
            content_type=self.options.content_type or "binary/octet-stream",
            metadata={name.lower(): value for name, value in self.options.metadata.items()},
            checksums=self.checksums,
        )

    def info(self, key: str) -> ObjectInfo:
        """The entry of the object in a listing."""
        storage_class = self.options.storage_class or _STANDARD
        return ObjectInfo(key, self.etag, len(self.data), self.last_modified, storage_class)


@dataclass(slots=True)
class Upload:
    key: str
    options: PutOptions
    parts: dict[int, bytes] = field(default_factory=dict)


class Bucket:
    def __init__(self) -> None:
        self.objects: dict[str, StoredObject] = {}
        self.uploads: dict[str, Upload] = {}
        self._keys: list[str] | None = []

    @property
    def keys(self) -> list[str]:
        """All keys; the order of code points is that of their UTF-8 bytes."""
        if self._keys is None:
            self._keys = sorted(self.objects)
        return self._keys

    def set(self, key: str, stored: StoredObject) -> None:
        if key not in self.objects:
            self._keys = None
        self.objects[key] = stored

    def remove(self, key: str) -> None:
        if self.objects.pop(key, None) is not None:
            self._keys = None


def refusal(operation: str, bucket: str, key: str | None, status: int, code: str) -> S3Error:
    """Makes the error of a request that S3 would refuse with this status and code."""
    return error_from_response(operation=operation, bucket=bucket, key=key, status=status, code=code)


def md5_of(data: bytes) -> bytes:
    """Computes what the ETag of an object shows."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def check_key(operation: str, bucket: str, key: str) -> None:
    """Refuses keys that S3 does not take."""
    if not key:
        raise ConfigurationError("Key should be specified", operation=operation, bucket=bucket)
    if len(key.encode()) > _MAX_KEY_BYTES:
        raise refusal(operation, bucket, key, 400, "KeyTooLongError")


def check_checksum(
    operation: str, bucket: str, key: str, data: bytes, checksum: tuple[str, str] | None
) -> None:
    """Refuses data that have another checksum than the request says."""
    if checksum is None:
        return
    from awscrt import checksums

    functions: dict[str, tuple[Any, int]] = {
        "CRC64NVME": (checksums.crc64nvme, 8),
        "CRC32C": (checksums.crc32c, 4),
        "CRC32": (checksums.crc32, 4),
    }
    algorithm, told = checksum
    if algorithm not in functions:
        raise refusal(operation, bucket, key, 400, "InvalidRequest")
    function, width = functions[algorithm]
    if base64.b64encode(function(data).to_bytes(width, "big")).decode() != told:
        raise refusal(operation, bucket, key, 400, "BadDigest")


def check_conditions(
    operation: str, bucket: str, key: str, present: StoredObject | None, options: PutOptions
) -> None:
    """Refuses to store an object where the conditions of the options do not hold."""
    if options.if_none_match is not None and present is not None:
        raise refusal(operation, bucket, key, 412, "PreconditionFailed")
    if options.if_match is None:
        return
    if present is None:
        raise refusal(operation, bucket, key, 404, "NoSuchKey")
    if not same_etag(options.if_match, present.etag):
        raise refusal(operation, bucket, key, 412, "PreconditionFailed")


def same_etag(wanted: str, etag: str) -> bool:
    """Compares ETags, with or without their quotes."""
    return wanted == "*" or wanted.strip('"') == etag.strip('"')


def join_parts(
    upload: MultipartUpload, parts: Sequence[CompletedPart], bodies: Sequence[bytes | None]
) -> tuple[bytes, bytes]:
    """Puts an object together.

    Args:
        upload: The upload.
        parts: The parts that the completion names.
        bodies: What was stored under their numbers.

    Returns:
        The bytes of the object, and the MD5 sums of its parts one after the other.
    """
    digests = []

    def refuse(code: str) -> S3Error:
        return refusal("CompleteMultipartUpload", upload.bucket, upload.key, 400, code)

    if not parts:
        raise refuse("MalformedXML")
    if [part.number for part in parts] != sorted({part.number for part in parts}):
        raise refuse("InvalidPartOrder")
    whole = []
    for part, body in zip(parts, bodies, strict=True):
        digest = md5_of(body) if body is not None else b""
        if body is None or not same_etag(part.etag, digest.hex()):
            raise refuse("InvalidPart")
        if len(body) < MIN_PART_SIZE and part is not parts[-1]:
            raise refuse("EntityTooSmall")
        digests.append(digest)
        whole.append(body)
    return b"".join(whole), b"".join(digests)


def list_entries(keys: Sequence[str], prefix: str, delimiter: str, after: str) -> Iterator[tuple[str, bool]]:
    """Yields the keys and common prefixes behind ``after``, and whether each is a common prefix."""
    position = max(bisect_left(keys, prefix), bisect_right(keys, after))
    while position < len(keys) and keys[position].startswith(prefix):
        key = keys[position]
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            yield key, False
            position += 1
            continue
        common = key[: cut + len(delimiter)]
        if common > after:
            yield common, True
        # All keys below the common prefix are neighbours.
        position = bisect_left(keys, 1, lo=position, key=lambda name: 0 if name.startswith(common) else 1)

"""A bucket in memory, its objects and their versions, and the rules of S3 that operations on it follow."""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError, S3Error, error_from_response
from s3torch.core.models import HeadObjectResult, ObjectInfo, ObjectVersion, PutOptions
from s3torch.core.ranges import MIN_PART_SIZE
from s3torch.core.requests._request import same_etag
from s3torch.core.requests._writes import http_date

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from s3torch.core.models import CompletedPart, MultipartUpload

_STANDARD = "STANDARD"
# What S3 calls the version of what was stored while the bucket kept none.
UNVERSIONED = "null"
_MAX_KEY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it was stored.

    Attributes:
        data: The bytes.
        etag: The ETag with its quotes.
        last_modified: Seconds since 1970.
        options: How it was stored.
        checksums: Checksums by algorithm.
        customer_key: The key that it was stored with, if any (SSE-C).
        version_id: The version, in a bucket that keeps versions.
    """

    data: bytes
    etag: str
    last_modified: int
    options: PutOptions
    checksums: Mapping[str, str] = field(default_factory=dict)
    customer_key: bytes | None = field(default=None, repr=False)
    version_id: str | None = None

    @property
    def head(self) -> HeadObjectResult:
        """What S3 tells of the object."""
        options = self.options
        encryption = options.server_side_encryption
        return HeadObjectResult(
            etag=self.etag,
            size=len(self.data),
            last_modified=self.last_modified,
            storage_class=None if options.storage_class == _STANDARD else options.storage_class,
            version_id=self.version_id,
            content_type=options.content_type or "binary/octet-stream",
            metadata={name.lower(): value for name, value in options.metadata.items()},
            checksums=self.checksums,
            cache_control=options.cache_control,
            content_disposition=options.content_disposition,
            content_encoding=options.content_encoding,
            content_language=options.content_language,
            expires=http_date(options.expires),
            # S3 encrypts what nobody asks it to encrypt otherwise.
            server_side_encryption=encryption or ("AES256" if self.customer_key is None else None),
            kms_key_id=options.kms_key_id,
            tag_count=len(options.tags),
        )

    def info(self, key: str) -> ObjectInfo:
        """The entry of the object in a listing."""
        storage_class = self.options.storage_class or _STANDARD
        return ObjectInfo(key, self.etag, len(self.data), self.last_modified, storage_class)


@dataclass(frozen=True, slots=True)
class _Version:
    version_id: str
    last_modified: int
    # None where the key was deleted.
    stored: StoredObject | None


@dataclass(slots=True)
class Upload:
    """A multipart upload in progress."""

    key: str
    options: PutOptions
    customer_key: bytes | None = None
    initiated: int = field(default_factory=lambda: int(time.time()))
    parts: dict[int, bytes] = field(default_factory=dict)
    checksums: dict[int, dict[str, str]] = field(default_factory=dict)


class Bucket:
    """What is in one bucket.

    Args:
        keeps_versions: Whether what is replaced or deleted stays as an older version.
    """

    def __init__(self, *, keeps_versions: bool = False) -> None:
        self.objects: dict[str, StoredObject] = {}
        self.uploads: dict[str, Upload] = {}
        self.keeps_versions = keeps_versions
        # Of each key the latest is first.
        self._versions: dict[str, list[_Version]] = {}
        self._keys: list[str] | None = []

    @property
    def keys(self) -> list[str]:
        """All keys; the order of code points is that of their UTF-8 bytes."""
        if self._keys is None:
            self._keys = sorted(self.objects)
        return self._keys

    def find(self, key: str, version_id: str | None = None) -> StoredObject | None:
        """Returns an object, or one version of it, if it is there."""
        if version_id is None:
            return self.objects.get(key)
        found = (one.stored for one in self._versions.get(key, ()) if one.version_id == version_id)
        return next(found, None)

    def set(self, key: str, stored: StoredObject) -> StoredObject:
        """Stores an object and returns it with its version."""
        if self.keeps_versions:
            stored = replace(stored, version_id=uuid.uuid4().hex)
        self._add(key, _Version(stored.version_id or UNVERSIONED, stored.last_modified, stored))
        return stored

    def tag(self, key: str, tags: Mapping[str, str], version_id: str | None = None) -> bool:
        """Replaces the tags of an object, or of one version of it; whether it is there."""
        versions = self._versions.get(key, [])
        for index, one in enumerate(versions):
            if one.stored is not None and version_id in {None, one.version_id}:
                stored = replace(one.stored, options=replace(one.stored.options, tags=dict(tags)))
                self._keep(key, [*versions[:index], replace(one, stored=stored), *versions[index + 1 :]])
                return True
            if version_id is None:
                break
        return False

    def remove(self, key: str) -> None:
        """Deletes an object, with a marker where versions are kept."""
        if self.keeps_versions:
            self._add(key, _Version(uuid.uuid4().hex, int(time.time()), None))
        else:
            self.remove_version(key, UNVERSIONED)

    def remove_version(self, key: str, version_id: str) -> None:
        """Deletes a version or a marker for good; a missing one is no error."""
        kept = [one for one in self._versions.get(key, ()) if one.version_id != version_id]
        self._keep(key, kept)

    def history(self) -> Iterator[ObjectVersion]:
        """Yields all versions, by key, the latest of each first."""
        for key in sorted(self._versions):
            for position, one in enumerate(self._versions[key]):
                yield _told(key, one, is_latest=position == 0)

    def _add(self, key: str, version: _Version) -> None:
        older = self._versions.get(key, []) if self.keeps_versions else []
        self._keep(key, [version, *older])

    def _keep(self, key: str, versions: list[_Version]) -> None:
        self._versions[key] = versions
        latest = versions[0].stored if versions else None
        if not versions:
            del self._versions[key]
        if (latest is None) == (key in self.objects):
            self._keys = None
        if latest is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = latest


def _told(key: str, one: _Version, *, is_latest: bool) -> ObjectVersion:
    if one.stored is None:
        return ObjectVersion(key, one.version_id, is_latest, one.last_modified, is_delete_marker=True)
    info = one.stored.info(key)
    return ObjectVersion(
        key, one.version_id, is_latest, info.last_modified, info.etag, info.size, info.storage_class
    )


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

    def sha256(data: bytes) -> int:
        return int.from_bytes(hashlib.sha256(data).digest(), "big")

    functions: dict[str, tuple[Any, int]] = {
        "SHA256": (sha256, 32),
        "CRC64NVME": (checksums.crc64nvme, 8),
        "CRC32C": (checksums.crc32c, 4),
        "CRC32": (checksums.crc32, 4),
    }
    algorithm, told = checksum
    if algorithm not in functions:
        raise refusal(operation, bucket, key, 400, "InvalidRequest")
    if "-" in told:  # It is one of the parts' checksums, which were checked.
        return
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
    if options.if_match != "*" and not same_etag(options.if_match, present.etag):
        raise refusal(operation, bucket, key, 412, "PreconditionFailed")


def check_customer_key(
    operation: str, bucket: str, key: str, stored: StoredObject, customer_key: bytes | None
) -> None:
    """Refuses an object that was stored with another key of the customer, or with none."""
    if stored.customer_key == customer_key:
        return
    if stored.customer_key is None or customer_key is None:
        raise refusal(operation, bucket, key, 400, "InvalidRequest")
    raise refusal(operation, bucket, key, 403, "AccessDenied")


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


def versions_behind(
    history: Sequence[ObjectVersion], prefix: str, delimiter: str, marker: tuple[str, str] | None
) -> Iterator[tuple[ObjectVersion, str | None]]:
    """Yields the versions behind a marker, and the common prefix that stands in for each, if one does."""
    passed = marker is None
    for one in history:
        if not passed and marker is not None:
            folded = not marker[1] and one.key.startswith(marker[0])
            passed = one.key > marker[0] and not folded
            if (one.key, one.version_id) == marker:
                passed = True
                continue
        if not passed or not one.key.startswith(prefix):
            continue
        cut = one.key.find(delimiter, len(prefix)) if delimiter else -1
        yield one, None if cut < 0 else one.key[: cut + len(delimiter)]


def options_of_copy(source: PutOptions, chosen: PutOptions, *, described: bool) -> PutOptions:
    """Returns how a copy is stored: what describes the content goes along unless it is ``described`` anew."""
    described_by = chosen if described else source
    return replace(
        described_by,
        storage_class=chosen.storage_class,
        acl=chosen.acl,
        tags=chosen.tags or source.tags,
        server_side_encryption=chosen.server_side_encryption,
        kms_key_id=chosen.kms_key_id,
        kms_encryption_context=chosen.kms_encryption_context,
        bucket_key=chosen.bucket_key,
    )

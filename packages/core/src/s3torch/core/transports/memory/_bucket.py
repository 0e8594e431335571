"""A bucket in memory: the objects that are there now, and the versions before them where they are kept."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from s3torch.core.models import HeadObjectResult, ObjectInfo, ObjectVersion, PutOptions
from s3torch.core.requests._headers import http_date

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_STANDARD = "STANDARD"
# What S3 calls the version of what was stored while the bucket kept none.
UNVERSIONED = "null"


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

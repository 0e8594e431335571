"""A store of objects in the memory of this process, with the semantics of S3."""

from __future__ import annotations

import os
import threading
import time
import uuid
from typing import TYPE_CHECKING

from s3torch.core.errors import ConfigurationError
from s3torch.core.models import (
    CompletedPart,
    ListObjectResult,
    ListUploadsResult,
    ListVersionsResult,
    MultipartUpload,
    ObjectInfo,
    ObjectVersion,
    PutOptions,
    PutResult,
    UploadInfo,
)
from s3torch.core.requests import StoredPart
from s3torch.core.requests._request import same_etag
from s3torch.core.transports.memory._bucket import (
    Bucket,
    StoredObject,
    Upload,
    check_checksum,
    check_conditions,
    check_customer_key,
    check_key,
    join_parts,
    list_entries,
    md5_of,
    refusal,
    versions_behind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_MAX_PAGE = 1000

# One lock for all stores, so that it can be held while this process forks: the child then finds them whole.
_lock = threading.RLock()


class MemoryStore:
    """Buckets and objects in the memory of this process; may be shared by threads.

    Clients with ``transport="memory"`` and the same endpoint in their configuration see the same store, which
    ``MemoryStore.at`` returns. A forked child begins with a copy of what was there, a spawned process with
    nothing; later changes stay in the process that made them.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}

    @classmethod
    def at(cls, endpoint: str | None = None) -> MemoryStore:
        """Returns the store of an endpoint, which is only a name here; ``None`` names the default store."""
        with _lock:
            return _stores.setdefault(_name(endpoint), cls())

    @classmethod
    def forget(cls, endpoint: str | None = None) -> None:
        """Drops the store of an endpoint; clients that were created before keep it."""
        with _lock:
            _stores.pop(_name(endpoint), None)

    def create_bucket(self, bucket: str, *, keeps_versions: bool = False) -> None:
        """Makes an empty bucket; one that is there stays as it is."""
        if not bucket:
            raise ConfigurationError("Bucket should be specified")
        with _lock:
            self._buckets.setdefault(bucket, Bucket(keeps_versions=keeps_versions))

    def delete_bucket(self, bucket: str) -> None:
        """Drops a bucket with everything in it; a missing one is no error."""
        with _lock:
            self._buckets.pop(bucket, None)

    def buckets(self) -> list[str]:
        """Lists the names of the buckets."""
        with _lock:
            return sorted(self._buckets)

    def get(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        customer_key: bytes | None = None,
        operation: str = "GetObject",
    ) -> StoredObject:
        """Returns an object, or one version of it.

        Raises:
            NotFoundError: There is no such object, version or bucket.
        """
        with _lock:
            stored = self._bucket(operation, bucket, key).find(key, version_id)
        if stored is None:
            code = "NoSuchKey" if version_id is None else "NoSuchVersion"
            raise refusal(operation, bucket, key, 404, code)
        check_customer_key(operation, bucket, key, stored, customer_key)
        return stored

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        options: PutOptions | None = None,
        checksum: tuple[str, str] | None = None,
        customer_key: bytes | None = None,
    ) -> PutResult:
        """Stores an object.

        Raises:
            PreconditionFailedError: A condition of the options does not hold.
            ChecksumMismatchError: The data do not have this checksum.
        """
        operation = "PutObject"
        with _lock:
            self._bucket(operation, bucket, key)
        check_key(operation, bucket, key)
        check_checksum(operation, bucket, key, data, checksum)
        chosen = options or PutOptions()
        checksums = {} if checksum is None else {checksum[0]: checksum[1]}
        stored = _new_object(data, chosen, checksums=checksums, customer_key=customer_key)
        return self._publish(operation, bucket, key, stored, chosen)

    def set_tags(self, bucket: str, key: str, tags: Mapping[str, str], *, version_id: str | None) -> None:
        """Replaces the tags of an object, or of one version of it."""
        operation = "PutObjectTagging"
        with _lock:
            held = self._bucket(operation, bucket, key)
            if not held.tag(key, tags, version_id):
                raise refusal(operation, bucket, key, 404, "NoSuchKey")

    def list_objects(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        max_keys: int = _MAX_PAGE,
        after: str = "",
    ) -> ListObjectResult:
        """Lists one page of the keys behind ``after`` in the order of their UTF-8 bytes.

        The continuation token is the last key or common prefix of the page, to be given as ``after``.
        """
        infos: list[ObjectInfo] = []
        prefixes: list[str] = []
        last = ""
        with _lock:
            held = self._bucket("ListObjectsV2", bucket)
            for name, is_prefix in list_entries(held.keys, prefix, delimiter, after):
                if len(infos) + len(prefixes) >= min(max_keys, _MAX_PAGE):
                    return ListObjectResult(infos, prefixes, last or None)
                if is_prefix:
                    prefixes.append(name)
                else:
                    infos.append(held.objects[name].info(name))
                last = name
        return ListObjectResult(infos, prefixes)

    def list_versions(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        max_keys: int = _MAX_PAGE,
        marker: tuple[str, str] | None = None,
    ) -> ListVersionsResult:
        """Lists one page of versions; the marker is the last key and version of the page before."""
        versions: list[ObjectVersion] = []
        prefixes: list[str] = []
        last: tuple[str, str] = ("", "")
        with _lock:
            history = list(self._bucket("ListObjectVersions", bucket).history())
        for one, common in versions_behind(history, prefix, delimiter, marker):
            if common in prefixes:
                continue
            if len(versions) + len(prefixes) >= min(max_keys, _MAX_PAGE):
                return ListVersionsResult(versions, prefixes, last)
            if common is None:
                versions.append(one)
                last = (one.key, one.version_id)
            else:
                prefixes.append(common)
                last = (common, "")
        return ListVersionsResult(versions, prefixes)

    def delete(
        self, bucket: str, key: str, *, version_id: str | None = None, operation: str = "DeleteObject"
    ) -> None:
        """Deletes an object, or one version of it for good; a missing one is no error."""
        with _lock:
            held = self._bucket(operation, bucket, key)
            if version_id is None:
                held.remove(key)
            else:
                held.remove_version(key, version_id)

    def copy(
        self,
        src_bucket: str,
        src_key: str,
        dst_bucket: str,
        dst_key: str,
        *,
        options: Callable[[PutOptions], PutOptions],
        conditions: PutOptions,
        version_id: str | None = None,
        if_match: str | None = None,
        customer_key: bytes | None = None,
    ) -> PutResult:
        """Copies an object; ``options`` makes those of the copy from those of the source."""
        operation = "CopyObject"
        source = self.get(
            src_bucket, src_key, version_id=version_id, customer_key=customer_key, operation=operation
        )
        if if_match is not None and not same_etag(if_match, source.etag):
            raise refusal(operation, src_bucket, src_key, 412, "PreconditionFailed")
        check_key(operation, dst_bucket, dst_key)
        copied = _new_object(
            source.data,
            options(source.options),
            checksums=source.checksums,
            customer_key=customer_key,
        )
        return self._publish(operation, dst_bucket, dst_key, copied, conditions)

    def create_upload(
        self, bucket: str, key: str, *, options: PutOptions, customer_key: bytes | None = None
    ) -> MultipartUpload:
        """Begins a multipart upload."""
        check_key("CreateMultipartUpload", bucket, key)
        upload = MultipartUpload(bucket, key, uuid.uuid4().hex)
        with _lock:
            held = self._bucket("CreateMultipartUpload", bucket, key)
            held.uploads[upload.upload_id] = Upload(key, options, customer_key)
        return upload

    def put_part(
        self,
        upload: MultipartUpload,
        number: int,
        data: bytes,
        *,
        checksum: tuple[str, str] | None = None,
    ) -> CompletedPart:
        """Stores a part of a multipart upload."""
        self._upload("UploadPart", upload)
        check_checksum("UploadPart", upload.bucket, upload.key, data, checksum)
        with _lock:
            held = self._upload("UploadPart", upload)
            held.parts[number] = data
            held.checksums[number] = {} if checksum is None else {checksum[0]: checksum[1]}
        return CompletedPart(number, f'"{md5_of(data).hex()}"', checksum and checksum[1])

    def list_parts(self, upload: MultipartUpload) -> list[StoredPart]:
        """Lists the parts of a multipart upload."""
        with _lock:
            held = self._upload("ListParts", upload)
            parts, checksums = dict(held.parts), dict(held.checksums)
        return [
            StoredPart(number, len(parts[number]), f'"{md5_of(parts[number]).hex()}"', checksums[number])
            for number in sorted(parts)
        ]

    def complete_upload(
        self,
        upload: MultipartUpload,
        parts: Sequence[CompletedPart],
        *,
        options: PutOptions | None = None,
        checksum: tuple[str, str] | None = None,
    ) -> PutResult:
        """Makes an object of the parts of a multipart upload."""
        operation, bucket, key = "CompleteMultipartUpload", upload.bucket, upload.key
        with _lock:
            held = self._upload(operation, upload)
            bodies = [held.parts.get(part.number) for part in parts]
        data, digests = join_parts(upload, parts, bodies)
        check_checksum(operation, bucket, key, data, checksum)
        etag = f'"{md5_of(digests).hex()}-{len(parts)}"'
        with _lock:
            self._upload(operation, upload)
            checksums = {} if checksum is None else {checksum[0]: checksum[1]}
            stored = _new_object(
                data, held.options, etag=etag, checksums=checksums, customer_key=held.customer_key
            )
            result = self._publish(operation, bucket, key, stored, options or PutOptions())
            del self._bucket(operation, bucket, key).uploads[upload.upload_id]
        return result

    def abort_upload(self, upload: MultipartUpload) -> None:
        """Drops a multipart upload; a missing one is no error."""
        with _lock:
            held = self._bucket("AbortMultipartUpload", upload.bucket, upload.key)
            held.uploads.pop(upload.upload_id, None)

    def uploads(self, bucket: str) -> list[MultipartUpload]:
        """Lists the multipart uploads in progress."""
        page = self.list_uploads(bucket, max_uploads=None)
        return [MultipartUpload(bucket, one.key, one.upload_id) for one in page.uploads]

    def list_uploads(
        self,
        bucket: str,
        *,
        prefix: str = "",
        max_uploads: int | None = _MAX_PAGE,
        marker: tuple[str, str] | None = None,
    ) -> ListUploadsResult:
        """Lists one page of the multipart uploads in progress, by key and id."""
        with _lock:
            held = self._bucket("ListMultipartUploads", bucket).uploads
            found = [
                UploadInfo(one.key, upload_id, one.initiated, one.options.storage_class or "STANDARD")
                for upload_id, one in held.items()
                if one.key.startswith(prefix) and (marker is None or (one.key, upload_id) > marker)
            ]
        found.sort(key=lambda one: (one.key, one.upload_id))
        page = found[:max_uploads]
        return ListUploadsResult(page, (page[-1].key, page[-1].upload_id) if len(page) < len(found) else None)

    def _publish(
        self, operation: str, bucket: str, key: str, stored: StoredObject, conditions: PutOptions
    ) -> PutResult:
        with _lock:
            held = self._bucket(operation, bucket, key)
            check_conditions(operation, bucket, key, held.objects.get(key), conditions)
            stored = held.set(key, stored)
        return PutResult(stored.etag, stored.version_id)

    def _bucket(self, operation: str, bucket: str, key: str | None = None) -> Bucket:
        held = self._buckets.get(bucket)
        if held is None:
            raise refusal(operation, bucket, key, 404, "NoSuchBucket")
        return held

    def _upload(self, operation: str, upload: MultipartUpload) -> Upload:
        uploads = self._bucket(operation, upload.bucket, upload.key).uploads
        held = uploads.get(upload.upload_id)
        if held is None or held.key != upload.key:
            raise refusal(operation, upload.bucket, upload.key, 404, "NoSuchUpload")
        return held


def _new_object(
    data: bytes,
    options: PutOptions,
    *,
    etag: str | None = None,
    checksums: Mapping[str, str],
    customer_key: bytes | None,
) -> StoredObject:
    etag = etag or f'"{md5_of(data).hex()}"'
    return StoredObject(data, etag, int(time.time()), options, checksums, customer_key)


_stores: dict[str, MemoryStore] = {}


def _name(endpoint: str | None) -> str:
    return (endpoint or "").rstrip("/")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

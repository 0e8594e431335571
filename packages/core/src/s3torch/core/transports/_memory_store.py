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
    MultipartUpload,
    ObjectInfo,
    PutOptions,
    PutResult,
)
from s3torch.core.transports._memory_rules import (
    Bucket,
    StoredObject,
    Upload,
    check_checksum,
    check_conditions,
    check_key,
    join_parts,
    list_entries,
    md5_of,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

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

    def create_bucket(self, bucket: str) -> None:
        """Makes an empty bucket; one that is there stays as it is."""
        if not bucket:
            raise ConfigurationError("Bucket should be specified")
        with _lock:
            self._buckets.setdefault(bucket, Bucket())

    def delete_bucket(self, bucket: str) -> None:
        """Drops a bucket with everything in it; a missing one is no error."""
        with _lock:
            self._buckets.pop(bucket, None)

    def buckets(self) -> list[str]:
        """Lists the names of the buckets."""
        with _lock:
            return sorted(self._buckets)

    def get(self, bucket: str, key: str, *, operation: str = "GetObject") -> StoredObject:
        """Returns an object.

        Raises:
            NotFoundError: There is no such object or bucket.
        """
        with _lock:
            stored = self._bucket(operation, bucket, key).objects.get(key)
        if stored is None:
            raise refusal(operation, bucket, key, 404, "NoSuchKey")
        return stored

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        options: PutOptions | None = None,
        checksum: tuple[str, str] | None = None,
    ) -> PutResult:
        """Stores an object.

        Raises:
            PreconditionFailedError: A condition of the options does not hold.
            ChecksumMismatchError: The data do not have this checksum.
        """
        with _lock:
            self._bucket("PutObject", bucket, key)
        check_key("PutObject", bucket, key)
        check_checksum("PutObject", bucket, key, data, checksum)
        etag = f'"{md5_of(data).hex()}"'
        return self._publish("PutObject", bucket, key, data, etag, options, options, checksum)

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

    def delete(self, bucket: str, key: str, *, operation: str = "DeleteObject") -> None:
        """Deletes an object; a missing one is no error."""
        with _lock:
            self._bucket(operation, bucket, key).remove(key)

    def copy(self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str) -> None:
        """Copies an object with its metadata."""
        source = self.get(src_bucket, src_key, operation="CopyObject")
        check_key("CopyObject", dst_bucket, dst_key)
        copied = StoredObject(
            source.data,
            f'"{md5_of(source.data).hex()}"',
            int(time.time()),
            source.options,
            source.checksums,
        )
        with _lock:
            self._bucket("CopyObject", dst_bucket, dst_key).set(dst_key, copied)

    def create_upload(self, bucket: str, key: str, *, options: PutOptions) -> MultipartUpload:
        """Begins a multipart upload."""
        check_key("CreateMultipartUpload", bucket, key)
        upload = MultipartUpload(bucket, key, uuid.uuid4().hex)
        with _lock:
            held = self._bucket("CreateMultipartUpload", bucket, key)
            held.uploads[upload.upload_id] = Upload(key, options)
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
            self._upload("UploadPart", upload).parts[number] = data
        return CompletedPart(number, f'"{md5_of(data).hex()}"', checksum and checksum[1])

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
            result = self._publish(operation, bucket, key, data, etag, held.options, options, checksum)
            del self._bucket(operation, bucket, key).uploads[upload.upload_id]
        return result

    def abort_upload(self, upload: MultipartUpload) -> None:
        """Drops a multipart upload; a missing one is no error."""
        with _lock:
            held = self._bucket("AbortMultipartUpload", upload.bucket, upload.key)
            held.uploads.pop(upload.upload_id, None)

    def uploads(self, bucket: str) -> list[MultipartUpload]:
        """Lists the multipart uploads in progress."""
        with _lock:
            held = self._bucket("ListMultipartUploads", bucket).uploads
            return [MultipartUpload(bucket, one.key, upload_id) for upload_id, one in held.items()]

    def _publish(
        self,
        operation: str,
        bucket: str,
        key: str,
        data: bytes,
        etag: str,
        options: PutOptions | None,
        conditions: PutOptions | None,
        checksum: tuple[str, str] | None,
    ) -> PutResult:
        checksums = {} if checksum is None else {checksum[0]: checksum[1]}
        stored = StoredObject(data, etag, int(time.time()), options or PutOptions(), checksums)
        with _lock:
            held = self._bucket(operation, bucket, key)
            check_conditions(operation, bucket, key, held.objects.get(key), conditions or PutOptions())
            held.set(key, stored)
        return PutResult(etag)

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


_stores: dict[str, MemoryStore] = {}


def _name(endpoint: str | None) -> str:
    return (endpoint or "").rstrip("/")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

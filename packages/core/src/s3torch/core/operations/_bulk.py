"""Many objects deleted, 1,000 in a request, many requests at a time; and uploads that nobody completes."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING

from s3torch.core import requests
from s3torch.core.errors import AccessDeniedError, ConfigurationError, S3Error, ServerError
from s3torch.core.models import DeleteFailure, MultipartUpload, ObjectVersion
from s3torch.core.operations._listing import ListObjectStream, ListVersionStream, Trail
from s3torch.core.transfer import run_ahead

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from s3torch.core._client import Runtime, RuntimeHandle
    from s3torch.core.models import UploadInfo
    from s3torch.core.seam import Transfer

# https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
_KEYS_PER_REQUEST = 1000
_REQUESTS = 8
_ABORTS_IN_FLIGHT = 32
# MethodNotAllowed and NotImplemented.
_NO_BATCHES = {405, 501}
_ANSWERED = range(200, 300)
# Characters that keys may have and XML may not.
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")

_log = logging.getLogger(__name__)

# A key, or a key and the version of it that is meant.
Target = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Deletion:
    """What became of objects that were to be deleted.

    Attributes:
        deleted: How many are gone now.
        failures: The others, and why.
    """

    deleted: int = 0
    failures: list[DeleteFailure] = field(default_factory=list)


def delete_many(
    handle: RuntimeHandle, bucket: str, keys: Iterable[str | ObjectVersion | tuple[str, str]]
) -> Deletion:
    """Deletes many objects or versions; see ``S3Client.delete_objects``."""
    if isinstance(keys, str | bytes):
        raise ConfigurationError(f"keys must be many keys, got {keys!r}; use delete_object for one")
    return _delete(handle, bucket, map(_target, keys))


def delete_prefix(handle: RuntimeHandle, bucket: str, prefix: str, *, versions: bool) -> Deletion:
    """Deletes all that a prefix begins; see ``S3Client.delete_prefix``."""
    if not isinstance(prefix, str) or not prefix:
        raise ConfigurationError(f"prefix must be a non-empty string, got {prefix!r}")
    if versions:
        pages = ListVersionStream(handle, bucket, prefix=prefix)
        return _delete(handle, bucket, (_target(one) for page in pages for one in page.versions))
    listing = ListObjectStream(handle, bucket, prefix=prefix)
    return _delete(handle, bucket, ((info.key, None) for page in listing for info in page.object_info))


def _delete(handle: RuntimeHandle, bucket: str, targets: Iterator[Target]) -> Deletion:
    deleted, failures = 0, []
    send = _Deleter(handle.get(), bucket)
    for count, failed in run_ahead(send, _batches(targets), workers=_REQUESTS, name="s3torch-delete"):
        deleted += count - len(failed)
        failures += failed
    return Deletion(deleted, failures)


class _Deleter:
    """Deletes a batch in one request, or one by one where the store has no request for many."""

    def __init__(self, runtime: Runtime, bucket: str) -> None:
        self._runtime = runtime
        self._bucket = bucket
        # Taken by the batch that finds out that there are no batches.
        self._one_by_one = threading.Lock()

    def __call__(self, batch: list[Target]) -> tuple[int, list[DeleteFailure]]:
        _log.debug("DeleteObjects s3://%s, %d keys", self._bucket, len(batch))
        listed = [target for target in batch if not _NO_XML.search(target[0])]
        if self._one_by_one.locked():
            listed = []
        failures: list[DeleteFailure] = []
        try:
            if listed:
                failures = self._runtime.call(requests.delete_objects(self._bucket, listed))
        except S3Error as error:
            if not _knows_no_batches(error):
                raise
            if self._one_by_one.acquire(blocking=False):
                _log.warning(
                    "Objects of s3://%s are deleted one by one, which takes longer: %s", self._bucket, error
                )
            listed = []
        # What cannot be named in a list of many goes alone in any case.
        gone = set(listed)
        failures += self._delete_each([target for target in batch if target not in gone])
        return len(batch), failures

    def _delete_each(self, targets: list[Target]) -> list[DeleteFailure]:
        def delete(target: Target) -> DeleteFailure | None:
            key, version_id = target
            try:
                self._runtime.call(requests.delete_object(self._bucket, key, version_id=version_id))
            except AccessDeniedError as error:
                return DeleteFailure(key, error.code or "AccessDenied", error.message, version_id)
            return None

        outcomes = run_ahead(delete, targets, workers=_REQUESTS, name="s3torch-delete-one")
        return [failure for failure in outcomes if failure is not None]


def _knows_no_batches(error: S3Error) -> bool:
    """Whether a store has no DeleteObjects, or not as it is asked, or does not say what it has deleted.

    To delete an object again is no error, so the objects may be deleted one by one then.
    """
    if error.status in _NO_BATCHES or error.code == "MissingContentMD5":
        return True
    return isinstance(error, ServerError) and error.status in _ANSWERED


def _batches(targets: Iterator[Target]) -> Iterator[list[Target]]:
    while batch := list(islice(targets, _KEYS_PER_REQUEST)):
        yield batch


def _target(key: object) -> Target:
    if isinstance(key, ObjectVersion):
        return key.key, key.version_id
    if isinstance(key, tuple) and len(key) == 2 and all(isinstance(part, str) for part in key):
        return key
    if not isinstance(key, str):
        raise ConfigurationError(f"expected a key, an ObjectVersion, or a key and a version, got {key!r}")
    return key, None


def list_uploads(handle: RuntimeHandle, bucket: str, prefix: str) -> Iterator[UploadInfo]:
    """Lists the multipart uploads in progress; see ``S3Client.list_multipart_uploads``."""
    marker: tuple[str, str] | None = None
    trail = Trail(bucket)
    while True:
        page = handle.call(requests.list_multipart_uploads(bucket, prefix=prefix, marker=marker))
        yield from page.uploads
        marker = trail.follow(page.next_marker)
        if marker is None:
            return


def abort_stale_uploads(
    handle: RuntimeHandle, bucket: str, prefix: str, *, older_than: timedelta
) -> list[UploadInfo]:
    """Aborts uploads that were begun long ago; see ``S3Client.abort_stale_uploads``."""
    if not isinstance(older_than, timedelta) or older_than < timedelta():
        raise ConfigurationError(f"older_than must be a timedelta of at least 0, got {older_than!r}")
    begun_before = time.time() - older_than.total_seconds()
    transport = handle.get().transport
    sweep = _Sweep()
    for upload in list_uploads(handle, bucket, prefix):
        if upload.initiated <= begun_before:
            _log.debug("AbortMultipartUpload s3://%s/%s %s", bucket, upload.key, upload.upload_id)
            multipart = MultipartUpload(bucket, upload.key, upload.upload_id)
            sweep.add(upload, transport.send(requests.abort_multipart_upload(multipart)))
    return sweep.finish()


class _Sweep:
    """The aborts in flight; one that fails does not keep others from being made."""

    def __init__(self) -> None:
        self._running: deque[tuple[UploadInfo, Transfer[None]]] = deque()
        self._aborted: list[UploadInfo] = []
        self._errors: list[S3Error] = []

    def add(self, upload: UploadInfo, transfer: Transfer[None]) -> None:
        self._running.append((upload, transfer))
        if len(self._running) == _ABORTS_IN_FLIGHT:
            self._wait_for_one()

    def finish(self) -> list[UploadInfo]:
        while self._running:
            self._wait_for_one()
        if self._errors:
            error = self._errors[0]
            error.add_note(f"{len(self._aborted)} uploads were aborted, {len(self._errors)} could not be.")
            raise error
        return self._aborted

    def _wait_for_one(self) -> None:
        upload, transfer = self._running.popleft()
        try:
            transfer.result()
        except S3Error as error:
            self._errors.append(error)
        else:
            self._aborted.append(upload)

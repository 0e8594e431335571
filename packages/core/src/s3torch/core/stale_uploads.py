"""Multipart uploads that nobody completes: their parts cost money until they are aborted."""

from __future__ import annotations

import logging
import time
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING

from s3torch.core.abilities import upload_listing_of
from s3torch.core.errors import ConfigurationError, S3Error
from s3torch.core.models import MultipartUpload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core.connection import Connector
    from s3torch.core.models import UploadInfo
    from s3torch.core.protocols import Transfer

__all__ = ["abort_stale_uploads", "list_uploads"]

_IN_FLIGHT = 32

_log = logging.getLogger(__name__)


def list_uploads(connector: Connector, bucket: str, prefix: str) -> Iterator[UploadInfo]:
    """Lists the multipart uploads in progress; see ``S3Client.list_multipart_uploads``."""
    marker: tuple[str, str] | None = None
    control = upload_listing_of(connector.get().control)
    while True:
        page = control.list_multipart_uploads(bucket, prefix=prefix, marker=marker)
        yield from page.uploads
        if page.next_marker is None or page.next_marker == marker:
            return
        marker = page.next_marker


def abort_stale_uploads(
    connector: Connector, bucket: str, prefix: str, *, older_than: timedelta
) -> list[UploadInfo]:
    """Aborts uploads that were begun long ago; see ``S3Client.abort_stale_uploads``."""
    if not isinstance(older_than, timedelta) or older_than < timedelta():
        raise ConfigurationError(f"older_than must be a timedelta of at least 0, got {older_than!r}")
    begun_before = time.time() - older_than.total_seconds()
    transport = connector.get().transport
    sweep = _Sweep()
    for upload in list_uploads(connector, bucket, prefix):
        if upload.initiated <= begun_before:
            _log.debug("AbortMultipartUpload s3://%s/%s %s", bucket, upload.key, upload.upload_id)
            started = transport.abort_multipart_upload(MultipartUpload(bucket, upload.key, upload.upload_id))
            sweep.add(upload, started)
    return sweep.finish()


class _Sweep:
    """The aborts under way; one that fails does not keep others from being made."""

    def __init__(self) -> None:
        self._running: deque[tuple[UploadInfo, Transfer[None]]] = deque()
        self._aborted: list[UploadInfo] = []
        self._errors: list[S3Error] = []

    def add(self, upload: UploadInfo, transfer: Transfer[None]) -> None:
        self._running.append((upload, transfer))
        if len(self._running) == _IN_FLIGHT:
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

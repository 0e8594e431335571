"""Conformance of control planes: multipart uploads in progress."""

# ruff: noqa: S101 - In tests, assert is how they tell.

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from s3torch.core.errors import NotFoundError
from s3torch.core.models import MultipartUpload
from s3torch.testing._calls import PATIENCE
from s3torch.testing._transport_case import TransportCase, begin_upload, refused

if TYPE_CHECKING:
    from s3torch.core.models import UploadInfo
    from s3torch.testing._calls import TransportCalls

_NOWHERE = "s3torch-no-such-bucket"


class UploadListingTests(TransportCase):
    """What ``SupportsUploadListing`` owes."""

    def test_uploads_in_progress(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """Uploads are told until they are aborted."""
        awkward = "ü +%20/b" if self.quotes_keys_of_uploads else "ü /b"
        begun = [begin_upload(transport, bucket, f"{prefix}{name}") for name in ("a", "a", awkward)]
        told: list[UploadInfo] = []
        marker = None
        for _ in begun:
            page = transport.list_multipart_uploads(bucket, prefix=prefix, max_uploads=2, marker=marker)
            told += page.uploads
            marker = page.next_marker
            if marker is None:
                break
        assert marker is None
        assert {MultipartUpload(bucket, one.key, one.upload_id) for one in told} == set(begun)
        assert len(told) == len(begun)
        if self.tells_upload_times:
            assert all(abs(one.initiated - time.time()) < PATIENCE for one in told)
        for upload in begun:
            transport.abort_multipart_upload(upload).result(PATIENCE)
        assert transport.list_multipart_uploads(bucket, prefix=prefix).uploads == []

    def test_uploads_in_missing_bucket(self, transport: TransportCalls) -> None:
        """A missing bucket is an error."""
        with refused(
            NotFoundError, operation="ListMultipartUploads", bucket=_NOWHERE, code="NoSuchBucket", status=404
        ):
            transport.list_multipart_uploads(_NOWHERE)

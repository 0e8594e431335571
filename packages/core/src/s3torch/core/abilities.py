"""What a control plane may be able to do beyond what it owes; each ability is a protocol of its own.

The rules of ``s3torch.core.protocols`` hold here, too. Where a control plane lacks an ability, the methods of
``S3Client`` that need it raise ``TransportError``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from s3torch.core.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from s3torch.core.models import (
        CompletedPart,
        DeleteFailure,
        ListUploadsResult,
        ListVersionsResult,
        MultipartUpload,
    )
    from s3torch.core.protocols import ControlPlane
    from s3torch.core.ranges import ByteRange

__all__ = [
    "SupportsPartCopy",
    "SupportsTags",
    "SupportsUploadListing",
    "SupportsVersions",
    "part_copy_of",
    "tags_of",
    "upload_listing_of",
    "versions_of",
]


@runtime_checkable
class SupportsVersions(Protocol):
    """A control plane of a store that keeps versions of objects."""

    def list_object_versions(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        max_keys: int = 1000,
        marker: tuple[str, str] | None = None,
    ) -> ListVersionsResult:
        """Asks for one page of versions and delete markers, in one ListObjectVersions request.

        Args:
            bucket: The bucket.
            prefix: What the keys start with.
            delimiter: Folds keys that have it behind the prefix into ``common_prefixes``.
            max_keys: The size of the page.
            marker: The ``next_marker`` of the page before.
        """
        ...

    def delete_versions(self, bucket: str, versions: Sequence[tuple[str, str]]) -> list[DeleteFailure]:
        """Deletes up to 1,000 versions for good, in one DeleteObjects request.

        Args:
            bucket: The bucket.
            versions: Pairs of key and version id; missing ones are no failure.

        Returns:
            Those that it could not delete.
        """
        ...


@runtime_checkable
class SupportsUploadListing(Protocol):
    """A control plane that knows of the multipart uploads in progress."""

    def list_multipart_uploads(
        self,
        bucket: str,
        *,
        prefix: str = "",
        max_uploads: int = 1000,
        marker: tuple[str, str] | None = None,
    ) -> ListUploadsResult:
        """Asks for one page of uploads, in one ListMultipartUploads request.

        Args:
            bucket: The bucket.
            prefix: What the keys start with.
            max_uploads: The size of the page.
            marker: The ``next_marker`` of the page before.
        """
        ...


@runtime_checkable
class SupportsPartCopy(Protocol):
    """A control plane that makes parts of a multipart upload of other objects."""

    def upload_part_copy(
        self,
        upload: MultipartUpload,
        number: int,
        src_bucket: str,
        src_key: str,
        *,
        byte_range: ByteRange,
        version_id: str | None = None,
        if_match: str | None = None,
    ) -> CompletedPart:
        """Makes the part with this number, from 1, of bytes of an object, in one UploadPartCopy request.

        Args:
            upload: The upload.
            number: The number of the part.
            src_bucket: The bucket of the source.
            src_key: Its key.
            byte_range: The bytes of the source, up to 5 GiB.
            version_id: The version of the source.
            if_match: The ETag that the source must have, else ``PreconditionFailedError``.
        """
        ...


@runtime_checkable
class SupportsTags(Protocol):
    """A control plane that tells the tags of objects."""

    def object_tags(self, bucket: str, key: str, *, version_id: str | None = None) -> dict[str, str]:
        """Asks for the tags of an object, in one GetObjectTagging request."""
        ...


def versions_of(control: ControlPlane) -> SupportsVersions:
    """Returns the control plane as one that keeps versions, or raises ``TransportError``."""
    if isinstance(control, SupportsVersions):
        return control
    raise _lacking(control, "list and delete versions")


def upload_listing_of(control: ControlPlane) -> SupportsUploadListing:
    """Returns the control plane as one that lists uploads, or raises ``TransportError``."""
    if isinstance(control, SupportsUploadListing):
        return control
    raise _lacking(control, "list multipart uploads")


def part_copy_of(control: ControlPlane) -> SupportsPartCopy:
    """Returns the control plane as one that copies parts, or raises ``TransportError``."""
    if isinstance(control, SupportsPartCopy):
        return control
    raise _lacking(control, "copy objects of more than 5 GiB")


def tags_of(control: ControlPlane) -> SupportsTags:
    """Returns the control plane as one that tells tags, or raises ``TransportError``."""
    if isinstance(control, SupportsTags):
        return control
    raise _lacking(control, "read tags")


def _lacking(control: ControlPlane, ability: str) -> TransportError:
    return TransportError(f"{type(control).__name__}, the control plane of this transport, cannot {ability}")

"""The parts that S3 has of a multipart upload in progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from s3torch.core._config import CHECKSUM_ALGORITHMS
from s3torch.core.requests._listings import following_page
from s3torch.core.requests._request import (
    Answer,
    Request,
    local_name,
    natural,
    promised,
    query_of,
    result_document,
    xml_fields,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from s3torch.core.models import MultipartUpload


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part that S3 has of an upload in progress.

    Attributes:
        number: Its number, from 1.
        size: Its bytes.
        etag: What CompleteMultipartUpload has to name.
        checksums: Its checksums in base64, by algorithm, where the store keeps any.
    """

    number: int
    size: int
    etag: str
    checksums: Mapping[str, str] = field(default_factory=dict)


def list_parts(
    upload: MultipartUpload, *, max_parts: int = 1000, marker: str | None = None
) -> Request[tuple[list[StoredPart], str | None]]:
    """Asks for one page of the parts of an upload; the result also has where the next one begins, if any.

    Args:
        upload: The upload.
        max_parts: The size of the page.
        marker: Where the page before said that this one begins.
    """

    def read(answer: Answer) -> tuple[list[StoredPart], str | None]:
        root = result_document(answer, "ListPartsResult")
        parts = [_part(xml_fields(child)) for child in root if local_name(child) == "Part"]
        told = xml_fields(root)
        # S3 and some stores name the last part, or 0, also on the last page.
        truncated = told.get("IsTruncated", "false") != "false"
        next_marker = told.get("NextPartNumberMarker") if truncated else None
        return parts, following_page(told, next_marker, marker)

    query = query_of(uploadId=upload.upload_id, max_parts=max_parts, part_number_marker=marker)
    return Request("ListParts", "GET", bucket=upload.bucket, key=upload.key, read=read, query=query)


def _part(told: Mapping[str, str]) -> StoredPart:
    checksums = {name: told[f"Checksum{name}"] for name in CHECKSUM_ALGORITHMS if f"Checksum{name}" in told}
    return StoredPart(
        natural("PartNumber", promised(told, "PartNumber")),
        natural("Size", promised(told, "Size")),
        promised(told, "ETag"),
        checksums,
    )

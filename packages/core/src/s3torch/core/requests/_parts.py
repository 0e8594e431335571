"""Questions about parts: those of which an object was made, and those that S3 has of an upload."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from s3torch.core._config import CHECKSUM_ALGORITHMS
from s3torch.core.requests._listings import following_page
from s3torch.core.requests._objects import CONTENT_RANGE
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


def head_first_part(bucket: str, key: str, *, version_id: str | None = None) -> Request[int | None]:
    """Asks how many bytes the first part has, of which an object was made; ``None`` where nothing tells."""

    def read(answer: Answer) -> int | None:
        found = CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        return None if found is None else int(found[2]) + 1 - int(found[1])

    query = query_of(partNumber=1, versionId=version_id)
    return Request(operation="HeadObject", method="HEAD", bucket=bucket, key=key, read=read, query=query)


def list_part_sizes(bucket: str, key: str, *, version_id: str | None = None) -> Request[list[int] | None]:
    """Asks for the sizes of the parts of which an object was made; ``None`` where not all are told."""

    def read(answer: Answer) -> list[int] | None:
        root = result_document(answer, "GetObjectAttributesResponse")
        listing = next((one for one in root if local_name(one) == "ObjectParts"), None)
        if listing is None or xml_fields(listing).get("IsTruncated") == "true":
            return None
        parts = [xml_fields(one) for one in listing if local_name(one) == "Part"]
        numbered = sorted(
            (natural("PartNumber", promised(one, "PartNumber")), natural("Size", promised(one, "Size")))
            for one in parts
        )
        return [size for _, size in numbered] or None

    return Request(
        operation="GetObjectAttributes",
        method="GET",
        bucket=bucket,
        key=key,
        read=read,
        query=query_of(attributes="", versionId=version_id),
        headers=[("x-amz-object-attributes", "ObjectParts")],
    )


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
        # The last part, or 0, is named also on the last page, so it says nothing alone.
        next_marker = told.get("NextPartNumberMarker") if "IsTruncated" in told else None
        return parts, following_page(told, next_marker, marker, entries=len(parts), most=max_parts)

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

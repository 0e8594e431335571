"""Questions about the parts of which an object was made."""

from __future__ import annotations

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

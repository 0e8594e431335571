"""The XML that a store in memory answers with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.sax.saxutils import escape

from s3torch.core.requests import Answer
from s3torch.core.requests._request import local_name, xml_fields, xml_root

if TYPE_CHECKING:
    from collections.abc import Iterable

    from s3torch.core.models import ObjectInfo, ObjectVersion


def buckets(names: list[str]) -> list[str]:
    return ["<Buckets>", *(group("Bucket", Name=name) for name in names), "</Buckets>"]


def entry(info: ObjectInfo) -> str:
    return group(
        "Contents",
        Key=quote(info.key),
        LastModified=time(info.last_modified),
        ETag=info.etag,
        Size=info.size,
        StorageClass=info.storage_class,
    )


def version(one: ObjectVersion) -> str:
    return group(
        "DeleteMarker" if one.is_delete_marker else "Version",
        Key=quote(one.key),
        VersionId=one.version_id,
        IsLatest=str(one.is_latest).lower(),
        LastModified=time(one.last_modified),
        ETag=one.etag,
        Size=one.size,
        StorageClass=one.storage_class,
    )


def common_prefix(prefix: str) -> str:
    return group("CommonPrefixes", Prefix=quote(prefix))


def next_marker(marker: tuple[str, str] | None, second: str) -> list[str]:
    return [] if marker is None else [element("NextKeyMarker", quote(marker[0])), element(second, marker[1])]


def listing(root: str, entries: list[str], following: list[str], *, is_truncated: bool) -> Answer:
    truncated = element("IsTruncated", str(is_truncated).lower())
    return document(root, [element("EncodingType", "url"), truncated, *following, *entries])


def document(root: str, content: Iterable[str]) -> Answer:
    namespace = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
    body = f"<{root} {namespace}>{''.join(content)}</{root}>".encode()
    return Answer(200, {"content-type": "application/xml"}, body, len(body))


def group(name: str, **facts: object) -> str:
    inner = "".join(element(fact, value) for fact, value in facts.items() if value is not None)
    return f"<{name}>{inner}</{name}>"


def element(name: str, value: object) -> str:
    return f"<{name}>{escape(str(value))}</{name}>"


def elements(body: bytes, name: str) -> list[dict[str, str]]:
    root = xml_root(body)
    return [xml_fields(one) for one in (() if root is None else root.iter()) if local_name(one) == name]


def time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")

"""How an object is to be stored, as headers."""

from __future__ import annotations

import base64
import json
from datetime import UTC
from email.utils import format_datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from s3torch.core.models import PutOptions

_META = "x-amz-meta-"


def checksum_headers(checksum: tuple[str, str] | None) -> list[tuple[str, str]]:
    """Returns the header that carries a checksum, of which the algorithm comes first."""
    return [] if checksum is None else [(f"x-amz-checksum-{checksum[0].lower()}", checksum[1])]


def put_headers(options: PutOptions) -> list[tuple[str, str]]:
    """Returns the headers that store an object as the options say, without the conditions."""
    headers = [(_META + name, value) for name, value in options.metadata.items()]
    given = (
        ("Content-Type", options.content_type),
        ("Cache-Control", options.cache_control),
        ("Content-Disposition", options.content_disposition),
        ("Content-Encoding", options.content_encoding),
        ("Content-Language", options.content_language),
        ("Expires", http_date(options.expires)),
        ("x-amz-storage-class", options.storage_class),
        ("x-amz-acl", options.acl),
        ("x-amz-tagging", tagging(options.tags)),
        ("x-amz-server-side-encryption", options.server_side_encryption),
        ("x-amz-server-side-encryption-aws-kms-key-id", options.kms_key_id),
        ("x-amz-server-side-encryption-context", encryption_context(options.kms_encryption_context)),
        (
            "x-amz-server-side-encryption-bucket-key-enabled",
            None if options.bucket_key is None else str(options.bucket_key).lower(),
        ),
    )
    return headers + [(name, value) for name, value in given if value is not None]


def http_date(when: datetime | None) -> str | None:
    """Writes a time as headers have it; ``None`` for none."""
    return None if when is None else format_datetime(when.astimezone(UTC), usegmt=True)


def tagging(tags: Mapping[str, str]) -> str | None:
    """Writes tags as S3 takes them in a header; ``None`` for none."""
    return urlencode(tags, quote_via=quote, safe="") or None


def encryption_context(context: Mapping[str, str]) -> str | None:
    """Writes an encryption context as S3 takes it in a header; ``None`` for none."""
    return base64.b64encode(json.dumps(dict(context)).encode()).decode() if context else None


def condition_headers(options: PutOptions) -> list[tuple[str, str]]:
    """Returns the headers of the conditions under which an object may appear."""
    conditions = (("If-None-Match", options.if_none_match), ("If-Match", options.if_match))
    return [(name, value) for name, value in conditions if value is not None]

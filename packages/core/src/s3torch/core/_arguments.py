"""The arguments of a client's methods, checked where they enter."""

from __future__ import annotations

import operator
import re
from typing import Any

from s3torch.core.errors import ConfigurationError

# Names, aliases and ARNs; nothing that would change the URL of a request.
_BUCKET = re.compile(r"[A-Za-z0-9._:/-]+")


def check_bucket(bucket: str) -> None:
    """Refuses what cannot be the name of a bucket."""
    if bucket is None or bucket == "":
        raise ConfigurationError(f"Bucket should be specified, got {bucket!r}")
    check_text("bucket", bucket)
    if not _BUCKET.fullmatch(bucket):
        raise ConfigurationError(f"the name of a bucket has letters, digits, dots and dashes, got {bucket!r}")


def check_place(bucket: str, key: str) -> None:
    """Refuses what cannot be the name of a bucket or a key."""
    check_bucket(bucket)
    check_text("key", key)
    if not key:
        raise ConfigurationError("key must not be empty")


def check_text(name: str, value: str) -> None:
    """Refuses what is no text that a request can have."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a string, got {value!r}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise ConfigurationError(f"{name} must be valid Unicode, got {value!r}") from exc


def check_kind(name: str, value: Any, kind: type) -> None:
    """Refuses what is neither ``None`` nor of this class."""
    if value is not None and not isinstance(value, kind):
        raise ConfigurationError(f"{name} must be None or {kind.__name__}, got {value!r}")


def check_version(version_id: str | None) -> None:
    """Refuses what cannot be a version; there is ``None`` for the latest."""
    if version_id is not None and (not isinstance(version_id, str) or not version_id):
        raise ConfigurationError(f"version_id must be None or a non-empty string, got {version_id!r}")


def check_info(object_info: Any) -> None:
    """Refuses what tells no size of an object; a wrong one would be taken for its end."""
    if object_info is None:
        return
    try:
        size = object_info.size
        is_size = size is None or operator.index(size) >= 0
    except (AttributeError, TypeError):
        is_size = False
    if not is_size:
        raise ConfigurationError(
            f"object_info must have the size of the object, as listings and head_object tell it, "
            f"got {object_info!r}"
        )

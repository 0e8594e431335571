"""Objects in a certain version, in buckets that keep versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from s3torch.core import ObjectInfo

if TYPE_CHECKING:
    from s3torch.core import S3BucketKeyData

__all__ = ["VersionedInfo", "facts_of", "version_of"]


@dataclass(frozen=True, slots=True)
class VersionedInfo(ObjectInfo):
    """What is known of one version of an object, which datasets read then, whatever the latest is.

    Attributes:
        version_id: The version.
    """

    version_id: str = ""


def version_of(item: S3BucketKeyData) -> str | None:
    """Returns the version that is to be read of an object; ``None`` for the latest."""
    info = item.object_info
    return info.version_id if isinstance(info, VersionedInfo) else None


def facts_of(item: S3BucketKeyData) -> dict[str, Any]:
    """Returns what is known of an object as arguments of ``S3Client.get_object`` and ``open_ranges``."""
    version = version_of(item)
    if version is None:
        return {"object_info": item.object_info}
    return {"object_info": item.object_info, "version_id": version}

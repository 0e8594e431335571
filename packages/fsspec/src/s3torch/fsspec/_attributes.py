"""What S3 keeps with objects besides their bytes: metadata, tags, versions; and URLs for others."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from s3torch.core import ConfigurationError, PutOptions
from s3torch.fsspec._files import held_back
from s3torch.fsspec._options import put_options, refuse
from s3torch.fsspec._tree import S3Tree

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")
_METHODS: Mapping[str, Literal["GET", "HEAD", "PUT"]] = {
    "get_object": "GET",
    "head_object": "HEAD",
    "put_object": "PUT",
}


class S3Attributes(S3Tree):
    """Metadata, tags, versions and signed URLs of objects, by the names that s3fs gave them."""

    def metadata(
        self,
        path: Any,
        refresh: bool = False,  # noqa: ARG002, FBT001, FBT002
        version_id: str | None = None,
    ) -> dict[str, str]:
        """Returns the user's metadata of an object; one HEAD."""
        return _dashed(self._head(path, version_id).metadata)

    def getxattr(self, path: Any, attr_name: str, version_id: str | None = None) -> str | None:
        """Returns one of the user's metadata of an object; ``None`` where it has no such."""
        return self.metadata(path, version_id=version_id).get(attr_name.replace("_", "-"))

    @held_back
    def setxattr(self, path: Any, copy_kwargs: dict[str, Any] | None = None, **values: str | None) -> None:
        """Changes the user's metadata of an object, by a copy onto itself within S3.

        Args:
            path: The object.
            copy_kwargs: What else changes, by the names of boto3, as ``ContentType``.
            values: The metadata to set; ``None`` removes one. The others stay.

        Raises:
            PreconditionFailedError: The object was replaced meanwhile.
        """
        bucket, key = self._split_file(path)
        head = self.client.head_object(bucket, key)
        changed = _dashed(head.metadata) | _dashed(values)
        metadata = {name: one for name, one in changed.items() if one is not None}
        described = PutOptions(
            storage_class=head.storage_class,
            content_type=head.content_type,
            cache_control=head.cache_control,
            content_disposition=head.content_disposition,
            content_encoding=head.content_encoding,
            content_language=head.content_language,
            expires=parsedate_to_datetime(head.expires).astimezone(UTC) if head.expires else None,
        )
        options = replace(put_options(described, copy_kwargs or {}, "setxattr"), metadata=metadata)
        self.client.copy_object(bucket, key, bucket, key, options=options, object_info=head)
        self.invalidate_cache(path)

    def get_tags(self, path: Any, version_id: str | None = None) -> dict[str, str]:
        """Returns the tags of an object."""
        bucket, key, version_id = self._split_versioned(path, version_id)
        return self.client.get_object_tags(bucket, key, version_id=version_id)

    @held_back
    def put_tags(self, path: Any, tags: Mapping[str, str], mode: str = "o") -> None:
        """Sets tags of an object: ``mode="o"`` replaces all that it has, ``"m"`` those of the same name."""
        if mode not in {"o", "m"}:
            raise ConfigurationError(f"mode must be 'o' or 'm', got {mode!r}")
        before = self.get_tags(path) if mode == "m" else {}
        bucket, key, version_id = self._split_versioned(path)
        self.client.put_object_tags(bucket, key, before | dict(tags), version_id=version_id)

    def url(
        self,
        path: Any,
        expires: int = 3600,
        client_method: str = "get_object",
        version_id: str | None = None,
        **options: Any,
    ) -> str:
        """Returns a URL with which anybody may read an object for a while, or store it; nothing is sent.

        Args:
            path: The object.
            expires: Seconds until the URL is refused, up to a week.
            client_method: ``"get_object"``, ``"head_object"`` or ``"put_object"``.
            version_id: The version to read.
            options: None is known.
        """
        refuse(options, "url")
        if client_method not in _METHODS:
            raise ConfigurationError(
                f"client_method must be one of {', '.join(_METHODS)}, got {client_method!r}"
            )
        bucket, key, version_id = self._split_versioned(path, version_id)
        method = _METHODS[client_method]
        return self.client.presign(bucket, key, method=method, expires=expires, version_id=version_id)

    def sign(self, path: Any, expiration: int = 100, **options: Any) -> str:
        """Returns ``url`` of the object, for ``expiration`` seconds."""
        return self.url(path, expires=expiration, **options)

    def object_version_info(self, path: Any) -> list[dict[str, Any]]:
        """Returns the versions and delete markers of an object, the latest first, with the names of boto3."""
        bucket, key = self._split_file(path)
        pages = self.client.list_object_versions(bucket, key)
        versions = [one for page in pages for one in page.versions if one.key == key]
        return [
            {
                "Key": one.key,
                "VersionId": one.version_id,
                "IsLatest": one.is_latest,
                "IsDeleteMarker": one.is_delete_marker,
                "LastModified": datetime.fromtimestamp(one.last_modified, tz=UTC),
                "ETag": one.etag,
                "Size": one.size,
                "StorageClass": one.storage_class,
            }
            for one in versions
        ]


def _dashed(metadata: Mapping[str, T]) -> dict[str, T]:
    """Returns metadata by the names that S3 has for keyword arguments."""
    return {name.replace("_", "-"): one for name, one in metadata.items()}

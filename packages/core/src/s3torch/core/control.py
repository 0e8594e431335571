"""The control plane on boto3: what S3 does besides moving the bytes of objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError, S3Error
from s3torch.core.models import (
    DeleteFailure,
    HeadObjectResult,
    ListObjectResult,
    ObjectInfo,
    RestoreStatus,
)
from s3torch.core.transports._boto_errors import error_from_boto
from s3torch.core.transports._http import head_from_headers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from s3torch.core.protocols import ResolvedSession

__all__ = ["MAX_KEYS", "BotoControl"]

# https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
MAX_KEYS = 1000


class BotoControl:
    """Asks S3 through the boto3 client of a session; may be shared by threads.

    The client is made at the first call. It decodes the keys of listings by itself, so that every key that
    S3 takes comes back as it is.

    Args:
        session: Addresses and credentials.
    """

    def __init__(self, session: ResolvedSession) -> None:
        self._session = session
        self._client: Any = None

    def head_object(self, bucket: str, key: str, *, version_id: str | None = None) -> HeadObjectResult:
        """Asks for the facts of one object, in one HeadObject request."""
        params = {} if version_id is None else {"VersionId": version_id}
        answer = self._call(
            "HeadObject", "head_object", bucket, key, Key=key, ChecksumMode="ENABLED", **params
        )
        return head_from_headers(answer["ResponseMetadata"]["HTTPHeaders"])

    def list_objects(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        max_keys: int = 1000,
        continuation_token: str | None = None,
        start_after: str | None = None,
    ) -> ListObjectResult:
        """Asks for one page of a listing, in one ListObjectsV2 request."""
        params = {
            "Prefix": prefix,
            "Delimiter": delimiter,
            "ContinuationToken": continuation_token,
            "StartAfter": start_after,
        }
        answer = self._call(
            "ListObjectsV2",
            "list_objects_v2",
            bucket,
            MaxKeys=max_keys,
            OptionalObjectAttributes=["RestoreStatus"],
            **{name: value for name, value in params.items() if value},
        )
        return ListObjectResult(
            [_object_info(entry) for entry in answer.get("Contents", ())],
            [entry["Prefix"] for entry in answer.get("CommonPrefixes", ())],
            answer.get("NextContinuationToken") if answer.get("IsTruncated") else None,
        )

    def delete_object(self, bucket: str, key: str) -> None:
        """Deletes one object; a missing one is no error."""
        self._call("DeleteObject", "delete_object", bucket, key, Key=key)

    def delete_objects(self, bucket: str, keys: Sequence[str]) -> list[DeleteFailure]:
        """Deletes up to 1,000 objects in one DeleteObjects request and returns those that it could not.

        Raises:
            ConfigurationError: There are more than 1,000 keys.
        """
        if len(keys) > MAX_KEYS:
            raise ConfigurationError(
                f"one request deletes up to {MAX_KEYS} objects, got {len(keys)}", bucket=bucket
            )
        if not keys:
            return []
        listed = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = self._call("DeleteObjects", "delete_objects", bucket, Delete=listed)
        return [
            DeleteFailure(error.get("Key", ""), error.get("Code", ""), error.get("Message", ""))
            for error in answer.get("Errors", ())
        ]

    def copy_object(self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str) -> None:
        """Copies one object of up to 5 GiB within S3, with its metadata, in one CopyObject request."""
        source = {"Bucket": src_bucket, "Key": src_key}
        self._call("CopyObject", "copy_object", dst_bucket, dst_key, Key=dst_key, CopySource=source)

    def close(self) -> None:
        """Frees connections; may be called again."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _call(self, operation: str, method: str, bucket: str, key: str | None = None, **params: Any) -> Any:
        try:
            if self._client is None:
                self._client = self._session.boto_client()
            return getattr(self._client, method)(Bucket=bucket, **params)
        except S3Error:
            raise
        except Exception as exc:
            raise error_from_boto(exc, operation=operation, bucket=bucket, key=key) from exc


def _object_info(entry: dict[str, Any]) -> ObjectInfo:
    restore = entry.get("RestoreStatus")
    return ObjectInfo(
        key=entry["Key"],
        etag=entry.get("ETag", ""),
        size=entry["Size"],
        last_modified=int(entry["LastModified"].timestamp()),
        storage_class=entry.get("StorageClass"),
        restore_status=None if restore is None else _restore_status(restore),
    )


def _restore_status(told: dict[str, Any]) -> RestoreStatus:
    expiry = told.get("RestoreExpiryDate")
    return RestoreStatus(bool(told.get("IsRestoreInProgress")), int(expiry.timestamp()) if expiry else None)

"""The control plane on boto3: what S3 does besides moving the bytes of objects."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from s3torch.core._boto_answers import delete_failures, upload_page, version_page
from s3torch.core._listing_xml import PAGE, take_listing
from s3torch.core.errors import AccessDeniedError, S3Error
from s3torch.core.models import CompletedPart, DeleteFailure
from s3torch.core.transports._boto_errors import error_from_boto
from s3torch.core.transports._boto_params import condition_params, given_params, storage_params
from s3torch.core.transports._boto_retries import BotoRetries
from s3torch.core.transports._http import head_from_headers
from s3torch.core.transports._limits import MAX_KEYS, check_deleted
from s3torch.core.transports._retries import has_expired

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from s3torch.core.models import (
        HeadObjectResult,
        ListObjectResult,
        ListUploadsResult,
        ListVersionsResult,
        MultipartUpload,
        PutOptions,
    )
    from s3torch.core.protocols import ResolvedSession, RetryListener
    from s3torch.core.ranges import ByteRange

__all__ = ["MAX_KEYS", "BotoControl"]

# By this name it is called before what botocore registers for all operations, which reads the XML as well.
_BEFORE_LISTING = "before-parse.*.ListObjectsV2"
# Characters that keys may have and XML may not.
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


class BotoControl:
    """Asks S3 through the boto3 client of a session; may be shared by threads.

    The client is made at the first call. It decodes the keys of listings by itself, so that every key that
    S3 takes comes back as it is.

    Args:
        session: Addresses and credentials.
        on_retry: Told of every attempt that failed and is made again; ``None`` when nobody listens.
    """

    def __init__(self, session: ResolvedSession, on_retry: RetryListener | None = None) -> None:
        self._session = session
        self._retries = BotoRetries(on_retry)
        self._client: Any = None
        self._lock = threading.Lock()

    def head_object(self, bucket: str, key: str, *, version_id: str | None = None) -> HeadObjectResult:
        """Asks for the facts of one object, in one HeadObject request."""
        params = given_params(VersionId=version_id)
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
            **_given(params),
        )
        page = answer.get(PAGE)
        if page is None:
            raise S3Error("the answer is no listing", operation="ListObjectsV2", bucket=bucket)
        return page  # type: ignore[no-any-return]

    def list_object_versions(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        max_keys: int = 1000,
        marker: tuple[str, str] | None = None,
    ) -> ListVersionsResult:
        """Asks for one page of versions and delete markers, in one ListObjectVersions request."""
        key, version_id = marker or (None, None)
        params = {
            "Prefix": prefix,
            "Delimiter": delimiter,
            "KeyMarker": key,
            "VersionIdMarker": version_id,
        }
        answer = self._call(
            "ListObjectVersions", "list_object_versions", bucket, MaxKeys=max_keys, **_given(params)
        )
        return version_page(answer)

    def list_multipart_uploads(
        self,
        bucket: str,
        *,
        prefix: str = "",
        max_uploads: int = 1000,
        marker: tuple[str, str] | None = None,
    ) -> ListUploadsResult:
        """Asks for one page of the multipart uploads in progress, in one ListMultipartUploads request."""
        key, upload_id = marker or (None, None)
        params = {"Prefix": prefix, "KeyMarker": key, "UploadIdMarker": upload_id}
        # boto3 asks for keys that survive XML in other listings, but not in this one.
        answer = self._call(
            "ListMultipartUploads",
            "list_multipart_uploads",
            bucket,
            MaxUploads=max_uploads,
            EncodingType="url",
            **_given(params),
        )
        return upload_page(answer)

    def delete_object(self, bucket: str, key: str, *, version_id: str | None = None) -> None:
        """Deletes one object, or one version of it for good; a missing one is no error."""
        params = given_params(VersionId=version_id)
        self._call("DeleteObject", "delete_object", bucket, key, Key=key, **params)

    def delete_objects(self, bucket: str, keys: Sequence[str]) -> list[DeleteFailure]:
        """Deletes up to 1,000 objects in one DeleteObjects request and returns those that it could not.

        Raises:
            ConfigurationError: There are more than 1,000 keys.
        """
        return self._delete(bucket, [(key, None) for key in keys])

    def delete_versions(self, bucket: str, versions: Sequence[tuple[str, str]]) -> list[DeleteFailure]:
        """Deletes up to 1,000 versions for good, in one DeleteObjects request.

        Raises:
            ConfigurationError: There are more than 1,000 versions.
        """
        return self._delete(bucket, versions)

    def copy_object(
        self,
        src_bucket: str,
        src_key: str,
        dst_bucket: str,
        dst_key: str,
        *,
        options: PutOptions | None = None,
        version_id: str | None = None,
        if_match: str | None = None,
    ) -> None:
        """Copies one object of up to 5 GiB within S3, in one CopyObject request."""
        params = given_params(CopySourceIfMatch=if_match)
        if options is not None:
            params |= {**storage_params(options), **condition_params(options)}
            if options.describes:
                params["MetadataDirective"] = "REPLACE"
            if options.tags:
                params["TaggingDirective"] = "REPLACE"
        source = _source(src_bucket, src_key, version_id)
        self._call("CopyObject", "copy_object", dst_bucket, dst_key, Key=dst_key, CopySource=source, **params)

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
        """Makes a part of bytes of another object, in one UploadPartCopy request."""
        answer = self._call(
            "UploadPartCopy",
            "upload_part_copy",
            upload.bucket,
            upload.key,
            Key=upload.key,
            UploadId=upload.upload_id,
            PartNumber=number,
            CopySource=_source(src_bucket, src_key, version_id),
            CopySourceRange=byte_range.header,
            **given_params(CopySourceIfMatch=if_match),
        )
        return CompletedPart(number, answer["CopyPartResult"]["ETag"])

    def object_tags(self, bucket: str, key: str, *, version_id: str | None = None) -> dict[str, str]:
        """Asks for the tags of an object, in one GetObjectTagging request."""
        params = given_params(VersionId=version_id)
        answer = self._call("GetObjectTagging", "get_object_tagging", bucket, key, Key=key, **params)
        return {tag["Key"]: tag["Value"] for tag in answer.get("TagSet", ())}

    def close(self) -> None:
        """Frees connections; may be called again."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _delete(self, bucket: str, versions: Sequence[tuple[str, str | None]]) -> list[DeleteFailure]:
        check_deleted(versions, bucket)
        objects = [
            {"Key": key, **given_params(VersionId=version)}
            for key, version in versions
            if not _NO_XML.search(key)
        ]
        failures: list[DeleteFailure] = []
        if objects:
            listed = {"Objects": objects, "Quiet": True}
            failures = delete_failures(self._call("DeleteObjects", "delete_objects", bucket, Delete=listed))
        for key, version in versions:
            if _NO_XML.search(key):
                failures += self._delete_alone(bucket, key, version)
        return failures

    def _delete_alone(self, bucket: str, key: str, version_id: str | None) -> list[DeleteFailure]:
        """Deletes what cannot be named in a list of many."""
        try:
            self.delete_object(bucket, key, version_id=version_id)
        except AccessDeniedError as error:
            return [DeleteFailure(key, error.code or "AccessDenied", error.message, version_id)]
        return []

    def _call(self, operation: str, method: str, bucket: str, key: str | None = None, **params: Any) -> Any:
        def ask(client: Any) -> Any:
            with _translated(operation, bucket, key):
                return getattr(client, method)(Bucket=bucket, **params)

        with self._retries.call(operation, bucket, key):
            with _translated(operation, bucket, key):
                client = self._connected()
            try:
                return ask(client)
            except S3Error as error:
                if not has_expired(error) or not self._renew(client, bucket):
                    raise
            return ask(self._connected())

    def _renew(self, refused: Any, bucket: str) -> bool:
        """Takes the client of a session with other credentials, if there are any."""
        session = self._session
        with self._lock:
            # Another thread may have met the same refusal, and taken one already.
            if self._client is refused:
                if not session.renew_credentials(session.credentials(bucket), bucket):
                    return False
                self._client = None
        return True

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                client = self._session.boto_client()
                client.meta.events.register_first(_BEFORE_LISTING, take_listing, unique_id=_BEFORE_LISTING)
                self._retries.watch(client)
                self._client = client
            return self._client


@contextmanager
def _translated(operation: str, bucket: str, key: str | None) -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        error = error_from_boto(exc, operation=operation, bucket=bucket, key=key)
        if error is exc:
            raise
        raise error from exc


def _given(params: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in params.items() if value}


def _source(bucket: str, key: str, version_id: str | None) -> dict[str, str]:
    return {"Bucket": bucket, "Key": key, **given_params(VersionId=version_id)}

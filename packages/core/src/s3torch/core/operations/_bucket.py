"""What a client does besides moving bytes: it looks for, lists, copies and deletes objects."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from s3torch.core import requests as operations
from s3torch.core.errors import ConfigurationError, NotFoundError
from s3torch.core.models import PutOptions
from s3torch.core.operations._listing import (
    ListObjectStream,
    ListVersionStream,
    ObjectFilter,
    Trail,
    find_by_pattern,
    find_by_prefix,
)
from s3torch.core.requests._request import (
    check_bucket,
    check_kind,
    check_place,
    check_text,
    check_version,
)
from s3torch.core.transfer._source import check_info

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import timedelta

    from s3torch.core._client import RuntimeHandle
    from s3torch.core.models import (
        BucketInfo,
        DeleteFailure,
        HeadObjectResult,
        ObjectInfo,
        ObjectVersion,
        UploadInfo,
    )
    from s3torch.core.operations._bulk import Deletion

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-presigned-url.html
_LONGEST_URL = 7 * 24 * 3600

_log = logging.getLogger(__name__)


class BucketOperations:
    """The methods of a client that move no bytes of objects.

    Args:
        handle: The runtime of the client.
    """

    def __init__(self, handle: RuntimeHandle) -> None:
        self._handle = handle

    def list_buckets(self) -> list[BucketInfo]:
        """Lists the buckets of the account, those of all regions; directory buckets are not among them."""
        _log.debug("ListBuckets")
        found: list[BucketInfo] = []
        token: str | None = None
        trail = Trail()
        while True:
            page, token = self._handle.call(operations.list_buckets(continuation_token=token))
            found += page
            if trail.follow(token) is None:
                return found

    def list_objects(
        self,
        bucket: str,
        prefix: str = "",
        delimiter: str = "",
        max_keys: int = 1000,
        *,
        start_after: str | None = None,
    ) -> ListObjectStream:
        """Lists the objects whose keys start with a prefix, in the order of S3.

        Args:
            bucket: The bucket.
            prefix: What the keys start with.
            delimiter: Folds keys that have it behind the prefix into ``common_prefixes``.
            max_keys: The size of a page, not of the whole.
            start_after: Lists only keys that come after this one.

        Returns:
            An iterator over pages, each asked for when its turn comes.
        """
        _log.debug("ListObjects s3://%s/%s", bucket, prefix)
        check_kind("start_after", start_after, str)
        stream = ListObjectStream(self._handle, bucket, prefix=prefix, delimiter=delimiter, max_keys=max_keys)
        stream.start_after = start_after
        return stream

    def list_object_versions(
        self, bucket: str, prefix: str = "", delimiter: str = "", max_keys: int = 1000
    ) -> ListVersionStream:
        """Lists versions and delete markers, by key, the latest of each key first.

        Returns:
            An iterator over pages, each asked for when its turn comes.
        """
        _log.debug("ListObjectVersions s3://%s/%s", bucket, prefix)
        return ListVersionStream(self._handle, bucket, prefix=prefix, delimiter=delimiter, max_keys=max_keys)

    def walk(
        self,
        bucket: str,
        prefix: str = "",
        *,
        suffix: str | tuple[str, ...] | None = None,
        min_size: int | None = None,
        max_size: int | None = None,
        where: Callable[[ObjectInfo], bool] | None = None,
        ordered: bool = True,
        requests: int = 16,
    ) -> Iterator[ObjectInfo]:
        """Lists the objects whose keys start with a prefix, large folders side by side.

        What fits into a page of 1,000 keys costs one request. Memory is bounded by the pages in flight.

        Args:
            bucket: The bucket.
            prefix: What the keys start with.
            suffix: What they end with, or several such ends.
            min_size: How many bytes the objects have at least.
            max_size: How many bytes they have at most.
            where: Any other question about an object.
            ordered: Whether objects come in the order of keys, as far as the store lists a folder in that
                order. Without, they come as early as they can.
            requests: How many requests may be in flight.
        """
        _log.debug("walk s3://%s/%s", bucket, prefix)
        check_bucket(bucket)
        check_text("prefix", prefix)
        wanted = ObjectFilter(suffix, min_size, max_size, where)
        return find_by_prefix(
            self._handle, bucket, prefix, wanted=wanted, ordered=ordered, in_flight=requests
        )

    def glob(
        self,
        bucket: str,
        pattern: str,
        *,
        min_size: int | None = None,
        max_size: int | None = None,
        where: Callable[[ObjectInfo], bool] | None = None,
        ordered: bool = True,
        requests: int = 16,
    ) -> Iterator[ObjectInfo]:
        """Lists the objects whose keys match a pattern, as ``"train/**/shard-[0-9]*.{tar,zst}"``.

        Only what can match is listed, as far as the pattern tells. The arguments are those of ``walk``, and
        ``s3torch.core.Glob`` tells what patterns mean.
        """
        _log.debug("glob s3://%s/%s", bucket, pattern)
        check_bucket(bucket)
        check_text("pattern", pattern)
        wanted = ObjectFilter(None, min_size, max_size, where)
        return find_by_pattern(
            self._handle, bucket, pattern, wanted=wanted, ordered=ordered, in_flight=requests
        )

    def head_object(self, bucket: str, key: str, *, version_id: str | None = None) -> HeadObjectResult:
        """Asks for the metadata of an object.

        Raises:
            NotFoundError: There is none. A HEAD has no body, so a missing bucket looks the same.
        """
        _log.debug("HeadObject s3://%s/%s", bucket, key)
        check_place(bucket, key)
        check_version(version_id)
        return self._handle.call(operations.head_object(bucket, key, version_id=version_id))

    def get_object_tags(self, bucket: str, key: str, *, version_id: str | None = None) -> dict[str, str]:
        """Asks for the tags of an object."""
        _log.debug("GetObjectTagging s3://%s/%s", bucket, key)
        check_place(bucket, key)
        check_version(version_id)
        return self._handle.call(operations.get_object_tagging(bucket, key, version_id=version_id))

    def put_object_tags(
        self, bucket: str, key: str, tags: Mapping[str, str], *, version_id: str | None = None
    ) -> None:
        """Replaces the tags of an object; it has none afterwards but these."""
        _log.debug("PutObjectTagging s3://%s/%s", bucket, key)
        check_place(bucket, key)
        check_version(version_id)
        checked = PutOptions(tags=tags).tags
        self._handle.call(operations.put_object_tagging(bucket, key, checked, version_id=version_id))

    def presign(
        self,
        bucket: str,
        key: str,
        *,
        method: Literal["GET", "HEAD", "PUT"] = "GET",
        expires: int = 3600,
        version_id: str | None = None,
    ) -> str:
        """Returns a URL with which anybody may read or store an object for a while; nothing is sent.

        Whoever has the URL has, for this object, the rights of the keys that it was signed with, while those
        are valid. Temporary keys may end before the URL does.

        Args:
            bucket: The bucket.
            key: The key.
            method: ``"GET"`` and ``"HEAD"`` to read it, ``"PUT"`` to store it.
            expires: Seconds until the URL is refused, up to a week.
            version_id: The version to read.
        """
        check_place(bucket, key)
        check_version(version_id)
        if method not in {"GET", "HEAD", "PUT"}:
            raise ConfigurationError(f"method must be GET, HEAD or PUT, got {method!r}")
        if not isinstance(expires, int) or not 0 < expires <= _LONGEST_URL:
            raise ConfigurationError(f"expires must be from 1 to {_LONGEST_URL} seconds, got {expires!r}")
        place = {"Bucket": bucket, "Key": key}
        if version_id is not None:
            if method == "PUT":
                raise ConfigurationError("version_id is for reading, got method 'PUT'")
            place["VersionId"] = version_id
        return self._handle.get().presign(f"{method.lower()}_object", place, expires=expires)

    def exists(self, bucket: str, key: str, *, version_id: str | None = None) -> bool:
        """Whether there is an object with this key; every error but "not found" is raised."""
        try:
            self.head_object(bucket, key, version_id=version_id)
        except NotFoundError:
            return False
        return True

    def delete_object(self, bucket: str, key: str, *, version_id: str | None = None) -> None:
        """Deletes an object, or one version of it for good; a missing one is no error."""
        _log.debug("DeleteObject s3://%s/%s", bucket, key)
        check_place(bucket, key)
        check_version(version_id)
        self._handle.call(operations.delete_object(bucket, key, version_id=version_id))

    def delete_objects(
        self, bucket: str, keys: Iterable[str | ObjectVersion | tuple[str, str]]
    ) -> list[DeleteFailure]:
        """Deletes many objects, 1,000 in a request and several requests at a time.

        Args:
            bucket: The bucket.
            keys: Keys; or ``ObjectVersion`` or pairs of key and version id, which go for good.

        Returns:
            The keys that could not be deleted, and why.

        Raises:
            S3Error: A whole request failed; others may have succeeded.
        """
        from s3torch.core.operations._bulk import delete_many

        check_bucket(bucket)
        return delete_many(self._handle, bucket, keys).failures

    def delete_prefix(self, bucket: str, prefix: str, *, versions: bool = False) -> Deletion:
        """Deletes all objects whose keys start with a prefix, while they are listed.

        Args:
            bucket: The bucket.
            prefix: What the keys start with; ``"run"`` also means ``"runs/1"``, so mind the slash.
            versions: Deletes all versions and delete markers for good, not just the latest.

        Returns:
            How many were deleted, and which could not be, and why.
        """
        from s3torch.core.operations._bulk import delete_prefix

        _log.debug("delete all of s3://%s/%s", bucket, prefix)
        check_bucket(bucket)
        return delete_prefix(self._handle, bucket, prefix, versions=versions)

    def copy_object(
        self,
        src_bucket: str,
        src_key: str,
        dst_bucket: str,
        dst_key: str,
        *,
        options: PutOptions | None = None,
        version_id: str | None = None,
        object_info: Any = None,
    ) -> None:
        """Copies an object within S3: in one request up to 5 GiB, above that in parts, several at a time.

        Metadata, media type and tags go along. The storage class does not; S3 takes STANDARD.

        Args:
            src_bucket: The bucket of the source.
            src_key: Its key, plain.
            dst_bucket: The bucket of the copy.
            dst_key: Its key, plain.
            options: How the copy is stored. If they say anything of metadata, media type or caching, that is
                all the copy gets of these; the same with tags.
            version_id: The version of the source; ``None`` for the latest.
            object_info: What a listing or a HEAD told of the source, which must still have this ETag. It
                spares a request where the source has more than 5 GiB.
        """
        from s3torch.core.operations._copying import CopyJob

        _log.debug("CopyObject s3://%s/%s to s3://%s/%s", src_bucket, src_key, dst_bucket, dst_key)
        check_place(src_bucket, src_key)
        check_place(dst_bucket, dst_key)
        check_version(version_id)
        check_info(object_info)
        check_kind("options", options, PutOptions)
        CopyJob(
            src_bucket=src_bucket,
            src_key=src_key,
            dst_bucket=dst_bucket,
            dst_key=dst_key,
            options=self._handle.config.options_of_copy(options),
            version_id=version_id,
            size=None if object_info is None else object_info.size,
            etag=getattr(object_info, "etag", None) or None,
        ).run(self._handle.get())

    def join_objects(
        self,
        sources: Sequence[tuple[str, str]],
        dst_bucket: str,
        dst_key: str,
        *,
        options: PutOptions | None = None,
    ) -> None:
        """Makes an object of others, one after the other, within S3: their bytes do not pass through here.

        Args:
            sources: Bucket and key of each. All that have bytes, but the last, need 5 MiB.
            dst_bucket: The bucket of the new object.
            dst_key: Its key.
            options: How it is stored, over the ``put_options`` of the configuration.

        Raises:
            ConfigurationError: One of them is too small, or they are all empty.
        """
        from s3torch.core.operations._copying import join_objects

        _log.debug("join %d objects to s3://%s/%s", len(sources), dst_bucket, dst_key)
        for place in (*sources, (dst_bucket, dst_key)):
            check_place(*place)
        check_kind("options", options, PutOptions)
        chosen = self._handle.config.options_of(options)
        join_objects(self._handle.get(), sources, dst_bucket, dst_key, options=chosen)

    def list_multipart_uploads(self, bucket: str, prefix: str = "") -> Iterator[UploadInfo]:
        """Lists the multipart uploads in progress, whose parts cost money, too."""
        from s3torch.core.operations._bulk import list_uploads

        check_bucket(bucket)
        check_text("prefix", prefix)
        return list_uploads(self._handle, bucket, prefix)

    def abort_stale_uploads(
        self, bucket: str, prefix: str = "", *, older_than: timedelta
    ) -> list[UploadInfo]:
        """Aborts the multipart uploads that were begun long ago, and so removes their parts.

        Args:
            bucket: The bucket.
            prefix: What their keys start with.
            older_than: How long ago they were begun at least; longer than any upload of yours takes.

        Returns:
            The uploads that were aborted.
        """
        from s3torch.core.operations._bulk import abort_stale_uploads

        _log.debug("abort uploads of s3://%s/%s older than %s", bucket, prefix, older_than)
        check_bucket(bucket)
        check_text("prefix", prefix)
        return abort_stale_uploads(self._handle, bucket, prefix, older_than=older_than)

"""The client, as s3torchconnector has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from s3torch.core import S3Client as CoreClient
from s3torchconnector._s3client.s3client_config import drop_in_config
from s3torchconnector.s3reader.constructor import drop_in_constructor
from s3torchconnector.s3reader.sequential import SequentialS3Reader

if TYPE_CHECKING:
    from s3torch.core import S3ClientConfig, S3Reader, UserAgent

__all__ = ["S3Client"]

_SEQUENTIAL = drop_in_constructor(SequentialS3Reader)


class S3Client(CoreClient):
    """The client of s3torch, except that ``copy_object`` takes a percent-encoded source.

    Args:
        region: The region of the buckets; it has to be given.
        endpoint: The URL of a store that speaks S3.
        user_agent: What the ``User-Agent`` header says.
        s3client_config: All other settings.
    """

    def __init__(
        self,
        region: str,
        *,
        endpoint: str | None = None,
        user_agent: UserAgent | None = None,
        s3client_config: S3ClientConfig | None = None,
    ) -> None:
        if not isinstance(region, str):
            raise TypeError(f"region must be a string, got {region!r}")
        super().__init__(
            region,
            endpoint=endpoint,
            user_agent=user_agent,
            s3client_config=drop_in_config(s3client_config),
        )

    def get_object(
        self,
        bucket: str,
        key: str,
        *,
        object_info: Any = None,
        reader_constructor: Any = None,
        version_id: str | None = None,
    ) -> S3Reader:
        """Returns a reader of an object; nothing is sent before it is read.

        Args:
            bucket: The bucket.
            key: The key.
            object_info: What a listing or a HEAD told of the object.
            reader_constructor: The kind of reader; ``None`` for sequential.
            version_id: The version to read; ``None`` for the latest.
        """
        make = _SEQUENTIAL if reader_constructor is None else drop_in_constructor(reader_constructor)
        return super().get_object(
            bucket, key, object_info=object_info, reader_constructor=make, version_id=version_id
        )

    def copy_object(
        self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str, **options: Any
    ) -> None:
        """Copies an object within S3.

        Args:
            src_bucket: The bucket to copy from.
            src_key: The key to copy from, percent-encoded.
            dst_bucket: The bucket to copy to.
            dst_key: The key to copy to, plain.
            options: What the method of ``s3torch.core.S3Client`` also takes.
        """
        super().copy_object(src_bucket, unquote(src_key), dst_bucket, dst_key, **options)

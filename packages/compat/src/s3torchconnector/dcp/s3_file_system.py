"""Storage of distributed checkpoints, as s3torchconnector has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from s3torch.core import parse_s3_uri
from s3torch.dcp import S3FileSystem as CoreFileSystem
from s3torch.dcp import S3StorageReader as CoreStorageReader
from s3torch.dcp import S3StorageWriter as CoreStorageWriter
from s3torch.dcp import StorageMetadata
from s3torchconnector._s3client._s3client import S3Client as EncodedSourceClient
from s3torchconnector._s3client.s3client_config import drop_in_config
from s3torchconnector.s3reader.constructor import S3ReaderConstructor, drop_in_constructor

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from s3torch.core import S3Client, S3ClientConfig
    from s3torchconnector.s3reader.protocol import S3ReaderConstructorProtocol

__all__ = ["S3FileSystem", "S3StorageReader", "S3StorageWriter", "StorageMetadata"]


class S3FileSystem(CoreFileSystem):
    """What torch's storage readers and writers need of a file system, on S3.

    Args:
        region: The region of the bucket.
        s3_client: Serves all requests in place of a client of its own.
        s3client_config: All other settings.
        reader_constructor: The kind of readers.
    """

    def __init__(
        self,
        region: str,
        s3_client: S3Client | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
    ) -> None:
        make = drop_in_constructor(reader_constructor or S3ReaderConstructor.default())
        super().__init__(region, s3_client, drop_in_config(s3client_config), make)

    def rename(self, old_path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Copies an object within its bucket and then deletes the old one."""
        super().rename(old_path, new_path)

    def copy_file(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Copies an object within S3, with a client that takes its source percent-encoded, too."""
        if not isinstance(self._client, EncodedSourceClient):
            super().copy_file(path, new_path)
            return
        old, new = parse_s3_uri(path), parse_s3_uri(new_path)
        self._client.copy_object(old.bucket, quote(old.key), new.bucket, new.key)


class S3StorageWriter(CoreStorageWriter):
    """Writes checkpoints to S3, for ``torch.distributed.checkpoint.save``.

    Args:
        region: The region of the bucket.
        path: The ``s3://bucket/prefix`` of the checkpoint.
        s3client_config: All other settings.
        prefix_strategy: Names the files of each rank.
        thread_count: How many files a rank writes.
        kwargs: What torch's ``FileSystemWriter`` takes, and the further options of
            ``s3torch.dcp.S3StorageWriter``.
    """

    def __init__(
        self,
        region: str,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        prefix_strategy: Callable[[int], str] | None = None,
        thread_count: int = 1,
        **kwargs: Any,
    ) -> None:
        config = drop_in_config(s3client_config)
        super().__init__(region, path, config, prefix_strategy, thread_count, **kwargs)


class S3StorageReader(CoreStorageReader):
    """Reads checkpoints from S3, for ``torch.distributed.checkpoint.load``.

    Args:
        region: The region of the bucket.
        path: The ``s3://bucket/prefix`` of the checkpoint.
        s3client_config: All other settings.
        reader_constructor: The kind of readers.
        kwargs: The further options of ``s3torch.dcp.S3StorageReader``. ``weights_only`` is False here: what
            is no tensor may run code, in the hands of torch's planner; what is a tensor does not.
    """

    def __init__(
        self,
        region: str,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **kwargs: Any,
    ) -> None:
        make = None if reader_constructor is None else drop_in_constructor(reader_constructor)
        # As with torch's own readers, objects are as the planner loads them.
        options = {"weights_only": False, **kwargs}
        super().__init__(region, path, drop_in_config(s3client_config), make, **options)

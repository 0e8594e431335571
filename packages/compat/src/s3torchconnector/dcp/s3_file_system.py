"""Storage of distributed checkpoints, as s3torchconnector has it."""

from __future__ import annotations

import uuid
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

    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
    from torch.distributed.checkpoint.storage import WriteResult
    from torch.futures import Future

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
        thread_count: How many files each rank writes, empty ones among them where it has fewer items, as
            torch's own writer does.
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

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes the files of this rank and returns when all are complete.

        Raises:
            S3Error: A file could not be written; those that were not complete do not appear.
        """
        written = super().write_data(plan, planner)
        if self.single_file_per_rank:
            names = {result.storage_data.relative_path for result in written.value()}
            # Named for this save, as the others are: no file of an older checkpoint is written over.
            save_id = uuid.uuid4().hex[:16]
            for n in range(len(names), self.thread_count):
                name = f"{plan.storage_data.prefix}{n}-{save_id}.distcp"
                with self.fs.create_stream(self.fs.concat_path(self.path, name), "wb"):
                    pass
        return written


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

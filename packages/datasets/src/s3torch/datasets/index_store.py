"""Where the indexes of tar archives are kept: beside them, under another prefix, or in a folder."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

from s3torch.core import SequentialS3Reader
from s3torch.core.errors import NotFoundError
from s3torch.core.uri import parse_s3_uri
from s3torch.datasets.tar_index import INDEX_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from s3torch.core import S3BucketKeyData, S3Client

__all__ = ["IndexStore"]

_AHEAD = 32


class IndexStore:
    """Loads and saves indexes as bytes.

    Args:
        location: An S3 URI or a folder, under which the index of ``s3://bucket/key`` is
            ``bucket/key.index.json``; ``None`` keeps it beside the archive.
    """

    def __init__(self, location: str | os.PathLike[str] | None) -> None:
        text = None if location is None else os.fspath(location)
        remote = text is not None and text.startswith("s3://")
        self._remote = parse_s3_uri(text) if remote and text is not None else None
        self._folder = None if text is None or remote else Path(text)

    def load(self, client: S3Client, items: Sequence[S3BucketKeyData]) -> Iterator[bytes | None]:
        """Yields the index of each archive, ``None`` where there is none; many requests are in flight."""
        if self._folder is not None:
            for item in items:
                path = self._path(self._folder, item)
                yield path.read_bytes() if path.exists() else None
            return
        for first in range(0, len(items), _AHEAD):
            readers = [client.get_object(*self._place(item)) for item in items[first : first + _AHEAD]]
            with ExitStack() as opened:
                for reader in readers:
                    opened.enter_context(reader)
                    if isinstance(reader, SequentialS3Reader):
                        reader.prefetch()
                for reader in readers:
                    try:
                        yield reader.read()
                    except NotFoundError:
                        yield None

    def save(self, client: S3Client, item: S3BucketKeyData, data: bytes) -> None:
        """Stores an index, whole or not at all."""
        if self._folder is None:
            with client.put_object(*self._place(item)) as writer:
                writer.write(data)
            return
        path = self._path(self._folder, item)
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise

    def _place(self, item: S3BucketKeyData) -> tuple[str, str]:
        if self._remote is None:
            return item.bucket, item.key + INDEX_SUFFIX
        bucket, prefix = self._remote
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        return bucket, f"{folder}{item.bucket}/{item.key}{INDEX_SUFFIX}"

    def _path(self, folder: Path, item: S3BucketKeyData) -> Path:
        return folder / item.bucket / f"{item.key.lstrip('/')}{INDEX_SUFFIX}"

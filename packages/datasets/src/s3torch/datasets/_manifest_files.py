"""The formats of manifests: objects to bytes, and back."""

from __future__ import annotations

import gzip
import io
import json
import os
from typing import TYPE_CHECKING, Any, Protocol

from s3torch.core import ObjectInfo, S3BucketKeyData
from s3torch.core.errors import ConfigurationError
from s3torch.datasets.versions import VersionedInfo, version_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_REQUIRED = ("bucket", "key", "size", "etag")
_COLUMNS = (*_REQUIRED, "last_modified", "version_id")


class ManifestFormat(Protocol):
    """How a manifest is stored."""

    def encode(self, objects: Iterable[S3BucketKeyData]) -> bytes:
        """Returns the content of the file."""
        ...

    def decode(self, data: bytes) -> Iterator[S3BucketKeyData]:
        """Yields the objects.

        Raises:
            ConfigurationError: It is no manifest.
        """
        ...


class JsonLines:
    """An object with ``bucket``, ``key``, ``size``, ``etag`` … on each line."""

    def encode(self, objects: Iterable[S3BucketKeyData]) -> bytes:
        """Returns the content of the file."""
        lines = io.BytesIO()
        for item in objects:
            fields = zip(_COLUMNS, _row(item), strict=True)
            known = {name: value for name, value in fields if value is not None}
            text = json.dumps(known, ensure_ascii=False)
            lines.write(text.encode("utf-8") + b"\n")
        return lines.getvalue()

    def decode(self, data: bytes) -> Iterator[S3BucketKeyData]:
        """Yields the objects."""
        for number, line in enumerate(data.splitlines(), 1):
            try:
                fields = json.loads(line)
                yield _item(**{name: fields[name] for name in _COLUMNS if name in fields})
            except (ValueError, KeyError, TypeError) as exc:
                raise ConfigurationError(f"line {number} is not that of a manifest: {exc!r}") from exc


class GzippedJsonLines(JsonLines):
    """The same, compressed."""

    def encode(self, objects: Iterable[S3BucketKeyData]) -> bytes:
        """Returns the content of the file."""
        # Without the time, equal manifests are equal files.
        return gzip.compress(super().encode(objects), compresslevel=6, mtime=0)

    def decode(self, data: bytes) -> Iterator[S3BucketKeyData]:
        """Yields the objects."""
        try:
            lines = gzip.decompress(data)
        except (OSError, EOFError) as exc:
            raise ConfigurationError(f"this is no gzipped manifest: {exc}") from exc
        return super().decode(lines)


class Parquet:
    """The same columns in a Parquet file."""

    def encode(self, objects: Iterable[S3BucketKeyData]) -> bytes:
        """Returns the content of the file."""
        pyarrow, parquet = _pyarrow()
        columns: list[list[Any]] = [[] for _ in _COLUMNS]
        for item in objects:
            for column, value in zip(columns, _row(item), strict=True):
                column.append(value)
        text, number = pyarrow.string(), pyarrow.int64()
        kinds = [text, text, number, text, number, text]
        arrays = [pyarrow.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        target = io.BytesIO()
        parquet.write_table(pyarrow.table(arrays, names=list(_COLUMNS)), target, compression="zstd")
        return target.getvalue()

    def decode(self, data: bytes) -> Iterator[S3BucketKeyData]:
        """Yields the objects."""
        pyarrow, parquet = _pyarrow()
        try:
            file = parquet.ParquetFile(io.BytesIO(data))
            present = [name for name in _COLUMNS if name in file.schema_arrow.names]
            if not set(_REQUIRED) <= set(present):
                raise ConfigurationError(f"a manifest has the columns {_REQUIRED}, this file {present}")
        except pyarrow.ArrowException as exc:
            raise ConfigurationError(f"this is no Parquet file: {exc}") from exc
        for batch in file.iter_batches(columns=present):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield _item(**dict(zip(present, row, strict=True)))


def format_of(path: str | os.PathLike[str]) -> ManifestFormat:
    """Returns the format that the name of a manifest tells.

    Raises:
        ConfigurationError: It tells none.
    """
    name = os.fspath(path)
    for suffix, kind in _FORMATS.items():
        if name.endswith(suffix):
            return kind()
    raise ConfigurationError(f"the name of a manifest ends in one of {', '.join(_FORMATS)}, got {name!r}")


_FORMATS: dict[str, type[JsonLines | Parquet]] = {
    ".jsonl": JsonLines,
    ".jsonl.gz": GzippedJsonLines,
    ".parquet": Parquet,
}


def _row(item: S3BucketKeyData) -> tuple[str, str, int, str, int, str | None]:
    info = item.object_info
    if info is None:
        return item.bucket, item.key, 0, "", 0, None
    return item.bucket, item.key, info.size, info.etag, info.last_modified, version_of(item)


def _item(
    bucket: str,
    key: str,
    size: int,
    etag: str,
    last_modified: int | None = None,
    version_id: str | None = None,
) -> S3BucketKeyData:
    if not isinstance(bucket, str) or not isinstance(key, str) or not isinstance(etag, str):
        raise ConfigurationError(f"expected names of an object, got {bucket!r}, {key!r} and {etag!r}")
    facts = (key, etag, int(size), int(last_modified or 0))
    if version_id is None:
        return S3BucketKeyData(bucket, key, ObjectInfo(*facts))
    return S3BucketKeyData(bucket, key, VersionedInfo(*facts, version_id=str(version_id)))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as exc:
        raise ConfigurationError(
            "manifests in Parquet need pyarrow; pip install 's3torch-datasets[parquet]'"
        ) from exc
    return pa, pq

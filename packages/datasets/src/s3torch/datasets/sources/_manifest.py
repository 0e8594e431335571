"""A stored listing: which objects a run reads, in which version, now and when the run is repeated."""

from __future__ import annotations

import gzip
import io
import json
import os
import uuid
import zlib
from dataclasses import dataclass
from itertools import count as count_up
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from s3torch.core import ObjectInfo, S3BucketKeyData, parse_s3_uri
from s3torch.core.errors import ConfigurationError
from s3torch.core.transfer import run_ahead
from s3torch.datasets.sources._sources import VersionedInfo, list_whole, uri_of, version_of
from s3torch.datasets.sources._table import ObjectTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.core import S3Client
    from s3torch.datasets.sources._sources import ObjectSource

_HEADS_AT_A_TIME = 32
# What S3 calls the version of an object that was stored while its bucket kept none; it can be overwritten.
_NO_VERSION = "null"
# A key may have 1024 bytes, each escaped.
_LONGEST_LINE = 1024 * 1024
_LARGEST = (1 << 63) - 1
_REQUIRED = ("bucket", "key", "size", "etag")
_COLUMNS = (*_REQUIRED, "last_modified", "version_id")


@dataclass(frozen=True, slots=True)
class ManifestChanges:
    """The URIs of the objects that ``Manifest.refresh`` found to be new, gone, or to have another ETag."""

    added: tuple[str, ...]
    dropped: tuple[str, ...]
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.dropped or self.changed)


class Manifest:
    """Objects with their sizes and ETags, and with their versions where the bucket keeps some.

    A dataset made of it lists nothing, and every read is pinned to the ETag: an object that was replaced
    meanwhile raises ``ObjectChangedError``. Of an object whose version is known that version is read, also
    when it was replaced or deleted since.

    Raises:
        ConfigurationError: Size or ETag of an object is not known.
    """

    def __init__(self, objects: Iterable[S3BucketKeyData]) -> None:
        self._objects = ObjectTable.of(map(_pinned, objects))

    @classmethod
    def build(cls, source: ObjectSource, client: S3Client, *, versions: bool = False) -> Manifest:
        """Lists a source; sends a HEAD for each object whose size and ETag it does not know.

        With ``versions``, the manifest keeps the version that each object has now, in buckets that keep
        versions. Prefixes are then listed with their versions; for other objects, a HEAD is sent for each.
        """

        def is_known(item: S3BucketKeyData) -> bool:
            return bool(getattr(item.object_info, "etag", None)) and not (
                versions and version_of(item) is None
            )

        def asked(item: S3BucketKeyData) -> S3BucketKeyData:
            head = client.head_object(item.bucket, item.key)
            version = head.version_id if versions else None
            info = _info(item.key, head.etag, head.size, head.last_modified, version)
            return item._replace(object_info=info)

        objects = ObjectTable.of(list_whole(source, client, versions=versions))
        unknown = (item for item in objects if not is_known(item))
        answers = run_ahead(asked, unknown, workers=_HEADS_AT_A_TIME, name="s3torch-manifest")
        return cls(item if is_known(item) else next(answers) for item in objects)

    @classmethod
    def load(cls, path: str | os.PathLike[str], client: S3Client | None = None) -> Manifest:
        """Reads a manifest that was saved, from a local path or with the client from an S3 URI.

        Raises:
            ConfigurationError: It is no manifest, or its name ends in nothing known.
        """
        if _is_s3(path):
            data = _client_for(path, client).get_object(*parse_s3_uri(path)).read()
        else:
            data = Path(path).read_bytes()
        try:
            return cls(format_of(path).decode(data))
        except ConfigurationError as exc:
            raise ConfigurationError(f"{os.fspath(path)}: {exc}") from exc

    def save(self, path: str | os.PathLike[str], client: S3Client | None = None) -> None:
        """Stores the manifest, whole or not at all, under a local path or with the client under an S3 URI.

        The name decides the format: ``.jsonl`` has JSON lines with ``bucket``, ``key``, ``size``, ``etag``,
        ``last_modified`` and, where it is known, ``version_id``, ``.jsonl.gz`` the same compressed, and
        ``.parquet`` the same columns (needs ``pyarrow``).

        Raises:
            ConfigurationError: The name ends in nothing known.
        """
        data = format_of(path).encode(self._objects)
        if _is_s3(path):
            with _client_for(path, client).put_object(*parse_s3_uri(path)) as writer:
                writer.write(data)
            return
        _write_whole(Path(path), data)

    def refresh(self, source: ObjectSource, client: S3Client) -> tuple[Manifest, ManifestChanges]:
        """Lists the source anew; objects that stay keep their place, new ones come at the end.

        It has versions if this one has some.

        Returns:
            The new manifest, and in what it differs.
        """
        versions = any(version_of(item) for item in self)
        fresh = Manifest.build(source, client, versions=versions)
        found = {(item.bucket, item.key): item for item in fresh}
        dropped, changed, kept = [], [], []
        for item in self:
            now = found.pop((item.bucket, item.key), None)
            if now is None:
                dropped.append(uri_of(item))
                continue
            if _row(now)[2:4] != _row(item)[2:4]:
                changed.append(uri_of(item))
            kept.append(now)
        added = map(uri_of, found.values())
        changes = ManifestChanges(tuple(added), tuple(dropped), tuple(changed))
        return Manifest([*kept, *found.values()]), changes

    @property
    def identity(self) -> str:
        """A digest of all objects, their sizes and ETags in their order: equal for equal content."""
        return self._objects.digest

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[S3BucketKeyData]:
        return iter(self._objects)

    def __getitem__(self, index: int) -> S3BucketKeyData:
        return self._objects[index]

    def __call__(self, client: S3Client) -> ObjectTable:  # noqa: ARG002 - a source of a dataset
        """Returns the objects, without a request."""
        return self._objects


@dataclass(frozen=True, slots=True)
class ManifestSource:
    """The objects of a manifest, which is read at the first use."""

    place: str | os.PathLike[str] | Manifest

    def __post_init__(self) -> None:
        if not isinstance(self.place, Manifest):
            format_of(self.place)
            if _is_s3(self.place):
                parse_s3_uri(self.place)

    def subject(self) -> str | None:
        return None if isinstance(self.place, Manifest) else repr(self)

    def __call__(self, client: S3Client) -> ObjectTable:
        place = self.place
        return (place if isinstance(place, Manifest) else Manifest.load(place, client))(client)


def _pinned(item: S3BucketKeyData) -> S3BucketKeyData:
    info = item.object_info
    if info is None or not getattr(info, "etag", None):
        raise ConfigurationError(f"a manifest needs the size and the ETag of {uri_of(item)}")
    # No more than what is stored, so that a manifest that was loaded equals the one that was saved.
    known = _info(item.key, info.etag, info.size, getattr(info, "last_modified", 0), version_of(item))
    return S3BucketKeyData(item.bucket, item.key, known)


def _info(key: str, etag: str, size: Any, last_modified: Any, version: str | None) -> ObjectInfo:
    known = (key, etag, _number("size", size, lowest=0), _number("last_modified", last_modified))
    return ObjectInfo(*known) if version in {None, _NO_VERSION} else VersionedInfo(*known, version_id=version)


def _number(name: str, value: Any, *, lowest: int = -_LARGEST) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = lowest - 1
    if not lowest <= number <= _LARGEST or (isinstance(value, float) and value != number):
        raise ConfigurationError(f"{name} must be an integer from {lowest} on, got {value!r:.80}")
    return number


def _write_whole(target: Path, data: bytes) -> None:
    """Writes a file, whole or not at all."""
    part = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _is_s3(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).startswith(("s3://", "s3:/"))


def _client_for(path: str | os.PathLike[str], client: S3Client | None) -> S3Client:
    if client is None:
        raise ConfigurationError(f"a client is needed for {path!r}")
    return client


def _to_lines(objects: Iterable[S3BucketKeyData]) -> bytes:
    lines = io.BytesIO()
    for item in objects:
        fields = zip(_COLUMNS, _row(item), strict=True)
        known = {name: value for name, value in fields if value is not None}
        lines.write(json.dumps(known, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return lines.getvalue()


def _from_lines(data: bytes) -> Iterator[S3BucketKeyData]:
    return _read_lines(io.BytesIO(data))


def _read_lines(file: Any) -> Iterator[S3BucketKeyData]:
    for number in count_up(1):
        try:
            line = file.readline(_LONGEST_LINE)
            if not line:
                return
            fields = json.loads(line)
            yield _item(**{name: fields[name] for name in _COLUMNS if name in fields})
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ConfigurationError(f"line {number} is not a line of a manifest: {exc!r}") from exc


def _to_gzip(objects: Iterable[S3BucketKeyData]) -> bytes:
    # Without the time, equal manifests are equal files.
    return gzip.compress(_to_lines(objects), compresslevel=6, mtime=0)


def _from_gzip(data: bytes) -> Iterator[S3BucketKeyData]:
    try:
        # Line by line: a few bytes can decompress to very many.
        yield from _read_lines(gzip.GzipFile(fileobj=io.BytesIO(data)))
    except (OSError, EOFError, zlib.error) as exc:
        raise ConfigurationError(f"this is not a gzipped manifest: {exc}") from exc


def _to_parquet(objects: Iterable[S3BucketKeyData]) -> bytes:
    pyarrow, parquet = _pyarrow()
    columns = list(zip(*map(_row, objects), strict=True)) or [()] * len(_COLUMNS)
    text, number = pyarrow.string(), pyarrow.int64()
    kinds = [text, text, number, text, number, text]
    try:
        arrays = [pyarrow.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    except UnicodeError as exc:
        why = f"a key cannot be kept in Parquet, choose a name that ends in .jsonl: {exc}"
        raise ConfigurationError(why) from exc
    target = io.BytesIO()
    parquet.write_table(pyarrow.table(arrays, names=list(_COLUMNS)), target, compression="zstd")
    return target.getvalue()


def _from_parquet(data: bytes) -> Iterator[S3BucketKeyData]:
    pyarrow, parquet = _pyarrow()
    number = 0
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        present = [name for name in _COLUMNS if name in file.schema_arrow.names]
        if not set(_REQUIRED) <= set(present):
            raise ConfigurationError(f"a manifest has the columns {_REQUIRED}, this file {present}")
        for batch in file.iter_batches(columns=present):
            for row in batch.to_pylist():
                number += 1
                yield _item(**row)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError) as exc:
        raise ConfigurationError(f"this is not a manifest in Parquet, from row {number} on: {exc}") from exc


class _Format(NamedTuple):
    encode: Callable[[Iterable[S3BucketKeyData]], bytes]
    decode: Callable[[bytes], Iterable[S3BucketKeyData]]


_FORMATS = {
    ".jsonl": _Format(_to_lines, _from_lines),
    ".jsonl.gz": _Format(_to_gzip, _from_gzip),
    ".parquet": _Format(_to_parquet, _from_parquet),
}


def format_of(path: str | os.PathLike[str]) -> _Format:
    """Returns the format for the suffix of a name; raises ``ConfigurationError`` if there is none."""
    name = os.fspath(path)
    for suffix, found in _FORMATS.items():
        if name.endswith(suffix):
            return found
    raise ConfigurationError(f"the name of a manifest ends in one of {', '.join(_FORMATS)}, got {name!r}")


def _row(item: S3BucketKeyData) -> tuple[str, str, int, str, int, str | None]:
    info = item.object_info
    if info is None:
        return item.bucket, item.key, 0, "", 0, None
    return item.bucket, item.key, info.size, info.etag, info.last_modified, version_of(item)


def _item(
    bucket: str, key: str, size: Any, etag: str, last_modified: Any = 0, version_id: str | None = None
) -> S3BucketKeyData:
    for name, value in (
        ("bucket", bucket),
        ("key", key),
        ("etag", etag),
        ("version_id", "" if version_id is None else version_id),
    ):
        if not isinstance(value, str):
            raise ConfigurationError(f"{name} must be a string, got {value!r:.80}")
    return S3BucketKeyData(
        bucket, key, _info(key, etag, size, 0 if last_modified is None else last_modified, version_id)
    )


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as exc:
        raise ConfigurationError(
            "manifests in Parquet need pyarrow; pip install 's3torch-datasets[parquet]'"
        ) from exc
    return pa, pq

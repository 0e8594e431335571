"""S3 as the file system of ``torch.distributed.checkpoint``, and the URIs of checkpoints and their files."""

from __future__ import annotations

import logging
import os
import random
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.distributed.checkpoint.filesystem import FileSystemBase

from s3torch.core import S3Client, S3ReaderConstructor, UserAgent, parse_s3_uri
from s3torch.core.errors import ConfigurationError, NotFoundError, S3Error

if TYPE_CHECKING:
    import io
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from s3torch.core import (
        DeleteFailure,
        ObjectInfo,
        PutOptions,
        S3ClientConfig,
        S3ReaderConstructorProtocol,
    )
    from s3torch.core.transfer import ObjectSource

_KEPT = 8
# Where AWS's settings are, unless a variable tells another place.
_SETTINGS = (("AWS_CONFIG_FILE", "~/.aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))
_log = logging.getLogger(__name__)
_DELETE_ATTEMPTS = 3
_LONGEST_WAIT = 5.0
_SHOWN = 5


def path_text(path: str | os.PathLike[str]) -> str:
    """Returns a path as a string; a ``pathlib.Path`` made of a URI gets its lost slash back."""
    text = os.fspath(path)
    if isinstance(path, os.PathLike) and text.startswith("s3:/") and not text.startswith("s3://"):
        return "s3://" + text.removeprefix("s3:/")
    return text


def checked_uri(path: str | os.PathLike[str]) -> str:
    """Returns the URI of a checkpoint as a string.

    Raises:
        ConfigurationError: It is no S3 URI. It is also a ``ValueError``.
    """
    parse_s3_uri(path)
    return path_text(path)


def join_path(path: str | os.PathLike[str], suffix: str) -> str:
    """Joins the URI of a folder and a relative path with exactly one slash."""
    return f"{path_text(path).rstrip('/')}/{suffix.lstrip('/')}"


def read_whole(fs: S3FileSystem, uri: str, constructor: S3ReaderConstructorProtocol | None = None) -> bytes:
    """Returns the bytes of a small object."""
    with fs.create_stream(uri, "rb", reader_constructor=constructor) as stream:
        return bytes(stream.read())


def shared_client(
    region: str | None, endpoint: str | None, config: S3ClientConfig | None, *, reader_kind: str
) -> S3Client:
    """Returns the client of this process with these settings, as long as the environment is the same.

    Users make a new storage writer for each checkpoint. With a client of its own each of them would resolve
    addresses again, open all connections again, and make another boto3 client, which takes longer than to
    write a small checkpoint. The last few are kept, with their idle connections.
    """
    try:
        hash(config)
    except TypeError:  # A function among the settings cannot be hashed.
        return _client.__wrapped__(region, endpoint, config, reader_kind, None)
    environment = frozenset(os.environ.items()), *(_file_state(*one) for one in _SETTINGS)
    return _client(region, endpoint, config, reader_kind, environment)


@lru_cache(maxsize=_KEPT)
def _client(
    region: str | None, endpoint: str | None, config: S3ClientConfig | None, reader_kind: str, _: object
) -> S3Client:
    agent = UserAgent(["dcp", torch.__version__, f"md/reader_type#{reader_kind}"])
    return S3Client(region, endpoint=endpoint, user_agent=agent, s3client_config=config)


def _file_state(variable: str, place: str) -> tuple[int, int] | None:
    """Tells a file with settings from what it was before."""
    try:
        status = Path(os.environ.get(variable) or place).expanduser().stat()
    except (OSError, RuntimeError):  # There is none, or no home to have it in.
        return None
    return status.st_mtime_ns, status.st_size


class S3FileSystem(FileSystemBase):
    """What torch's storage readers and writers need of a file system, on S3.

    Paths are ``s3://bucket/key`` URIs. It can be pickled, and be used by many threads.

    Args:
        region: The region of the bucket; ``None`` takes it from the environment.
        s3_client: Serves all requests; ``None`` for the client that all file systems of this process with
            the same settings share.
        s3client_config: The settings of the client.
        reader_constructor: The kind of readers; ``None`` for sequential ones.
        endpoint: The URL of a store that speaks S3.
        put_options: How new objects are stored.
    """

    def __init__(
        self,
        region: str | None,
        s3_client: S3Client | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        *,
        endpoint: str | None = None,
        put_options: PutOptions | None = None,
    ) -> None:
        self._path: str | os.PathLike[str] = ""
        self._reader_constructor = reader_constructor or S3ReaderConstructor.default()
        self._put_options = put_options
        if s3_client is None:
            kind = S3ReaderConstructor.get_reader_type_string(self._reader_constructor)
            s3_client = shared_client(region, endpoint, s3client_config, reader_kind=kind)
        self._client = s3_client

    @property
    def client(self) -> S3Client:
        """The client that serves all requests, those of other file systems with the same settings, too."""
        return self._client

    @contextmanager
    def create_stream(
        self,
        path: str | os.PathLike[str],
        mode: str,
        *,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        put_options: PutOptions | None = None,
        expected_size: int = 0,
    ) -> Generator[io.IOBase, None, None]:
        """Opens an object as a context manager.

        A new object appears when the block ends; if the block raises, nothing appears and an older object
        stays.
        ``reader_constructor`` and ``put_options`` hold for this object, in place of what holds for all, and
        ``expected_size`` is that of ``S3Client.put_object``.

        Raises:
            ConfigurationError: The path or the mode is wrong. It is also a ``ValueError``.
        """
        bucket, key = parse_s3_uri(path)
        if mode == "wb":
            options = put_options if put_options is not None else self._put_options
            with self._client.put_object(bucket, key, options=options, expected_size=expected_size) as writer:
                yield writer
        elif mode == "rb":
            make = reader_constructor or self._reader_constructor
            with self._client.get_object(bucket, key, reader_constructor=make) as reader:
                yield reader
        else:
            raise ConfigurationError(
                f"Invalid {mode=} mode argument: create_stream only supports rb (read mode) & wb (write mode)"
            )

    def open_ranges(
        self, path: str | os.PathLike[str], *, object_info: ObjectInfo | None = None
    ) -> ObjectSource:
        """Opens an object as a source of ranges, many of which can be in flight."""
        bucket, key = parse_s3_uri(path)
        return self._client.open_ranges(bucket, key, object_info=object_info)

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return join_path(path, suffix)

    def init_path(self, path: str | os.PathLike[str]) -> str | os.PathLike[str]:
        self._path = path
        return path

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Copies an object within its bucket and then deletes the old one; one of the two is always there.

        Raises:
            ConfigurationError: The buckets differ. It is also a ``ValueError``.
            S3Error: The copy failed, or the deletion failed three times.
        """
        old, new = parse_s3_uri(path), parse_s3_uri(new_path)
        if old.bucket != new.bucket:
            raise ConfigurationError(
                "Source and destination buckets cannot be different (rename works within one bucket), "
                f"got {old} and {new}"
            )
        if old == new:
            return
        self.copy_file(path, new_path)
        self._delete_with_retry(old.bucket, old.key)

    def copy_file(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Copies an object within S3, with its metadata and tags.

        Storage class and encryption are those of ``put_options``, which S3 does not take from the source.
        """
        old, new = parse_s3_uri(path), parse_s3_uri(new_path)
        options = None if self._put_options is None else self._put_options.placement
        self._client.copy_object(old.bucket, old.key, new.bucket, new.key, options=options)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        pass  # S3 has no folders.

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Whether there is an object with this URI; every error but "not found" is raised."""
        bucket, key = parse_s3_uri(path)
        try:
            self._client.head_object(bucket, key)
        except NotFoundError:
            return False
        return True

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        """Deletes an object; a missing one is no error."""
        bucket, key = parse_s3_uri(path)
        self._client.delete_object(bucket, key)

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        """Lists the URIs of what is directly in a folder: its objects and, without a slash, its folders."""
        bucket, prefix = _folder(path)
        names: list[str] = []
        for page in self._client.list_objects(bucket, prefix, "/"):
            names += (info.key for info in page.object_info if info.key != prefix)
            names += (folder.rstrip("/") for folder in page.common_prefixes)
        return [f"s3://{bucket}/{name}" for name in sorted(names)]

    def walk(self, path: str | os.PathLike[str]) -> Iterator[str]:
        """Yields the names of all objects in a folder and its folders, relative to it, page by page."""
        for info in self.walk_objects(path):
            yield info.key

    def walk_objects(self, path: str | os.PathLike[str]) -> Iterator[ObjectInfo]:
        """Yields what a listing tells of all objects in a folder, with keys relative to it."""
        yield from self._entries(path, "")

    def list_folder(self, path: str | os.PathLike[str]) -> Iterator[ObjectInfo]:
        """Yields what a listing tells of the objects directly in a folder, with keys relative to it."""
        yield from self._entries(path, "/")

    def _entries(self, path: str | os.PathLike[str], delimiter: str) -> Iterator[ObjectInfo]:
        bucket, prefix = _folder(path)
        for page in self._client.list_objects(bucket, prefix, delimiter):
            for info in page.object_info:
                yield replace(info, key=info.key.removeprefix(prefix))

    def rm_files(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        """Deletes objects, 1,000 with a request; missing ones are no error.

        Raises:
            S3Error: Some could not be deleted; the text names them.
        """
        keys: dict[str, list[str]] = {}
        for path in paths:
            bucket, key = parse_s3_uri(path)
            keys.setdefault(bucket, []).append(key)
        for bucket, batch in keys.items():
            _check_deleted(bucket, self._client.delete_objects(bucket, batch))

    def rm_tree(self, path: str | os.PathLike[str]) -> None:
        """Deletes all objects in a folder and its folders, 1,000 with a request, while they are listed.

        Raises:
            ConfigurationError: It is no folder, but a whole bucket. It is also a ``ValueError``.
            S3Error: Some could not be deleted; the text names them.
        """
        bucket, prefix = _folder(path)
        if not prefix:
            raise ConfigurationError(f"rm_tree deletes a folder, not a whole bucket, got {path}")
        _check_deleted(bucket, self._client.delete_prefix(bucket, prefix).failures)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this can be the place of a checkpoint: an S3 URI, or a ``pathlib.Path`` of one."""
        if isinstance(checkpoint_id, Path):
            return True
        try:
            parse_s3_uri(checkpoint_id)
        except ConfigurationError:
            return False
        return True

    def _delete_with_retry(self, bucket: str, key: str) -> None:
        for attempt in range(1, _DELETE_ATTEMPTS + 1):
            try:
                self._client.delete_object(bucket, key)
            except S3Error as exc:
                if attempt == _DELETE_ATTEMPTS:
                    raise
                _log.warning("cannot delete s3://%s/%s yet: %s", bucket, key, exc)
                time.sleep(random.uniform(0, min(2**attempt, _LONGEST_WAIT)))  # noqa: S311
            else:
                return


def _folder(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Returns the bucket of a folder, and what the keys of all objects in it begin with."""
    bucket, key = parse_s3_uri(path)
    return bucket, f"{key.rstrip('/')}/" if key.rstrip("/") else ""


def _check_deleted(bucket: str, failures: Sequence[DeleteFailure]) -> None:
    if failures:
        shown = ", ".join(f"{one.key} ({one.code}: {one.message})" for one in failures[:_SHOWN])
        message = f"{len(failures)} objects could not be deleted: {shown}"
        raise replace(failures[0], message=message).error(bucket)

"""Where the objects of a dataset come from.

A source is any callable that takes an ``S3Client`` and returns an iterable of ``S3BucketKeyData``. A dataset
calls it for each listing; to work in spawned workers it has to be picklable. An object whose ``object_info``
is a ``VersionedInfo`` is read in that version.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from s3torch.core import Glob, ObjectInfo, S3BucketKeyData, S3Client, S3Reader, S3Uri, parse_s3_uri
from s3torch.core.errors import ConfigurationError

ObjectSource: TypeAlias = Callable[[S3Client], Iterable[S3BucketKeyData]]
"""Takes the client of a dataset and returns its objects."""
Uri: TypeAlias = str | os.PathLike[str]
Uris: TypeAlias = Uri | Iterable[Uri]
# Directory buckets (S3 Express One Zone) are named as "base--use1-az4--x-s3", their access points otherwise.
_DIRECTORY_SUFFIXES = ("--x-s3", "--xa-s3")
_REPORTED = 1000


@dataclass(frozen=True, slots=True)
class VersionedInfo(ObjectInfo):
    """The facts of one version of an object, which datasets then read, whatever the latest is."""

    version_id: str = ""


def version_of(item: S3BucketKeyData) -> str | None:
    """Returns the version to read of an object; ``None`` for the latest."""
    info = item.object_info
    return info.version_id if isinstance(info, VersionedInfo) else None


def facts_of(item: S3BucketKeyData) -> dict[str, Any]:
    """Returns what is known of an object as arguments of ``S3Client.get_object`` and ``open_ranges``."""
    version = version_of(item)
    # Clients of users may have no such argument.
    return {"object_info": item.object_info} | ({} if version is None else {"version_id": version})


def size_of(item: S3BucketKeyData) -> int:
    """Returns the size of an object in bytes; 0 while it is not known."""
    return 0 if item.object_info is None else item.object_info.size


def uri_of(item: S3BucketKeyData | S3Reader) -> str:
    return f"s3://{item.bucket}/{item.key}"


@runtime_checkable
class PagedSource(Protocol):
    """A source whose listing another process can continue at any page, so that workers can share one."""

    def page(self, client: S3Client, cursor: str | None) -> tuple[list[S3BucketKeyData], str | None]:
        """Returns a page, the first for ``None``, and the cursor of the next; ``None`` after the last."""
        ...


@runtime_checkable
class WholeSource(Protocol):
    """A source that can list everything at once in another way than page by page."""

    def whole(self, client: S3Client) -> Iterable[S3BucketKeyData]:
        """Lists everything, in the order of the source."""
        ...

    def latest_versions(self, client: S3Client) -> Iterable[S3BucketKeyData]:
        """Lists everything with the version that each object has now, where the bucket keeps versions."""
        ...


@runtime_checkable
class CommonSource(Protocol):
    """A source that lists the same on all ranks, so that one of them can list for others."""

    def subject(self) -> str | None:
        """Names what is listed, in words that are the same on all ranks; ``None`` if they cannot know."""
        ...


def _objects(bucket: str, infos: Iterable[ObjectInfo]) -> Iterator[S3BucketKeyData]:
    """Yields the objects of a listing; sorts those of directory buckets, which list in no order, by key."""
    if bucket.endswith(_DIRECTORY_SUFFIXES):
        infos = sorted(infos, key=lambda info: info.key.encode())
    return (S3BucketKeyData(bucket, info.key, info) for info in infos)


def list_whole(source: ObjectSource, client: S3Client, *, versions: bool) -> Iterable[S3BucketKeyData]:
    """Lists everything, if the source can with the version that each object has now."""
    if isinstance(source, WholeSource):
        return source.latest_versions(client) if versions else source.whole(client)
    return source(client)


def subject_of(source: ObjectSource, *settings: object) -> str | None:
    """Names what a dataset lists with these settings; ``None`` if each rank may list something else."""
    subject = source.subject() if isinstance(source, CommonSource) else None
    return None if subject is None else f"{subject} {settings!r}"


@dataclass(frozen=True, slots=True)
class PrefixSource:
    """All objects whose key begins with the key of a URI, in S3's listing order; one prefix after the other.

    The order is that of the keys' UTF-8 bytes. Directory buckets list in none, so all of their objects are
    listed first and sorted, because all ranks have to agree on the order. Markers of folders (``dir/``, no
    bytes) are objects like any other. Each object brings its size and ETag, so that no request has to ask for
    them.
    """

    uris: tuple[S3Uri, ...]

    @classmethod
    def from_uri(cls, s3_uri: Uris) -> PrefixSource:
        """Parses one URI or several; refuses none, and a prefix that includes another."""
        uris = _parsed(s3_uri)
        if not uris:
            raise ConfigurationError("expected at least one prefix, got none")
        for one, other in pairwise(sorted(uris)):
            if one.bucket == other.bucket and other.key.startswith(one.key):
                raise ConfigurationError(f"{other} is part of {one}, so its objects would come twice")
        return cls(uris)

    def __call__(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        """Lists page by page, as far as the iterator is consumed."""
        for bucket, prefix in self.uris:
            pages = client.list_objects(bucket, prefix)
            yield from _objects(bucket, (info for page in pages for info in page.object_info))

    def subject(self) -> str:
        return repr(self)

    def whole(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        # Large folders side by side.
        for bucket, prefix in self.uris:
            yield from _objects(bucket, client.walk(bucket, prefix))

    def latest_versions(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        for bucket, prefix in self.uris:
            for page in client.list_object_versions(bucket, prefix):
                for one in page.versions:
                    if one.is_latest and not one.is_delete_marker:
                        facts = (one.key, one.etag, one.size, one.last_modified, one.storage_class)
                        info = VersionedInfo(*facts, version_id=one.version_id)
                        yield S3BucketKeyData(bucket, one.key, info)

    def page(self, client: S3Client, cursor: str | None) -> tuple[list[S3BucketKeyData], str | None]:
        number, token = (0, None) if cursor is None else json.loads(cursor)
        bucket, prefix = self.uris[number]
        if bucket.endswith(_DIRECTORY_SUFFIXES):
            objects = list(PrefixSource((self.uris[number],)).whole(client))
        else:
            pages = client.list_objects(bucket, prefix)
            pages.continuation_token = token
            objects = list(_objects(bucket, next(pages).object_info))
            if not pages.complete:
                return objects, json.dumps([number, pages.continuation_token])
        return objects, json.dumps([number + 1, None]) if number + 1 < len(self.uris) else None


@dataclass(frozen=True, slots=True)
class GlobSource:
    """All objects whose key matches a pattern, in S3's listing order; see ``s3torch.core.Glob``."""

    uri: S3Uri

    def __call__(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        return _objects(self.uri.bucket, client.glob(*self.uri))

    def subject(self) -> str:
        return repr(self)

    def page(self, client: S3Client, cursor: str | None) -> tuple[list[S3BucketKeyData], str | None]:
        glob = Glob(self.uri.key)
        prefixes = PrefixSource(tuple(S3Uri(self.uri.bucket, prefix) for prefix in glob.prefixes))
        objects, cursor = prefixes.page(client, cursor)
        return [item for item in objects if glob.matches(item.key)], cursor


@dataclass(frozen=True, slots=True)
class ObjectsSource:
    """The objects of given URIs in the given order; what is not known of them is asked when they are read."""

    objects: tuple[S3BucketKeyData, ...]

    @classmethod
    def from_uris(cls, object_uris: Uris) -> ObjectsSource:
        """Parses one URI or all of an iterable, which is consumed once, now."""
        return cls(tuple(S3BucketKeyData(*uri) for uri in _parsed(object_uris)))

    def __call__(self, client: S3Client) -> tuple[S3BucketKeyData, ...]:  # noqa: ARG002
        return self.objects


def _parsed(uris: Uris) -> tuple[S3Uri, ...]:
    if isinstance(uris, str | os.PathLike):
        uris = [uris]
    elif not isinstance(uris, Iterable):
        raise ConfigurationError(f"expected an S3 URI or several, got {uris!r}")
    return tuple(parse_s3_uri(uri) for uri in uris)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A filter of objects; all conditions have to hold.

    To work in spawned workers, ``where`` has to be picklable.

    Attributes:
        suffix: What the key ends with, or several suffixes of which it ends with one.
        min_size: The least bytes.
        max_size: The most bytes.
        where: Called with each ``S3BucketKeyData``; true for those that belong to the dataset.
        skip_markers: Leaves out the markers of folders: empty objects whose key ends in ``/``.
    """

    suffix: str | tuple[str, ...] | None = None
    min_size: int | None = None
    max_size: int | None = None
    where: Callable[[S3BucketKeyData], object] | None = None
    skip_markers: bool = False

    def __post_init__(self) -> None:
        suffixes = self.suffix if isinstance(self.suffix, tuple) else (self.suffix or "",)
        if not all(isinstance(suffix, str) for suffix in suffixes):
            raise ConfigurationError(f"suffix must be a string or a tuple of strings, got {self.suffix!r}")
        if self.where is not None and not callable(self.where):
            raise ConfigurationError(f"where must be callable, got {self.where!r}")

    def __call__(self, item: S3BucketKeyData) -> bool:
        """Whether an object belongs; refuses to guess where a size is asked for and not known."""
        if self.suffix is not None and not item.key.endswith(self.suffix):
            return False
        if self.min_size is not None or self.max_size is not None:
            if item.object_info is None:
                why = f"no size is known of {uri_of(item)}; a prefix and a manifest have sizes"
                raise ConfigurationError(why)
            size = item.object_info.size
            if size < (self.min_size or 0) or (self.max_size is not None and size > self.max_size):
                return False
        # Where the size is unknown, the name alone has to do.
        if self.skip_markers and size_of(item) == 0 and item.key.endswith("/"):
            return False
        return self.where is None or bool(self.where(item))


@dataclass(frozen=True, slots=True)
class ListingProgress:
    """How many objects a listing has found, and all their bytes; ``done`` in the last report."""

    objects: int
    bytes: int
    done: bool = False


@dataclass(frozen=True, slots=True)
class ReportedSource:
    """The objects of another source, with reports while they are listed.

    It is used in place of the other one::

        S3MapDataset("eu-west-1", ReportedSource(PrefixSource.from_uri(uri), report="tqdm"))

    ``report`` is called after every 1,000 objects, the size of a page of S3, and at the end; ``"tqdm"`` shows
    a counter on the terminal, with the package of that name.
    """

    source: ObjectSource
    report: Callable[[ListingProgress], object] | Literal["tqdm"] = "tqdm"

    def __post_init__(self) -> None:
        if self.report != "tqdm" and not callable(self.report):
            raise ConfigurationError(f"report must be callable or 'tqdm', got {self.report!r}")

    def __call__(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        if self.report != "tqdm":
            yield from self._listed(client, self.report)
            return
        try:
            from tqdm.auto import tqdm
        except ImportError as exc:
            raise ConfigurationError("report='tqdm' needs tqdm; pip install tqdm") from exc
        with closing(tqdm(desc="listing", unit=" objects")) as bar:
            yield from self._listed(client, lambda now: bar.update(now.objects - bar.n))

    def _listed(
        self, client: S3Client, report: Callable[[ListingProgress], object]
    ) -> Iterator[S3BucketKeyData]:
        count = total = 0
        for item in self.source(client):
            count += 1
            total += size_of(item)
            if count % _REPORTED == 0:
                report(ListingProgress(count, total))
            yield item
        report(ListingProgress(count, total, done=True))

"""Where the objects of a dataset come from.

A source is any callable that takes an ``S3Client`` and returns an iterable of ``S3BucketKeyData``. A dataset
asks it anew for each listing; to work in spawned workers it has to be picklable. An object whose
``object_info`` is a ``VersionedInfo`` is read in that version.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeAlias, runtime_checkable

from s3torch.core import ObjectInfo, S3BucketKeyData, S3Client, S3Uri, parse_s3_uri
from s3torch.core.errors import ConfigurationError
from s3torch.core.globs import Glob
from s3torch.datasets.versions import VersionedInfo

__all__ = [
    "CommonSource",
    "GlobSource",
    "ObjectSource",
    "ObjectsSource",
    "PagedSource",
    "PrefixSource",
    "subject_of",
]

ObjectSource: TypeAlias = Callable[[S3Client], Iterable[S3BucketKeyData]]
# As in "base--use1-az4--x-s3"; access points of such buckets end with the other.
_DIRECTORY_SUFFIXES = ("--x-s3", "--xa-s3")
Uris: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@runtime_checkable
class PagedSource(Protocol):
    """A source whose listing another process can take up at any page, so that workers can share one."""

    def page(self, client: S3Client, cursor: str | None) -> tuple[list[S3BucketKeyData], str | None]:
        """Returns a page, the first for ``None``, and the cursor of the next; ``None`` after the last."""
        ...


@runtime_checkable
class CommonSource(Protocol):
    """A source that lists the same on all ranks, so that one of them can list for others."""

    def subject(self) -> str | None:
        """Names what is listed, in words that are the same on all ranks; ``None`` if they cannot know."""
        ...


def subject_of(source: ObjectSource, *settings: object) -> str | None:
    """Names what a dataset lists.

    Args:
        source: The source; one of a user may list what it likes on each rank, and has no name.
        settings: What else decides which objects there are.
    """
    subject = source.subject() if isinstance(source, CommonSource) else None
    return None if subject is None else f"{subject} {settings!r}"


def _is_directory(bucket: str) -> bool:
    """Tells whether a name is that of a directory bucket (S3 Express One Zone)."""
    return bucket.endswith(_DIRECTORY_SUFFIXES)


def _in_order(bucket: str, infos: Iterable[ObjectInfo]) -> Iterable[ObjectInfo]:
    """Returns the objects of a listing in the order of keys, in which directory buckets do not list them."""
    return sorted(infos, key=lambda info: info.key.encode()) if _is_directory(bucket) else infos


@dataclass(frozen=True, slots=True)
class PrefixSource:
    """All objects whose key begins with the key of a URI, in S3's listing order; one prefix after the other.

    The order is that of the keys' UTF-8 bytes. Directory buckets list in none, so that of their objects all
    are listed first and put into this one, in which all ranks have to agree. Markers of folders
    (``dir/``, no bytes) are objects like any other. Each object brings its size and ETag, so that no request
    has to ask for them.
    """

    uris: tuple[S3Uri, ...]

    @classmethod
    def from_uri(cls, s3_uri: Uris) -> PrefixSource:
        """Takes one URI or several apart.

        Raises:
            ConfigurationError: One is no S3 URI, there are none, or one includes another.
        """
        uris = _parsed(s3_uri)
        if not uris:
            raise ConfigurationError("expected at least one prefix, got none")
        for one, other in pairwise(sorted(uris)):
            if one.bucket == other.bucket and other.key.startswith(one.key):
                raise ConfigurationError(f"{other} is part of {one}: its objects would come twice")
        return cls(uris)

    def __call__(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        """Lists, page by page, as far as the iterator is taken."""
        for bucket, prefix in self.uris:
            pages = client.list_objects(bucket, prefix)
            for info in _in_order(bucket, (info for page in pages for info in page.object_info)):
                yield S3BucketKeyData(bucket, info.key, info)

    def subject(self) -> str:
        """Names what is listed."""
        return repr(self)

    def whole(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        """Lists everything, large folders side by side."""
        for bucket, prefix in self.uris:
            for info in _in_order(bucket, client.walk(bucket, prefix)):
                yield S3BucketKeyData(bucket, info.key, info)

    def latest_versions(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        """Lists everything with the version that each object has now, where the bucket keeps versions."""
        for bucket, prefix in self.uris:
            for page in client.list_object_versions(bucket, prefix):
                for one in page.versions:
                    if one.is_latest and not one.is_delete_marker:
                        facts = (one.key, one.etag, one.size, one.last_modified, one.storage_class)
                        yield S3BucketKeyData(
                            bucket, one.key, VersionedInfo(*facts, version_id=one.version_id)
                        )

    def page(self, client: S3Client, cursor: str | None) -> tuple[list[S3BucketKeyData], str | None]:
        """Lists one page; of a directory bucket all there is."""
        number, token = (0, None) if cursor is None else json.loads(cursor)
        bucket, prefix = self.uris[number]
        if _is_directory(bucket):
            objects = list(PrefixSource((self.uris[number],)).whole(client))
        else:
            pages = client.list_objects(bucket, prefix)
            pages.continuation_token = token
            objects = [S3BucketKeyData(bucket, info.key, info) for info in next(pages).object_info]
            if not pages.complete:
                return objects, json.dumps([number, pages.continuation_token])
        return objects, json.dumps([number + 1, None]) if number + 1 < len(self.uris) else None


@dataclass(frozen=True, slots=True)
class GlobSource:
    """All objects whose key matches a pattern, in S3's listing order; see ``s3torch.core.globs``."""

    uri: S3Uri

    def __call__(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        """Lists what can match, with several requests at a time."""
        bucket, pattern = self.uri
        found = _in_order(bucket, client.glob(bucket, pattern))
        return (S3BucketKeyData(bucket, info.key, info) for info in found)

    def subject(self) -> str:
        """Names what is listed."""
        return repr(self)

    def page(self, client: S3Client, cursor: str | None) -> tuple[list[S3BucketKeyData], str | None]:
        """Lists one page and leaves out what does not match."""
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
        """Takes one URI or all of an iterable, which is gone through once, now.

        Raises:
            ConfigurationError: One of them is no S3 URI.
        """
        return cls(tuple(S3BucketKeyData(*uri) for uri in _parsed(object_uris)))

    def __call__(self, client: S3Client) -> tuple[S3BucketKeyData, ...]:  # noqa: ARG002
        """Returns the objects; asks S3 nothing."""
        return self.objects


def _parsed(uris: Uris) -> tuple[S3Uri, ...]:
    if isinstance(uris, str | os.PathLike):
        uris = [uris]
    elif not isinstance(uris, Iterable):
        raise ConfigurationError(f"expected an S3 URI or several, got {uris!r}")
    return tuple(parse_s3_uri(uri) for uri in uris)

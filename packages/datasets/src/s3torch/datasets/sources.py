"""Where the objects of a dataset come from.

A source is any callable that takes an ``S3Client`` and returns an iterable of ``S3BucketKeyData``. A dataset
asks it anew for each listing; to work in spawned workers it has to be picklable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from s3torch.core import S3BucketKeyData, S3Client, S3Uri, parse_s3_uri
from s3torch.core.errors import ConfigurationError

__all__ = ["ObjectSource", "ObjectsSource", "PrefixSource"]

ObjectSource: TypeAlias = Callable[[S3Client], Iterable[S3BucketKeyData]]


@dataclass(frozen=True, slots=True)
class PrefixSource:
    """All objects whose key begins with the key of a URI, in S3's listing order.

    The order is that of the keys' UTF-8 bytes; directory buckets have none. Markers of folders
    (``dir/``, no bytes) are objects like any other. Each object brings its size and ETag, so that no request
    has to ask for them.
    """

    uri: S3Uri

    @classmethod
    def from_uri(cls, s3_uri: str | os.PathLike[str]) -> PrefixSource:
        """Takes the URI apart.

        Raises:
            ConfigurationError: It is no S3 URI.
        """
        return cls(parse_s3_uri(s3_uri))

    def __call__(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        """Lists, page by page, as far as the iterator is taken."""
        bucket, prefix = self.uri
        for page in client.list_objects(bucket, prefix):
            for info in page.object_info:
                yield S3BucketKeyData(bucket, info.key, info)


@dataclass(frozen=True, slots=True)
class ObjectsSource:
    """The objects of given URIs in the given order; what is not known of them is asked when they are read."""

    objects: tuple[S3BucketKeyData, ...]

    @classmethod
    def from_uris(
        cls, object_uris: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
    ) -> ObjectsSource:
        """Takes one URI or all of an iterable, which is gone through once, now.

        Raises:
            ConfigurationError: One of them is no S3 URI.
        """
        if isinstance(object_uris, str | os.PathLike):
            object_uris = [object_uris]
        elif not isinstance(object_uris, Iterable):
            raise ConfigurationError(f"expected an S3 URI or several, got {object_uris!r}")
        return cls(tuple(S3BucketKeyData(*parse_s3_uri(uri)) for uri in object_uris))

    def __call__(self, client: S3Client) -> tuple[S3BucketKeyData, ...]:  # noqa: ARG002
        """Returns the objects; asks S3 nothing."""
        return self.objects

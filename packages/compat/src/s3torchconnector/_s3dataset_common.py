"""What datasets are made of, as s3torchconnector has it."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING

from s3torch.core import parse_s3_uri
from s3torch.datasets import ObjectsSource, PrefixSource, S3MapDataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from s3torch.core import S3BucketKeyData, S3Client, S3Reader

__all__ = ["get_objects_from_prefix", "get_objects_from_uris", "identity", "parse_s3_uri"]

# The very function that datasets know as "hand out the readers".
identity: Callable[[S3Reader], S3Reader] = signature(S3MapDataset).parameters["transform"].default


def get_objects_from_uris(object_uris: str | Iterable[str], client: S3Client) -> Iterable[S3BucketKeyData]:
    """Returns the objects of one URI or of several."""
    return iter(ObjectsSource.from_uris(object_uris)(client))


def get_objects_from_prefix(s3_uri: str, client: S3Client) -> Iterable[S3BucketKeyData]:
    """Lists the objects whose key begins with the key of the URI."""
    return iter(PrefixSource.from_uri(s3_uri)(client))

"""Many objects deleted, 1,000 in a request and several requests at a time."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from s3torch.core.abilities import versions_of
from s3torch.core.errors import ConfigurationError
from s3torch.core.listing import ListObjectStream
from s3torch.core.models import ObjectVersion
from s3torch.core.transfer import run_ahead
from s3torch.core.version_listing import ListVersionStream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from s3torch.core.connection import Connector
    from s3torch.core.models import DeleteFailure

__all__ = ["Deletion", "delete_many", "delete_prefix"]

# https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
_KEYS_PER_REQUEST = 1000
_REQUESTS = 8

_log = logging.getLogger(__name__)

# A key, or a key and the version of it that is meant.
Target = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Deletion:
    """What became of objects that were to be deleted.

    Attributes:
        deleted: How many are gone now.
        failures: The others, and why.
    """

    deleted: int = 0
    failures: list[DeleteFailure] = field(default_factory=list)


def delete_many(
    connector: Connector, bucket: str, keys: Iterable[str | ObjectVersion | tuple[str, str]]
) -> Deletion:
    """Deletes many objects or versions; see ``S3Client.delete_objects``."""
    if isinstance(keys, str | bytes):
        raise ConfigurationError(f"keys must be many keys, got {keys!r}; use delete_object for one")
    return _delete(connector, bucket, map(_target, keys))


def delete_prefix(connector: Connector, bucket: str, prefix: str, *, versions: bool) -> Deletion:
    """Deletes all that a prefix begins; see ``S3Client.delete_prefix``."""
    if not isinstance(prefix, str) or not prefix:
        raise ConfigurationError(f"prefix must be a non-empty string, got {prefix!r}")
    if versions:
        pages = ListVersionStream(connector, bucket, prefix=prefix)
        return _delete(connector, bucket, (_target(one) for page in pages for one in page.versions))
    listing = ListObjectStream(connector, bucket, prefix=prefix)
    return _delete(connector, bucket, ((info.key, None) for page in listing for info in page.object_info))


def _delete(connector: Connector, bucket: str, targets: Iterator[Target]) -> Deletion:
    deleted, failures = 0, []

    def send(batch: list[Target]) -> tuple[int, list[DeleteFailure]]:
        _log.debug("DeleteObjects s3://%s, %d keys", bucket, len(batch))
        return len(batch), _send(connector, bucket, batch)

    for count, failed in run_ahead(send, _batches(targets), workers=_REQUESTS, name="s3torch-delete"):
        deleted += count - len(failed)
        failures += failed
    return Deletion(deleted, failures)


def _send(connector: Connector, bucket: str, batch: list[Target]) -> list[DeleteFailure]:
    control = connector.get().control
    keys = [key for key, version in batch if version is None]
    versions = [(key, version) for key, version in batch if version is not None]
    failures = control.delete_objects(bucket, keys) if keys else []
    return failures + (versions_of(control).delete_versions(bucket, versions) if versions else [])


def _batches(targets: Iterator[Target]) -> Iterator[list[Target]]:
    while batch := list(islice(targets, _KEYS_PER_REQUEST)):
        yield batch


def _target(key: object) -> Target:
    if isinstance(key, ObjectVersion):
        return key.key, key.version_id
    if isinstance(key, tuple) and len(key) == 2 and all(isinstance(part, str) for part in key):
        return key
    if not isinstance(key, str):
        raise ConfigurationError(f"expected a key, an ObjectVersion, or a key and a version, got {key!r}")
    return key, None

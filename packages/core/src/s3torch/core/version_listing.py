"""A listing of versions in progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.core.abilities import versions_of
from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core.connection import Connector
    from s3torch.core.models import ListVersionsResult

__all__ = ["ListVersionStream"]


class ListVersionStream:
    """Iterates over the pages of versions and delete markers, one request each, when each is asked for.

    It can be pickled at any time and goes on from the same place in another process. After an error the next
    step asks for the same page again.

    Args:
        connector: The client's.
        bucket: The bucket.
        prefix: What keys have to start with.
        delimiter: Keys that have it behind the prefix are folded into ``common_prefixes``.
        max_keys: Versions of a page; S3 gives no more than 1,000.
    """

    def __init__(
        self,
        connector: Connector,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        max_keys: int = 1000,
    ) -> None:
        if not bucket:
            raise ConfigurationError("Bucket should be specified")
        if max_keys < 1:
            raise ConfigurationError(f"max_keys must be at least 1, got {max_keys}")
        self.bucket = bucket
        self.prefix = prefix
        self.delimiter = delimiter
        self.max_keys = max_keys
        self.next_marker: tuple[str, str] | None = None
        self.complete = False
        self._connector = connector

    def __iter__(self) -> Iterator[ListVersionsResult]:
        return self

    def __next__(self) -> ListVersionsResult:
        if self.complete:
            raise StopIteration
        page = versions_of(self._connector.get().control).list_object_versions(
            self.bucket,
            prefix=self.prefix,
            delimiter=self.delimiter,
            max_keys=self.max_keys,
            marker=self.next_marker,
        )
        self.next_marker = page.next_marker
        self.complete = page.next_marker is None
        return page

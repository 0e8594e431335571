"""Listings in progress: of objects and of versions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from s3torch.core import requests
from s3torch.core.errors import ConfigurationError
from s3torch.core.models import ListObjectResult, ListVersionsResult
from s3torch.core.requests._request import check_bucket, check_text

if TYPE_CHECKING:
    from s3torch.core._runtime import RuntimeHandle

Page = TypeVar("Page")


class PageStream(ABC, Generic[Page]):
    """Iterates over the pages of a listing, one request each, when each is asked for.

    It can be pickled at any time and goes on from the same place in another process. After an error the next
    step asks for the same page again.

    Args:
        handle: The runtime of the client.
        bucket: The bucket.
        prefix: What keys have to start with.
        delimiter: Keys that have it behind the prefix are folded into ``common_prefixes``.
        max_keys: Entries of a page; S3 gives no more than 1,000.
    """

    def __init__(
        self,
        handle: RuntimeHandle,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        max_keys: int = 1000,
    ) -> None:
        check_bucket(bucket)
        check_text("prefix", prefix)
        check_text("delimiter", delimiter)
        if not isinstance(max_keys, int) or max_keys < 1:
            raise ConfigurationError(f"max_keys must be at least 1, got {max_keys!r}")
        self.bucket = bucket
        self.prefix = prefix
        self.delimiter = delimiter
        self.max_keys = max_keys
        self.complete = False
        self._handle = handle

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Page:
        if self.complete:
            raise StopIteration
        page, self.complete = self._next_page()
        return page

    @abstractmethod
    def _next_page(self) -> tuple[Page, bool]:
        """Asks for the next page, records where it ends, and returns whether it is the last."""


class ListObjectStream(PageStream[ListObjectResult]):
    """The pages of a listing of objects; ``start_after`` lists only keys that come after that one."""

    continuation_token: str | None = None
    start_after: str | None = None

    def _next_page(self) -> tuple[ListObjectResult, bool]:
        request = requests.list_objects(
            self.bucket,
            prefix=self.prefix,
            delimiter=self.delimiter,
            max_keys=self.max_keys,
            continuation_token=self.continuation_token,
            start_after=self.start_after if self.continuation_token is None else None,
        )
        page = self._handle.call(request)
        self.continuation_token = page.continuation_token
        return page, page.continuation_token is None


class ListVersionStream(PageStream[ListVersionsResult]):
    """The pages of a listing of versions and delete markers."""

    next_marker: tuple[str, str] | None = None

    def _next_page(self) -> tuple[ListVersionsResult, bool]:
        request = requests.list_object_versions(
            self.bucket,
            prefix=self.prefix,
            delimiter=self.delimiter,
            max_keys=self.max_keys,
            marker=self.next_marker,
        )
        page = self._handle.call(request)
        self.next_marker = page.next_marker
        return page, page.next_marker is None

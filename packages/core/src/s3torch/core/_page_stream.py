"""What listings in progress have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from s3torch.core._arguments import check_bucket, check_text
from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from s3torch.core.connection import Connector

Page = TypeVar("Page")


class PageStream(ABC, Generic[Page]):
    """Iterates over pages, one request each, at the time each is asked for.

    It can be pickled at any time and goes on from the same place in another process. After an error the next
    step asks for the same page again.
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
        self._connector = connector

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Page:
        if self.complete:
            raise StopIteration
        page, self.complete = self._next_page()
        return page

    @abstractmethod
    def _next_page(self) -> tuple[Page, bool]:
        """Asks for the next page, takes note of where it ends, and tells whether it is the last."""

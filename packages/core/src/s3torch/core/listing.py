"""A listing in progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.core._arguments import check_kind
from s3torch.core._page_stream import PageStream
from s3torch.core.models import ListObjectResult

if TYPE_CHECKING:
    from s3torch.core.connection import Connector

__all__ = ["ListObjectStream"]


class ListObjectStream(PageStream[ListObjectResult]):
    """Iterates over the pages of a listing, one request each, at the time each is asked for.

    It can be pickled at any time and goes on from the same place in another process. After an error the next
    step asks for the same page again.

    Args:
        connector: The client's.
        bucket: The bucket.
        prefix: What keys have to start with.
        delimiter: Keys that have it behind the prefix are folded into ``common_prefixes``.
        max_keys: Keys of a page; S3 gives no more than 1,000.
        start_after: Lists only keys that come after this one.
    """

    def __init__(
        self,
        connector: Connector,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        max_keys: int = 1000,
        start_after: str | None = None,
    ) -> None:
        super().__init__(connector, bucket, prefix=prefix, delimiter=delimiter, max_keys=max_keys)
        check_kind("start_after", start_after, str)
        self.start_after = start_after
        self.continuation_token: str | None = None

    def _next_page(self) -> tuple[ListObjectResult, bool]:
        page = self._connector.get().control.list_objects(
            self.bucket,
            prefix=self.prefix,
            delimiter=self.delimiter,
            max_keys=self.max_keys,
            continuation_token=self.continuation_token,
            start_after=self.start_after if self.continuation_token is None else None,
        )
        self.continuation_token = page.continuation_token
        return page, page.continuation_token is None

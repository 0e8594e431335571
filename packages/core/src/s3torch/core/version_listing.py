"""A listing of versions in progress."""

from __future__ import annotations

from s3torch.core._page_stream import PageStream
from s3torch.core.abilities import versions_of
from s3torch.core.models import ListVersionsResult

__all__ = ["ListVersionStream"]


class ListVersionStream(PageStream[ListVersionsResult]):
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

    next_marker: tuple[str, str] | None = None

    def _next_page(self) -> tuple[ListVersionsResult, bool]:
        page = versions_of(self._connector.get().control).list_object_versions(
            self.bucket,
            prefix=self.prefix,
            delimiter=self.delimiter,
            max_keys=self.max_keys,
            marker=self.next_marker,
        )
        self.next_marker = page.next_marker
        return page, page.next_marker is None

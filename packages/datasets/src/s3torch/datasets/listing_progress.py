"""Tells how far a listing is, for prefixes with millions of objects."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3torch.core import S3BucketKeyData, S3Client
    from s3torch.datasets.sources import ObjectSource

__all__ = ["ListingProgress", "ReportedSource"]

_STEP = 1000


@dataclass(frozen=True, slots=True)
class ListingProgress:
    """How far a listing is.

    Attributes:
        objects: How many objects were listed.
        bytes: All their bytes.
        done: True for the last report.
    """

    objects: int
    bytes: int
    done: bool = False


@dataclass(frozen=True, slots=True)
class ReportedSource:
    """The objects of another source, with reports while they are listed.

    It is used in place of the other one::

        S3MapDataset("eu-west-1", ReportedSource(PrefixSource.from_uri(uri), report="tqdm"))

    Attributes:
        source: The other source.
        report: Is called after every 1,000 objects, the size of a page of S3, and at the end; ``"tqdm"``
            shows a counter on the terminal, with the package of that name.
    """

    source: ObjectSource
    report: Callable[[ListingProgress], object] | Literal["tqdm"] = "tqdm"

    def __post_init__(self) -> None:
        if self.report != "tqdm" and not callable(self.report):
            raise ConfigurationError(f"report must be callable or 'tqdm', got {self.report!r}")

    def __call__(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        """Lists and reports."""
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
            total += 0 if item.object_info is None else item.object_info.size
            if count % _STEP == 0:
                report(ListingProgress(count, total))
            yield item
        report(ListingProgress(count, total, done=True))

"""Objects that are looked for: below a prefix or by a pattern, and with what else is asked of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from s3torch.core._addresses import is_directory_bucket
from s3torch.core.errors import ConfigurationError
from s3torch.core.globs import Glob, without_covered
from s3torch.core.tree_listing import EveryBranch, TreeListing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from s3torch.core.connection import Connector
    from s3torch.core.models import ListObjectResult, ObjectInfo
    from s3torch.core.tree_listing import Branches

__all__ = ["ObjectFilter", "find_by_pattern", "find_by_prefix"]

# The boto3 client keeps as many connections.
_MAX_REQUESTS = 64


@dataclass(frozen=True, slots=True)
class ObjectFilter:
    """What is asked of objects; ``None`` asks nothing.

    Attributes:
        suffix: What their keys end with, or several such ends.
        min_size: How many bytes they have at least.
        max_size: How many bytes they have at most.
        where: Any other question.
    """

    suffix: str | tuple[str, ...] | None = None
    min_size: int | None = None
    max_size: int | None = None
    where: Callable[[ObjectInfo], bool] | None = None

    def __post_init__(self) -> None:
        ends = self.suffix if isinstance(self.suffix, tuple) else (self.suffix or "",)
        if not all(isinstance(end, str) for end in ends):
            raise ConfigurationError(f"suffix must be a string or a tuple of strings, got {self.suffix!r}")

    def __call__(self, info: ObjectInfo) -> bool:
        """Tells whether an object is as asked for."""
        return (
            (self.suffix is None or info.key.endswith(self.suffix))
            and (self.min_size is None or info.size >= self.min_size)
            and (self.max_size is None or info.size <= self.max_size)
            and (self.where is None or self.where(info))
        )


def find_by_prefix(
    connector: Connector, bucket: str, prefix: str, *, wanted: ObjectFilter, ordered: bool, requests: int
) -> Iterator[ObjectInfo]:
    """Lists the objects whose keys start with a prefix; see ``S3Client.walk``."""
    listing = _listing(connector, bucket, [prefix], EveryBranch(), ordered=ordered, requests=requests)
    return (info for info in _objects(listing, wanted) if info.key.startswith(prefix))


def find_by_pattern(
    connector: Connector, bucket: str, pattern: str, *, wanted: ObjectFilter, ordered: bool, requests: int
) -> Iterator[ObjectInfo]:
    """Lists the objects whose keys match a pattern; see ``S3Client.glob``."""
    glob = Glob(pattern)
    listing = _listing(connector, bucket, glob.prefixes, glob, ordered=ordered, requests=requests)
    return (info for info in _objects(listing, wanted) if glob.matches(info.key))


def _listing(
    connector: Connector,
    bucket: str,
    prefixes: Sequence[str],
    branches: Branches,
    *,
    ordered: bool,
    requests: int,
) -> TreeListing:
    if not bucket:
        raise ConfigurationError("Bucket should be specified")
    if not isinstance(requests, int) or not 1 <= requests <= _MAX_REQUESTS:
        raise ConfigurationError(f"requests must be from 1 to {_MAX_REQUESTS}, got {requests!r}")
    if is_directory_bucket(bucket):
        branches = _WholeFolders(branches)
        prefixes = _up_to_slash(prefixes)
    ask = partial(_ask, connector, bucket)
    return TreeListing(ask, prefixes, branches=branches, requests=requests, ordered=ordered)


def _ask(connector: Connector, bucket: str, **what: str) -> ListObjectResult:
    return connector.get().control.list_objects(bucket, **what)  # type: ignore[arg-type]


def _objects(listing: TreeListing, wanted: ObjectFilter) -> Iterator[ObjectInfo]:
    for page in listing.pages():
        yield from filter(wanted, page)


class _WholeFolders:
    """Asks for whole folders only: directory buckets take no other prefix."""

    def __init__(self, branches: Branches) -> None:
        self._branches = branches

    def below(self, folder: str) -> Sequence[str]:
        return _up_to_slash(self._branches.below(folder))

    def prunes(self, prefix: str) -> bool:
        return self._branches.prunes(prefix)


def _up_to_slash(prefixes: Sequence[str]) -> list[str]:
    return without_covered(prefix[: prefix.rfind("/") + 1] for prefix in prefixes)

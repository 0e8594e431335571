"""Listings in progress: page by page, or below a prefix or by a pattern with several requests at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from s3torch.core import requests
from s3torch.core._process import submit
from s3torch.core._uri import is_directory_bucket
from s3torch.core.errors import ConfigurationError, ServerError
from s3torch.core.models import ListObjectResult, ListVersionsResult
from s3torch.core.operations._globs import Glob, without_covered
from s3torch.core.requests._request import check_bucket, check_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from s3torch.core._client import RuntimeHandle
    from s3torch.core.models import ObjectInfo

Page = TypeVar("Page")
M = TypeVar("M")

_PAGE = 1000
_MAX_REQUESTS = 64


class Trail:
    """Notices when a listing comes back to where it was, which would never end.

    Of the markers that it follows it remembers one, later and later ones (the algorithm of Brent).
    """

    def __init__(self, bucket: str | None = None) -> None:
        self._bucket = bucket
        self._remembered: object = None
        self._steps = 0
        self._limit = 1

    def follow(self, marker: M) -> M:
        """Takes note of where the next page begins, and returns that.

        Raises:
            ServerError: The listing was there before.
        """
        if marker is not None and marker == self._remembered:
            text = f"the listing goes round in circles: it comes to {marker!r} again"
            raise ServerError(text, bucket=self._bucket)
        self._steps += 1
        if self._steps == self._limit:
            self._remembered, self._steps, self._limit = marker, 0, 2 * self._limit
        return marker


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
        self._trail = Trail(bucket)

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
        self.continuation_token = self._trail.follow(page.continuation_token)
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
        self.next_marker = self._trail.follow(page.next_marker)
        return page, page.next_marker is None


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
        """Whether an object is as asked for."""
        return (
            (self.suffix is None or info.key.endswith(self.suffix))
            and (self.min_size is None or info.size >= self.min_size)
            and (self.max_size is None or info.size <= self.max_size)
            and (self.where is None or self.where(info))
        )


def find_by_prefix(
    handle: RuntimeHandle, bucket: str, prefix: str, *, wanted: ObjectFilter, ordered: bool, in_flight: int
) -> Iterator[ObjectInfo]:
    """Lists the objects whose keys start with a prefix; see ``S3Client.walk``."""
    listing = _listing(handle, bucket, [prefix], EveryBranch(), ordered=ordered, in_flight=in_flight)
    return (info for info in _objects(listing, wanted) if info.key.startswith(prefix))


def find_by_pattern(
    handle: RuntimeHandle, bucket: str, pattern: str, *, wanted: ObjectFilter, ordered: bool, in_flight: int
) -> Iterator[ObjectInfo]:
    """Lists the objects whose keys match a pattern; see ``S3Client.glob``."""
    glob = Glob(pattern)
    listing = _listing(handle, bucket, glob.prefixes, glob, ordered=ordered, in_flight=in_flight)
    return (info for info in _objects(listing, wanted) if glob.matches(info.key))


def _listing(
    handle: RuntimeHandle,
    bucket: str,
    prefixes: Sequence[str],
    branches: Branches,
    *,
    ordered: bool,
    in_flight: int,
) -> TreeListing:
    if not bucket:
        raise ConfigurationError("Bucket should be specified")
    if not isinstance(in_flight, int) or not 1 <= in_flight <= _MAX_REQUESTS:
        raise ConfigurationError(f"requests must be from 1 to {_MAX_REQUESTS}, got {in_flight!r}")
    if is_directory_bucket(bucket):
        branches = _WholeFolders(branches)
        prefixes = _up_to_slash(prefixes)
    ask = partial(_ask, handle, bucket)
    return TreeListing(ask, prefixes, branches=branches, in_flight=in_flight, ordered=ordered)


def _ask(handle: RuntimeHandle, bucket: str, **what: str) -> ListObjectResult:
    return handle.call(requests.list_objects(bucket, **what))  # type: ignore[arg-type]


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


class Branches(Protocol):
    """Which folders a listing goes into."""

    def below(self, folder: str) -> Sequence[str]:
        """Returns the prefixes to list below a folder, in order, none of them below another."""
        ...

    def prunes(self, prefix: str) -> bool:
        """Whether it pays to ask for the folders below a prefix, because many can be left out."""
        ...


class EveryBranch:
    """Goes into all folders."""

    def below(self, folder: str) -> Sequence[str]:
        """Returns the folder itself."""
        return (folder,)

    def prunes(self, prefix: str) -> bool:  # noqa: ARG002
        """False: nothing can be left out."""
        return False


@dataclass(eq=False, slots=True)
class _Place:
    """What is still to be listed: the keys with a prefix, from a token on."""

    prefix: str
    # Whether it is asked for folders instead of what is in them.
    folded: bool = False
    token: str | None = None
    trail: Trail = field(default_factory=Trail)
    answer: Future[ListObjectResult] | None = None


class TreeListing:
    """Lists the keys below some prefixes with a bounded number of requests at a time.

    A prefix is listed as it is. Where it has more than a page of keys, and there is nothing else to do for
    some of the requests, its folders are asked for instead and listed side by side. So what fits into a page
    costs one request, and a large bucket keeps all requests busy as long as it has folders.

    Args:
        ask: Asks for one page: ``ask(prefix=, delimiter=, continuation_token=)``. Called on threads.
        prefixes: Where to begin, in order, none of them below another.
        branches: Which folders to go into.
        in_flight: How many requests may be in flight.
        ordered: Whether keys come in their order; then pages that came too early wait, as many as there are
            requests.
    """

    def __init__(
        self,
        ask: Callable[..., ListObjectResult],
        prefixes: Sequence[str],
        *,
        branches: Branches,
        in_flight: int,
        ordered: bool,
    ) -> None:
        self._ask = ask
        self._branches = branches
        self._in_flight = in_flight
        self._ordered = ordered
        # In the order of keys: objects that have come, and places whose objects have not.
        self._line: list[_Place | list[ObjectInfo]] = [_Place(prefix) for prefix in prefixes]
        self._places = len(self._line)
        self._asked: set[_Place] = set()

    def pages(self) -> Iterator[list[ObjectInfo]]:
        """Yields what is there, some objects at a time."""
        pool = ThreadPoolExecutor(self._in_flight, "s3torch-list")
        try:
            while True:
                for place in [one for one in self._asked if one.answer and one.answer.done()]:
                    self._drain(place)
                if not self._line:
                    return
                self._send(pool)
                if isinstance(self._line[0], list):
                    yield self._line.pop(0)  # type: ignore[misc]
                else:
                    wait([one.answer for one in self._asked if one.answer], return_when=FIRST_COMPLETED)
        finally:
            # Whoever stops to listen does not wait for what nobody wants any more.
            pool.shutdown(wait=False, cancel_futures=True)

    def _send(self, pool: ThreadPoolExecutor) -> None:
        """Starts what comes next, unless too much has come already and waits for its turn."""
        waiting = 0
        for item in self._line:
            if len(self._asked) == self._in_flight or waiting > self._in_flight * _PAGE:
                return
            if isinstance(item, list):
                waiting += len(item)
            elif item.answer is None:
                item.answer = submit(
                    pool,
                    self._ask,
                    prefix=item.prefix,
                    delimiter="/" if item.folded else "",
                    continuation_token=item.token,
                )
                self._asked.add(item)

    def _drain(self, place: _Place) -> None:
        """Puts what has come for a place where the place was."""
        self._asked.discard(place)
        if place.answer is None:
            return
        page = place.answer.result()
        begins = place.token is None and not place.folded
        if begins and page.continuation_token is not None and self._pays_off(place.prefix):
            found: list[_Place | list[ObjectInfo]] = [_Place(place.prefix, folded=True)]
        else:
            found = self._entries(place, page)
        index = self._line.index(place)
        self._places += sum(isinstance(one, _Place) for one in found) - 1
        if self._ordered:
            self._line[index : index + 1] = found
        else:
            del self._line[index]
            objects = [one for one in found if isinstance(one, list)]
            places = [one for one in found if isinstance(one, _Place)]
            self._line[:] = [*objects, *self._line[:index], *places, *self._line[index:]]

    def _pays_off(self, prefix: str) -> bool:
        return self._places < self._in_flight or self._branches.prunes(prefix)

    def _entries(self, place: _Place, page: ListObjectResult) -> list[_Place | list[ObjectInfo]]:
        """Returns objects and folders of a page in order, and at last where the next page begins."""
        # All that was too much for a page is in the only folder.
        whole = place.token is None and page.continuation_token is None and not page.object_info
        folded = whole and len(page.common_prefixes) == 1 and self._pays_off(place.prefix)
        found: list[_Place | list[ObjectInfo]] = []
        position = 0
        objects = page.object_info
        for folder in page.common_prefixes:
            begin = position
            while self._ordered and position < len(objects) and objects[position].key < folder:
                position += 1
            if position > begin:
                found.append(objects[begin:position])
            found += [_Place(prefix, folded=folded) for prefix in self._branches.below(folder)]
        if position < len(objects):
            found.append(objects[position:])
        if page.continuation_token is not None:
            token = place.trail.follow(page.continuation_token)
            found.append(_Place(place.prefix, place.folded, token, place.trail))
        return found

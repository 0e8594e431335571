"""Many objects and ranges of objects read at once, into memory."""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any

from s3torch.core import ConfigurationError, RangeNotSatisfiableError
from s3torch.core.ranges import MIB
from s3torch.core.transfer import run_ahead
from s3torch.fsspec._names import is_directory
from s3torch.fsspec._objects import S3Files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from s3torch.core.transfer import ObjectRange, ObjectSource

_OBJECTS_IN_FLIGHT = 16
_RANGES_IN_FLIGHT = 64
# Together no more than the memory that a process has at least.
_SMALL = MIB


class S3Contents(S3Files):
    """The objects in the buckets that a client reaches, read several at a time."""

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **options: Any) -> Any:  # noqa: FBT001, FBT002
        """Returns the bytes of an object, or of several by name, several at a time; directories have none."""
        found = self._expand(path, recursive, None)
        names = [name for name, entry in found.items() if not recursive or not is_directory(entry)]
        if isinstance(path, str | os.PathLike) and names == [self._exact(path)]:
            return self.cat_file(names[0], **options)
        contents = dict(
            zip(names, self._cat_all([(name,) for name in names], on_error, options), strict=True)
        )
        if on_error == "omit":
            return {name: one for name, one in contents.items() if not isinstance(one, Exception)}
        return contents

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **options: Any,
    ) -> list[Any]:
        """Returns ranges of objects, several at a time; ``starts`` and ``ends`` may be one number for all.

        Raises:
            ConfigurationError: The lists are not of the same length, or ``max_gap`` is given: ranges are not
                joined.
        """
        if max_gap is not None:
            raise ConfigurationError("cat_ranges of s3:// does not join ranges; leave max_gap out")
        first, last = (one if isinstance(one, list) else [one] * len(paths) for one in (starts, ends))
        if not len(paths) == len(first) == len(last):
            raise ConfigurationError(f"got {len(paths)} paths, {len(first)} starts and {len(last)} ends")
        calls = list(zip(paths, first, last, strict=True))
        if options or not all(self._is_small(start, end) for _, start, end in calls):
            return self._cat_all(calls, on_error, options)
        return read_ranges(self._source, calls, raises=on_error == "raise")

    @staticmethod
    def _is_small(start: Any, end: Any) -> bool:
        """Whether a range needs no more than one request; readers cut others, and reserve memory for them."""
        return start is not None and end is not None and 0 <= start < end <= start + _SMALL

    def _source(self, path: str) -> ObjectSource:
        bucket, key, version_id = self._split_versioned(path)
        return self.client.open_ranges(bucket, key, version_id=version_id)

    def _cat_all(self, calls: list[tuple[Any, ...]], on_error: str, options: dict[str, Any]) -> list[Any]:
        def read(call: tuple[Any, ...]) -> Any:
            try:
                return self.cat_file(*call, **options)
            except Exception as error:
                if on_error == "raise":
                    raise
                return error

        return list(run_ahead(read, calls, workers=_OBJECTS_IN_FLIGHT, name="s3torch-cat"))


def read_ranges(
    open_source: Callable[[str], ObjectSource], ranges: Iterable[tuple[str, int, int]], *, raises: bool
) -> list[Any]:
    """Reads ranges of objects with one request each, up to 64 at a time; all of an object are of one version.

    Args:
        open_source: Returns an object by its path.
        ranges: The path, the start and the stop of each.
        raises: Whether the first error is raised; else errors are among the results.
    """
    sources: dict[str, ObjectSource] = {}
    waiting: deque[ObjectRange | _Failed] = deque()
    results: list[Any] = []
    try:
        for path, start, stop in ranges:
            if len(waiting) == _RANGES_IN_FLIGHT:
                results.append(_result(waiting.popleft(), raises=raises))
            try:
                source = sources.get(path) or sources.setdefault(path, open_source(path))
                waiting.append(source.start(start, stop))
            except OSError as error:
                waiting.append(_Failed(error))
        while waiting:
            results.append(_result(waiting.popleft(), raises=raises))
    finally:
        for one in waiting:
            one.cancel()
    return results


class _Failed:
    """A range that could not be asked for."""

    def __init__(self, error: OSError) -> None:
        self._error = error

    def wait(self) -> memoryview:
        raise self._error

    def cancel(self) -> None:
        """Does nothing."""


def _result(pending: ObjectRange | _Failed, *, raises: bool) -> bytes | Exception:
    try:
        view = pending.wait()
    except RangeNotSatisfiableError:
        # There is nothing behind the end, as in a slice.
        return b""
    except Exception as error:
        if raises:
            raise
        return error
    whole = view.obj
    return whole if isinstance(whole, bytes) and len(whole) == len(view) else bytes(view)

"""The filesystem for coroutines: each method of fsspec with an underscore before its name.

They run on threads of their own, so that the loop goes on, whichever loop it is: zarr has one in a thread of
its own, xarray another. Each moves bytes as the method without the underscore does, with its checks, retries
and bounds on memory.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

# As many requests as one filesystem of s3fs has in flight for each file, times some files.
_THREADS = 64

_pool: ThreadPoolExecutor | None = None


async def on_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a blocking function on a thread and awaits its result."""
    global _pool  # noqa: PLW0603 - One for the process.
    if _pool is None:
        _pool = ThreadPoolExecutor(_THREADS, "s3torch-fsspec")
    call = partial(copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_pool, call)


def _forget_pool() -> None:
    """Leaves the threads to the parent: a forked child has none of them."""
    global _pool  # noqa: PLW0603
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _coroutine(name: str) -> Any:
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await on_thread(getattr(self, name), *args, **kwargs)

    call.__name__ = call.__qualname__ = f"_{name}"
    call.__doc__ = f"Awaits ``{name}``."
    return call


class S3Coroutines:
    """The coroutines of a filesystem."""

    async_impl = False

    def __init__(self, *args: Any, asynchronous: bool = False, **storage_options: Any) -> None:
        super().__init__(*args, asynchronous=asynchronous, **storage_options)  # type: ignore[call-arg]
        # Only where it was asked for: others wait for results.
        self.async_impl = self.asynchronous = asynchronous

    _cat = _coroutine("cat")
    _cat_file = _coroutine("cat_file")
    _cat_ranges = _coroutine("cat_ranges")
    _checksum = _coroutine("checksum")
    _copy = _coroutine("copy")
    _cp_file = _coroutine("cp_file")
    _du = _coroutine("du")
    _exists = _coroutine("exists")
    _expand_path = _coroutine("expand_path")
    _find = _coroutine("find")
    _get = _coroutine("get")
    _get_file = _coroutine("get_file")
    _getxattr = _coroutine("getxattr")
    _glob = _coroutine("glob")
    _info = _coroutine("info")
    _isdir = _coroutine("isdir")
    _isfile = _coroutine("isfile")
    _ls = _coroutine("ls")
    _makedirs = _coroutine("makedirs")
    _merge = _coroutine("merge")
    _metadata = _coroutine("metadata")
    _mkdir = _coroutine("mkdir")
    _mv = _coroutine("mv")
    _object_version_info = _coroutine("object_version_info")
    _pipe = _coroutine("pipe")
    _pipe_file = _coroutine("pipe_file")
    _put = _coroutine("put")
    _put_file = _coroutine("put_file")
    _rm = _coroutine("rm")
    _rm_file = _coroutine("rm_file")
    _rmdir = _coroutine("rmdir")
    _setxattr = _coroutine("setxattr")
    _size = _coroutine("size")
    _sizes = _coroutine("sizes")
    _touch = _coroutine("touch")
    _url = _coroutine("url")

    async def _walk(self, path: Any, **options: Any) -> AsyncIterator[Any]:
        walk: Any = self.walk  # type: ignore[attr-defined]
        found = iter(walk(path, **options))
        end = object()
        while (one := await on_thread(next, found, end)) is not end:
            yield one

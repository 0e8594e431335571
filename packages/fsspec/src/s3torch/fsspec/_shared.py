"""What all filesystems with the same options share in one process.

fsspec makes one instance of a filesystem for each thread. They share a client, so that connections do not
multiply by threads, and they agree on listings and on the directories that were made.
"""

# mypy: untyped-calls-exclude="fsspec"
from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from fsspec.dircache import DirCache

from s3torch.core import S3Client, UserAgent
from s3torch.fsspec.entries import parents

if TYPE_CHECKING:
    from s3torch.fsspec.options import ClientOptions

_CACHE_DEFAULTS = {"use_listings_cache": False, "listings_expiry_time": None, "max_paths": None}


class SharedStore:
    """A client, its cached listings, and the directories that exist only here.

    S3 has no directories. One that was made is remembered by this process, so that it is there for whoever
    asks before the first object is.
    """

    def __init__(self, options: ClientOptions, cache: dict[str, Any]) -> None:
        self.client = S3Client(
            options.region,
            endpoint=options.endpoint,
            user_agent=UserAgent(["fsspec"]),
            s3client_config=options.config,
        )
        self.listings: Any = DirCache(**cache)
        self.made: set[str] = set()

    def make_directory(self, path: str) -> None:
        """Remembers a directory and those it is in."""
        self.made.update((path, *parents(path)))

    def forget(self, path: str) -> None:
        """Forgets cached listings that a change of ``path``, or of anything below it, makes wrong."""
        for stale in (path, *parents(path), ""):
            self.listings.pop(stale, None)
        below = f"{path}/"
        for stale in [known for known in list(self.listings) if known.startswith(below)]:
            self.listings.pop(stale, None)

    def forget_directory(self, path: str) -> None:
        """Forgets a directory that was made, and those in it."""
        below = f"{path}/"
        self.made -= {known for known in self.made.copy() if known == path or known.startswith(below)}


def shared_store(options: ClientOptions, storage_options: dict[str, Any]) -> SharedStore:
    """Returns the store of these options; the one that another filesystem uses, if there is one."""
    cache = {name: storage_options.get(name, value) for name, value in _CACHE_DEFAULTS.items()}
    key = (options, tuple(cache.items()))
    store = _stores.get(key)
    if store is None:
        store = _stores.setdefault(key, SharedStore(options, cache))
    return store


_stores: WeakValueDictionary[tuple[Any, ...], SharedStore] = WeakValueDictionary()

"""What filesystems with the same storage options share, and when they do not.

fsspec makes one instance of a filesystem for each thread. Those with the same storage options share a client,
so that connections do not multiply by threads, and agree on listings and on the directories that were made.
Where the environment has changed since, a new instance has a client of its own.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import os
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from fsspec.dircache import DirCache

from s3torch.core import S3Client, UserAgent
from s3torch.fsspec._names import parents, prefix_of

if TYPE_CHECKING:
    from s3torch.fsspec._options import ClientOptions

_CACHE_DEFAULTS = {"use_listings_cache": False, "listings_expiry_time": None, "max_paths": None}
_VARIABLES = ("AWS_", "S3TORCH_")


class Environment:
    """A class attribute that has another value whenever the variables for AWS and s3torch have changed."""

    def __get__(self, instance: object, owner: type) -> str:
        variables = sorted(one for one in os.environ.items() if one[0].startswith(_VARIABLES))
        return sha256(repr(variables).encode()).hexdigest()


class SharedStore:
    """A client, its cached listings, and the directories that were made, which S3 does not have."""

    def __init__(self, options: ClientOptions, cache: dict[str, Any]) -> None:
        self.client = S3Client(
            options.region,
            endpoint=options.endpoint,
            user_agent=UserAgent(["fsspec"]),
            s3client_config=options.config,
        )
        self.listings: Any = DirCache(**cache)
        self.made_directories: set[str] = set()

    def make_directory(self, path: str) -> None:
        """Remembers a directory and its parents."""
        self.made_directories.update((path, *parents(path)))

    def invalidate(self, path: str) -> None:
        """Drops cached listings that a change of ``path``, or of anything below it, makes wrong."""
        if not self.listings:
            return
        for stale in (path, *parents(path), ""):
            self.listings.pop(stale, None)
        for stale in [known for known in list(self.listings) if known.startswith(prefix_of(path))]:
            self.listings.pop(stale, None)

    def forget_directory(self, path: str) -> None:
        """Forgets a directory that was made, and those in it."""
        made = self.made_directories
        made -= {known for known in made.copy() if prefix_of(known).startswith(prefix_of(path))}


def shared_store(options: ClientOptions, storage_options: dict[str, Any], environment: str) -> SharedStore:
    """Returns the store of these options, which is the one of another filesystem that has them."""
    cache = {name: storage_options.get(name, value) for name, value in _CACHE_DEFAULTS.items()}
    key = (options, tuple(cache.items()), environment)
    return _stores.get(key) or _stores.setdefault(key, SharedStore(options, cache))


_stores: WeakValueDictionary[tuple[Any, ...], SharedStore] = WeakValueDictionary()

"""Which client storage options ask for, and what filesystems with the same options share.

fsspec makes one instance of a filesystem for each thread. Those with the same storage options share a client,
so that connections do not multiply by threads, and agree on listings and on the directories that were made.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from fsspec.dircache import DirCache

from s3torch.core import ConfigurationError, Credentials, S3Client, S3ClientConfig, UserAgent
from s3torch.fsspec._names import parents, prefix_of

if TYPE_CHECKING:
    from collections.abc import Mapping

# What fsspec itself hands to every filesystem.
_OPTIONS_OF_FSSPEC = frozenset(
    {"asynchronous", "batch_size", "listings_expiry_time", "loop", "max_paths", "use_listings_cache"}
)
_CACHE_DEFAULTS = {"use_listings_cache": False, "listings_expiry_time": None, "max_paths": None}


@dataclass(frozen=True, slots=True)
class StaticCredentials:
    """Keys that were given as storage options; ``repr`` does not show them.

    They travel where the storage options do, into workers and pickles; those from the usual places do not.
    """

    key: str = field(repr=False)
    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)

    def __call__(self) -> Credentials:
        return Credentials(self.key, self.secret, self.token)


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Which client a set of storage options asks for; equal options share one client."""

    region: str | None
    endpoint: str | None
    config: S3ClientConfig

    @classmethod
    def from_storage_options(
        cls,
        *,
        region: str | None = None,
        endpoint: str | None = None,
        endpoint_url: str | None = None,
        anon: bool = False,
        key: str | None = None,
        secret: str | None = None,
        token: str | None = None,
        profile: str | None = None,
        requester_pays: bool = False,
        s3client_config: S3ClientConfig | None = None,
        client_kwargs: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> ClientOptions:
        """Reads storage options, under our names and under those of s3fs.

        An option that would be ignored could send data somewhere else than meant, so it is an error.
        """
        if unknown := sorted(set(others) - _OPTIONS_OF_FSSPEC):
            raise ConfigurationError(
                f"unknown storage option {', '.join(unknown)} for s3://; known are region, endpoint_url, "
                "anon, key, secret, token, profile, requester_pays, s3client_config and client_kwargs"
            )
        kwargs = client_kwargs or {}
        if unknown := sorted(set(kwargs) - {"endpoint_url", "region_name"}):
            raise ConfigurationError(
                f"client_kwargs may have endpoint_url and region_name, got {', '.join(unknown)}"
            )
        if endpoint is not None and endpoint_url is not None:
            raise ConfigurationError("endpoint and endpoint_url mean the same; give one of them")
        if (key is None) != (secret is None) or (token is not None and key is None):
            raise ConfigurationError("key and secret go together, token needs both")
        given: dict[str, Any] = {"profile": profile, "unsigned": anon, "requester_pays": requester_pays}
        if key is not None and secret is not None:
            given["credentials"] = StaticCredentials(key, secret, token)
        changes = {name: one for name, one in given.items() if one not in (None, False)}
        return cls(
            region or kwargs.get("region_name"),
            endpoint or endpoint_url or kwargs.get("endpoint_url"),
            replace(s3client_config or S3ClientConfig(), **changes),
        )


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
        for stale in (path, *parents(path), ""):
            self.listings.pop(stale, None)
        for stale in [known for known in list(self.listings) if known.startswith(prefix_of(path))]:
            self.listings.pop(stale, None)

    def forget_directory(self, path: str) -> None:
        """Forgets a directory that was made, and those in it."""
        made = self.made_directories
        made -= {known for known in made.copy() if prefix_of(known).startswith(prefix_of(path))}


def shared_store(options: ClientOptions, storage_options: dict[str, Any]) -> SharedStore:
    """Returns the store of these options, which is the one of another filesystem that has them."""
    cache = {name: storage_options.get(name, value) for name, value in _CACHE_DEFAULTS.items()}
    key = (options, tuple(cache.items()))
    return _stores.get(key) or _stores.setdefault(key, SharedStore(options, cache))


_stores: WeakValueDictionary[tuple[Any, ...], SharedStore] = WeakValueDictionary()

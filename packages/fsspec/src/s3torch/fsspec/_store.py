"""What filesystems with the same storage options share in one process.

fsspec makes one instance of a filesystem for each thread. They share a client, so that connections do not
multiply by threads, and they agree on listings and on the directories that were made.
"""

# mypy: untyped-calls-exclude="fsspec"
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from fsspec.dircache import DirCache

from s3torch.core import ConfigurationError, Credentials, S3Client, S3ClientConfig, UserAgent

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

    They travel where the storage options travel: into workers and into pickles of the filesystem. Keys from
    the usual AWS places do not.
    """

    key: str = field(repr=False)
    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)

    def __call__(self) -> Credentials:
        return Credentials(self.key, self.secret, self.token)


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Which client a set of storage options asks for; equal options share one client.

    Attributes:
        region: The region; ``None`` takes the usual AWS places.
        endpoint: The URL of the store; ``None`` takes the usual AWS places.
        config: All other settings.
    """

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

        Raises:
            ConfigurationError: An option is unknown, contradicts another one, or is out of range. An option
                that would be ignored could send data somewhere else than meant.
        """
        _check_others(others)
        address = _address(region, endpoint, endpoint_url, client_kwargs or {})
        changes: dict[str, Any] = {}
        if anon:
            changes["unsigned"] = True
        if profile is not None:
            changes["profile"] = profile
        if requester_pays:
            changes["requester_pays"] = True
        if (key is None) != (secret is None) or (token is not None and key is None):
            raise ConfigurationError("key and secret go together, token needs both")
        if key is not None and secret is not None:
            changes["credentials"] = StaticCredentials(key, secret, token)
        return cls(*address, config=replace(s3client_config or S3ClientConfig(), **changes))


def _check_others(others: Mapping[str, Any]) -> None:
    unknown = sorted(set(others) - _OPTIONS_OF_FSSPEC)
    if unknown:
        raise ConfigurationError(
            f"unknown storage option {', '.join(unknown)} for s3://; known are region, endpoint_url, "
            "anon, key, secret, token, profile, requester_pays, s3client_config and client_kwargs"
        )
    if others.get("asynchronous"):
        raise ConfigurationError("s3:// of s3torch has no asynchronous mode; it is thread-safe")


def _address(
    region: str | None,
    endpoint: str | None,
    endpoint_url: str | None,
    client_kwargs: Mapping[str, Any],
) -> tuple[str | None, str | None]:
    unknown = sorted(set(client_kwargs) - {"endpoint_url", "region_name"})
    if unknown:
        raise ConfigurationError(
            f"client_kwargs may have endpoint_url and region_name, got {', '.join(unknown)}"
        )
    if endpoint is not None and endpoint_url is not None:
        raise ConfigurationError("endpoint and endpoint_url mean the same; give one of them")
    return (
        region or client_kwargs.get("region_name"),
        endpoint or endpoint_url or client_kwargs.get("endpoint_url"),
    )


def parents(path: str) -> list[str]:
    """Returns the parents of a path, nearest first, up to the bucket."""
    found = []
    while "/" in path:
        path = path.rpartition("/")[0]
        found.append(path)
    return found


class SharedStore:
    """A client, its cached listings, and the directories that were made.

    S3 has no directories. This process remembers those that were made, so that they exist before the first
    object in them does.
    """

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
        for stale in [known for known in list(self.listings) if known.startswith(f"{path}/")]:
            self.listings.pop(stale, None)

    def forget_directory(self, path: str) -> None:
        """Forgets a directory that was made, and those in it."""
        made = self.made_directories
        made -= {known for known in made.copy() if f"{known}/".startswith(f"{path}/")}


def shared_store(options: ClientOptions, storage_options: dict[str, Any]) -> SharedStore:
    """Returns the store of these options, which is the one of another filesystem that has them."""
    cache = {name: storage_options.get(name, value) for name, value in _CACHE_DEFAULTS.items()}
    key = (options, tuple(cache.items()))
    store = _stores.get(key)
    if store is None:
        store = _stores.setdefault(key, SharedStore(options, cache))
    return store


_stores: WeakValueDictionary[tuple[Any, ...], SharedStore] = WeakValueDictionary()

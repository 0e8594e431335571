"""What the storage options of an fsspec URL mean for the client."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from s3torch.core import ConfigurationError, Credentials, S3ClientConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ClientOptions", "StaticCredentials"]

# What fsspec itself hands to every filesystem.
_OPTIONS_OF_FSSPEC = frozenset(
    {"asynchronous", "batch_size", "listings_expiry_time", "loop", "max_paths", "use_listings_cache"}
)


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
        """Returns the keys."""
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

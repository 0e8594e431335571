"""What storage options and keyword arguments mean, under our names and under those of s3fs and boto3.

What is understood does what its name says. What only says how s3fs shall go about it is accepted and ignored.
Everything else is refused: an option that was ignored could store or read something else than was meant.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from s3torch.core import ConfigurationError, Credentials, PutOptions, S3ClientConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# What fsspec itself hands to every filesystem, what the filesystem takes, and hints of s3fs.
_NOT_OF_THE_CLIENT = frozenset(
    {"asynchronous", "batch_size", "listings_expiry_time", "loop", "max_paths", "use_listings_cache"}
    | {"default_block_size", "version_aware"}
    | {"default_cache_type", "default_fill_cache", "max_concurrency"}
)
_INSTEAD = {
    "session": "use profile, key and secret, or s3client_config=S3ClientConfig(credentials=...)",
    "cache_regions": "give the region of the buckets as region",
    "local_expiry_check": "s3torch always reads with If-Match",
    "use_ssl": "give an endpoint_url that begins with http://",
    "verify": "give the file of certificates to trust: S3ClientConfig(ca_bundle=...)",
    "SSECustomerKey": "use S3ClientConfig(sse_customer_key=...)",
    "SSECustomerAlgorithm": "use S3ClientConfig(sse_customer_key=...)",
    "ChecksumAlgorithm": "use S3ClientConfig(checksum_algorithm=...)",
    "proxies": "set HTTP_PROXY or HTTPS_PROXY",
    "versions": "open the filesystem with version_aware=True",
}
# Keyword arguments of boto3 that say how an object is stored.
_STORED_AS = {
    "ACL": "acl",
    "acl": "acl",
    "BucketKeyEnabled": "bucket_key",
    "CacheControl": "cache_control",
    "ContentDisposition": "content_disposition",
    "ContentEncoding": "content_encoding",
    "ContentLanguage": "content_language",
    "ContentType": "content_type",
    "Expires": "expires",
    "IfMatch": "if_match",
    "IfNoneMatch": "if_none_match",
    "Metadata": "metadata",
    "SSEKMSEncryptionContext": "kms_encryption_context",
    "SSEKMSKeyId": "kms_key_id",
    "ServerSideEncryption": "server_side_encryption",
    "StorageClass": "storage_class",
    "Tagging": "tags",
}
_DEFAULTS = PutOptions()
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "Tagging": lambda text: dict(parse_qsl(text, keep_blank_values=True)),
    "SSEKMSEncryptionContext": lambda text: json.loads(base64.b64decode(text)),
}


def refuse(options: Iterable[str], where: str) -> None:
    """Raises ``ConfigurationError`` for options that are not known, with what to use instead."""
    if unknown := sorted(options):
        instead = "".join(f"; {_INSTEAD[name]}" for name in unknown if name in _INSTEAD)
        raise ConfigurationError(f"unknown option {', '.join(unknown)} for {where} of s3://{instead}")


def refuse_but_hints(options: Mapping[str, Any], where: str, *hints: str) -> None:
    """The same, where some options are hints, and those that are off say nothing."""
    refuse({name for name, one in options.items() if name not in hints and one not in (None, False)}, where)


def put_options(options: PutOptions | None, given: Mapping[str, Any], where: str, *hints: str) -> PutOptions:
    """Returns how an object is stored, by the names that boto3 and s3fs use, over ``options``."""
    refuse_but_hints({name: one for name, one in given.items() if name not in _STORED_AS}, where, *hints)
    chosen = {
        _STORED_AS[name]: _READERS.get(name, _as_it_is)(one)
        for name, one in given.items()
        if name in _STORED_AS and one not in (None, False)
    }
    return PutOptions(**chosen).over(options) if chosen else options or _DEFAULTS


def _as_it_is(value: Any) -> Any:
    return value


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
        s3client_config: S3ClientConfig | None = None,
        client_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        s3_additional_kwargs: Mapping[str, Any] | None = None,
        use_ssl: bool = True,
        **others: Any,
    ) -> ClientOptions:
        """Reads storage options, under our names and under those of s3fs."""
        client = dict(client_kwargs or {})
        of_client = _changes_of_client(client)
        settings = _changes_of_config(config_kwargs or {})
        if endpoint is not None and endpoint_url is not None:
            raise ConfigurationError("endpoint and endpoint_url mean the same; give one of them")
        chosen = endpoint or endpoint_url or client.pop("endpoint_url", None)
        if not client.pop("use_ssl", use_ssl) and not (chosen or "").startswith("http:"):
            refuse(["use_ssl"], "the storage options")
        region = region or client.pop("region_name", None) or settings.pop("region_name", None)
        settings |= of_client | _changes_of_options(others, client)
        config = replace(s3client_config or S3ClientConfig(), **settings)
        return cls(region, chosen, _with_additional(config, dict(s3_additional_kwargs or {})))


def _changes_of_options(others: dict[str, Any], client: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that storage options of the filesystem ask for."""
    found = {name: others.pop(name, None) for name in ("profile", "anon", "requester_pays")}
    changes: dict[str, Any] = {
        "profile": found["profile"],
        "unsigned": found["anon"],
        "requester_pays": found["requester_pays"],
    }
    if others.pop("fixed_upload_size", False):
        changes["growing_parts"] = False
    keys = [
        others.pop(ours, None) or others.pop(alias, None) or client.pop(of_boto, None)
        for ours, alias, of_boto in (
            ("key", "username", "aws_access_key_id"),
            ("secret", "password", "aws_secret_access_key"),
            ("token", "", "aws_session_token"),
        )
    ]
    key, secret, token = keys
    if (key is None) != (secret is None) or (token is not None and key is None):
        raise ConfigurationError("key and secret go together, token needs both")
    if key is not None and secret is not None:
        changes["credentials"] = StaticCredentials(key, secret, token)
    refuse_but_hints(others, "the storage options", *_NOT_OF_THE_CLIENT)
    refuse(client, "client_kwargs")
    return {name: one for name, one in changes.items() if one not in (None, False) or name == "growing_parts"}


def _changes_of_client(client: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that ``client_kwargs`` ask for, besides place and keys."""
    verify = client.pop("verify", None)
    if verify is False:
        refuse(["verify"], "client_kwargs")
    return {"ca_bundle": verify} if isinstance(verify, str) else {}


def _changes_of_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that ``config_kwargs``, which are those of botocore's ``Config``, ask for."""
    given = dict(given)
    changes: dict[str, Any] = {}
    for theirs, ours in (
        ("connect_timeout", "connect_timeout"),
        ("read_timeout", "read_timeout"),
        ("max_pool_connections", "max_connections"),
        ("region_name", "region_name"),
    ):
        if theirs in given:
            changes[ours] = given.pop(theirs)
    retries = dict(given.pop("retries", None) or {})
    retries.pop("mode", None)
    if "max_attempts" in retries:
        changes["max_attempts"] = retries.pop("max_attempts") + 1
    if "total_max_attempts" in retries:
        changes["max_attempts"] = retries.pop("total_max_attempts")
    of_s3 = dict(given.pop("s3", None) or {})
    if "addressing_style" in of_s3:
        changes["addressing_style"] = of_s3.pop("addressing_style")
    of_s3.pop("payload_signing_enabled", None)
    if given.pop("request_checksum_calculation", None) == "when_required":
        changes["checksum_algorithm"] = "off"
    if given.pop("response_checksum_validation", None) == "when_required":
        changes["verify"] = "off"
    version = given.pop("signature_version", "s3v4")
    if version != "s3v4":
        # botocore.UNSIGNED is no string.
        if isinstance(version, str):
            raise ConfigurationError(f"s3torch signs with s3v4, got signature_version={version!r}")
        changes["unsigned"] = True
    refuse_but_hints({**given, **of_s3, **retries}, "config_kwargs", "tcp_keepalive", "user_agent_extra")
    return changes


def _with_additional(config: S3ClientConfig, given: dict[str, Any]) -> S3ClientConfig:
    """Returns the settings with those of ``s3_additional_kwargs``, which boto3 sends with every operation."""
    if not given:
        return config
    changes: dict[str, Any] = {}
    if given.pop("RequestPayer", None) is not None:
        changes["requester_pays"] = True
    if (owner := given.pop("ExpectedBucketOwner", None)) is not None:
        changes["expected_bucket_owner"] = owner
    changes["put_options"] = put_options(config.put_options, given, "s3_additional_kwargs")
    return replace(config, **changes)

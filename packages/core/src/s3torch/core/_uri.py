"""S3 URIs and endpoint URLs: the one place that takes them apart."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from s3torch.core.errors import ConfigurationError

__all__ = ["S3Uri", "check_endpoint", "is_confidential", "is_directory_bucket", "parse_s3_uri"]

_SCHEME = "s3://"
# How the names of directory buckets and of their access points end.
_DIRECTORY_SUFFIXES = ("--x-s3", "--xa-s3")
# In the ARN of an access point the name may stand behind a slash, which does not begin the key.
_ACCESS_POINT = re.compile(r"arn:[^/]*:(?:outpost[/:][^/:]+[/:])?accesspoint/[^/]+")


class S3Uri(NamedTuple):
    """The bucket and the key of an S3 URI; the key is empty where the URI names only a bucket."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.key}"


def parse_s3_uri(uri: str | os.PathLike[str]) -> S3Uri:
    """Splits ``s3://bucket/key`` into bucket and key.

    The key is everything after the slash behind the bucket, untouched: nothing is decoded or normalised,
    ``//`` and a trailing ``/`` stay. A ``pathlib.Path`` made of a URI has lost a slash (``s3:/bucket/key``)
    and gets it back. The bucket may be the ARN of an access point:
    ``s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/key``.

    Args:
        uri: A URI as a string or as a path object.

    Raises:
        ConfigurationError: It is no S3 URI, or it names no bucket. It is a ``ValueError``, too.
    """
    if isinstance(uri, os.PathLike):
        text = os.fspath(uri)
        if isinstance(text, str) and text.startswith("s3:/") and not text.startswith(_SCHEME):
            text = _SCHEME + text.removeprefix("s3:/")
    else:
        text = uri
    if not isinstance(text, str) or not text.startswith(_SCHEME):
        raise ConfigurationError(f"Only s3:// URIs are supported, got {uri!r}")
    rest = text.removeprefix(_SCHEME)
    arn = _ACCESS_POINT.match(rest)
    bucket = arn[0] if arn else rest.partition("/")[0]
    key = rest.removeprefix(bucket).removeprefix("/")
    if not bucket:
        raise ConfigurationError(f"Bucket name must be non-empty, got {uri!r}")
    return S3Uri(bucket, key)


def is_directory_bucket(bucket: str) -> bool:
    """Whether this is the name of a directory bucket or of an access point to one."""
    return bucket.endswith(_DIRECTORY_SUFFIXES)


def check_endpoint(url: str) -> str:
    """Returns the URL of an endpoint without a trailing slash, or says what is wrong with it.

    Raises:
        ConfigurationError: It is no ``http://`` or ``https://`` URL of a host and an optional port.
    """
    expected = "expected http://host[:port] or https://host[:port]"
    if not isinstance(url, str):
        raise ConfigurationError(f"invalid S3 endpoint {url!r}: {expected}")
    if "@" in url:
        # Not shown, because there may be a password in it.
        raise ConfigurationError(f"invalid S3 endpoint: {expected}, without a user")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError as exc:
        raise ConfigurationError(f"invalid S3 endpoint {url!r}: {exc}; {expected}") from exc
    if not valid or parts.query or parts.fragment or set(url) & set(" \t\r\n"):
        raise ConfigurationError(f"invalid S3 endpoint {url!r}: {expected}")
    return url.rstrip("/")


def is_confidential(url: str) -> bool:
    """Whether nobody on the way can read what goes to this endpoint: HTTPS, or this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https" or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False

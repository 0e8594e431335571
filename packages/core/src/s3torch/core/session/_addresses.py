"""Where the requests for a bucket go: endpoints from the usual AWS places, and botocore's rules.

The rules of AWS (virtual-host and path style, dual stack, FIPS, acceleration, access points, directory
buckets) are asked by beginning a request with a boto3 client and ending it before it is signed. That needs no
network.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import urlsplit

from s3torch.core._uri import is_directory_bucket
from s3torch.core.errors import ConfigurationError
from s3torch.core.models import BucketEndpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from botocore.session import Session as BotocoreSession

_AWS_HOST = re.compile(r"\.(amazonaws\.com|amazonaws\.com\.cn|api\.aws|c2s\.ic\.gov)$")
_STYLES: dict[str, Literal["auto", "path", "virtual"]] = {
    "auto": "auto",
    "path": "path",
    "virtual": "virtual",
}
_PROBE_KEY = "k"
_SESSION_SIGNATURE = "v4-s3express"


def endpoint_variable() -> str | None:
    """Returns the endpoint that the environment tells, if it does."""
    if _ignores_endpoints():
        return None
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def profile_endpoint(session: BotocoreSession) -> str | None:
    """Returns the endpoint that the profile tells, if it does."""
    profile = session.get_scoped_config()
    if _ignores_endpoints() or profile.get("ignore_configured_endpoint_urls", "").lower() == "true":
        return None
    services = session.full_config.get("services", {}).get(profile.get("services"), {})
    return services.get("s3", {}).get("endpoint_url") or profile.get("endpoint_url")


def has_aws_files() -> bool:
    """Whether there is a file with profiles; without one nobody has to load botocore to look."""
    names = (("AWS_CONFIG_FILE", "~/.aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))
    return any(Path(os.environ.get(name, usual)).expanduser().is_file() for name, usual in names)


def checksums_when_required(name: str, profile: Mapping[str, Any]) -> bool:
    """Whether environment or profile say that checksums are used only where an operation requires them.

    https://docs.aws.amazon.com/sdkref/latest/guide/feature-dataintegrity.html
    """
    value = os.environ.get(f"AWS_{name.upper()}") or profile.get(name) or "when_supported"
    if str(value).lower() not in {"when_supported", "when_required"}:
        raise ConfigurationError(f"{name} must be when_supported or when_required, got {value!r}")
    return str(value).lower() == "when_required"


def profile_style(profile: Mapping[str, Any]) -> Literal["auto", "path", "virtual"]:
    """Returns the ``addressing_style`` in the section ``s3`` of a profile, or ``"auto"``."""
    section = profile.get("s3")
    style = section.get("addressing_style", "auto") if isinstance(section, dict) else "auto"
    if style not in _STYLES:
        raise ConfigurationError(f"s3 = addressing_style must be auto, path or virtual, got {style!r}")
    return _STYLES[style]


def is_outside_aws(endpoint: str) -> bool:
    """Whether an endpoint is that of a store of one's own."""
    return _AWS_HOST.search(urlsplit(endpoint).hostname or "") is None


def in_path_style(bucket: str, *, endpoint: str, region: str) -> BucketEndpoint | None:
    """Returns the address of a bucket in a store outside AWS; ``None`` where botocore has to be asked.

    Directory buckets and ARNs have rules of their own, in every store.
    """
    if is_directory_bucket(bucket) or ":" in bucket:
        return None
    parts = urlsplit(endpoint)
    return BucketEndpoint(parts.scheme, parts.netloc, f"{parts.path}/{bucket}/", region)


def ask_botocore(client: Any, bucket: str) -> BucketEndpoint:
    """Returns the address of a bucket by the rules of botocore.

    Args:
        client: A boto3 client that has been given to ``answer_before_signing``.
        bucket: The bucket.

    Raises:
        BotoCoreError: There can be no such bucket with these settings.
    """
    try:
        client.get_object(Bucket=bucket, Key=_PROBE_KEY)
    except _Answer as answer:
        return answer.endpoint
    raise ConfigurationError("no address for this bucket: botocore has signed nothing", bucket=bucket)


def answer_before_signing(client: Any) -> None:
    """Makes a boto3 client good for ``ask_botocore``, and for nothing else."""
    client.meta.events.register_last("before-sign.s3", _answer)


class _Answer(Exception):  # noqa: N818 - It is no error.
    """Ends a request of which only the address is wanted."""

    def __init__(self, endpoint: BucketEndpoint) -> None:
        super().__init__(endpoint)
        self.endpoint = endpoint


def _answer(
    *, request: Any, signing_name: str, region_name: str, signature_version: str, **_: Any
) -> NoReturn:
    parts = urlsplit(request.url)
    signing = request.context.get("signing", {})
    raise _Answer(
        BucketEndpoint(
            scheme=parts.scheme,
            host=parts.netloc,
            base_path=parts.path.removesuffix(_PROBE_KEY),
            signing_region=signing.get("region") or region_name,
            signing_name=signing.get("signing_name") or signing_name,
            session_auth=signature_version == _SESSION_SIGNATURE,
        )
    )


def _ignores_endpoints() -> bool:
    return os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"

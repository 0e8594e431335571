"""What botocore is asked: where the requests for a bucket go, and with whose keys they are signed.

The rules of AWS for addresses (virtual-host and path style, dual stack, FIPS, acceleration, access points,
directory buckets) are asked by beginning a request with a boto3 client and ending it before it is signed.
That needs no network. Keys come from botocore's providers, or from a function.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import urlsplit

from s3torch.core._uri import is_directory_bucket
from s3torch.core.errors import ConfigurationError, NoCredentialsError, S3Error, bare_cause
from s3torch.core.models import BucketEndpoint, Credentials, hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from botocore.session import Session as BotocoreSession

_AWS_HOST = re.compile(r"\.(amazonaws\.com|amazonaws\.com\.cn|api\.aws|c2s\.ic\.gov)$")
_PROBE_KEY = "k"
_AWS_FILES = (("AWS_CONFIG_FILE", "~/.aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))
_SESSION_SIGNATURE = "v4-s3express"
_STYLES: dict[str, Literal["auto", "path", "virtual"]] = {
    "auto": "auto",
    "path": "path",
    "virtual": "virtual",
}
_PLACES = (
    "environment variables, the AWS files (profile {profile}), assumed roles, web identity, SSO, "
    "a credential process, container or instance metadata"
)
WAY_OUT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile, or use unsigned=True for public data"
)


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


def files_mention(*settings: str) -> bool:
    """Whether the AWS files have one of these settings at all, which is told without loading botocore."""
    for variable, usual in _AWS_FILES:
        with suppress(OSError):
            content = Path(os.environ.get(variable, usual)).expanduser().read_bytes()
            if any(setting.encode() in content for setting in settings):
                return True
    return False


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
    path = f"{parts.path}/{bucket}/" if bucket else f"{parts.path}/"
    return BucketEndpoint(parts.scheme, parts.netloc, path, region)


def ask_botocore(client: Any, bucket: str) -> BucketEndpoint:
    """Returns the address of a bucket by the rules of botocore.

    Args:
        client: A boto3 client that has been given to ``answer_before_signing``.
        bucket: The bucket.

    Raises:
        BotoCoreError: There can be no such bucket with these settings.
    """
    try:
        if bucket:
            client.get_object(Bucket=bucket, Key=_PROBE_KEY)
        else:
            client.list_buckets()
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


def session_credentials(session: BotocoreSession, *, profile: str | None) -> Credentials:
    """Returns the keys of a botocore session, which refreshes them when that is due.

    Args:
        session: The session.
        profile: The profile that the client was given, for the error.

    Raises:
        NoCredentialsError: No provider has any.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        found = session.get_credentials()
        access, secret, token = map(hidden, found.get_frozen_credentials()[:3] if found else (None,) * 3)
    except (BotoCoreError, ClientError, RuntimeError) as exc:
        # botocore raises a RuntimeError for keys that have expired when they come.
        raise NoCredentialsError(f"credentials could not be loaded: {exc}") from bare_cause(exc)
    if not access or not secret:
        named = profile or os.environ.get("AWS_PROFILE") or "default"
        raise NoCredentialsError(f"no credentials found in {_PLACES.format(profile=named)}; {WAY_OUT}")
    return _checked(access, secret, token)


@lru_cache(maxsize=16)
def _checked(access_key: str, secret_key: str, session_token: str | None) -> Credentials:
    """Makes keys; to check them takes longer than to find the same ones, as most requests do."""
    return Credentials(access_key, secret_key, session_token)


# By the path where a user has models of his own.
_loaders: dict[str | None, Any] = {}


def make_botocore_session(
    *, profile: str | None, provider: Callable[[], Credentials] | None
) -> BotocoreSession:
    """Makes a botocore session.

    Args:
        profile: A profile of the AWS files; ``None`` for the usual one.
        provider: A function that is asked for keys in place of all other sources.

    Raises:
        ConfigurationError: The profile is unknown.
    """
    import botocore.session
    from botocore.exceptions import ProfileNotFound

    session = botocore.session.Session(profile=profile)
    try:
        session.get_scoped_config()
    except ProfileNotFound as exc:
        raise ConfigurationError(
            f"{exc}; the AWS files have: {', '.join(session.available_profiles) or 'none'}"
        ) from exc
    if provider is not None:
        _use_provider(session, provider)
    _share_models(session)
    return session


def _share_models(session: BotocoreSession) -> None:
    """Lets sessions have what others have read: it takes most of the time that a boto3 client takes."""
    path = session.get_config_variable("data_path")
    loader = _loaders.setdefault(path, session.get_component("data_loader"))
    # Every boto3 session adds the same path.
    loader.search_paths[:] = dict.fromkeys(loader.search_paths)
    session.register_component("data_loader", loader)


def _use_provider(session: BotocoreSession, provider: Callable[[], Credentials]) -> None:
    """Makes a function of the user the only source of credentials of a botocore session."""
    from botocore.credentials import (
        CredentialProvider,
        CredentialResolver,
        RefreshableCredentials,
    )
    from botocore.credentials import Credentials as BotoCredentials

    class FunctionProvider(CredentialProvider):
        METHOD = "s3torch-function"

        def load(self) -> Any:
            keys = _ask(provider)
            if keys.expires_at is None:
                return BotoCredentials(keys.access_key, keys.secret_key, keys.session_token)
            return RefreshableCredentials.create_from_metadata(
                _metadata(keys), refresh_using=lambda: _metadata(_ask(provider)), method=self.METHOD
            )

    session.register_component("credential_provider", CredentialResolver(providers=[FunctionProvider()]))


def _ask(provider: Callable[[], Credentials]) -> Credentials:
    try:
        keys = provider()
    except S3Error:
        raise
    except Exception as exc:
        raise NoCredentialsError(f"the credentials function failed: {exc!r}") from exc
    if not isinstance(keys, Credentials):
        kind = type(keys).__name__
        raise NoCredentialsError(f"the credentials function must return Credentials, not {kind}")
    return keys


def _metadata(keys: Credentials) -> dict[str, Any]:
    """Says it as botocore wants it."""
    return {
        "access_key": keys.access_key,
        "secret_key": keys.secret_key,
        "token": keys.session_token,
        "expiry_time": keys.expires_at.isoformat() if keys.expires_at else None,
    }

"""Whose requests these are: keys from botocore's providers, or from a function."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError, NoCredentialsError, S3Error, bare_cause
from s3torch.core.models import Credentials, hidden

if TYPE_CHECKING:
    from collections.abc import Callable

    from botocore.session import Session as BotocoreSession

_PLACES = (
    "environment variables, the AWS files (profile {profile}), assumed roles, web identity, SSO, "
    "a credential process, container or instance metadata"
)
_WAY_OUT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile, or use unsigned=True for public data"
)


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
        raise NoCredentialsError(f"no credentials found in {_PLACES.format(profile=named)}; {_WAY_OUT}")
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

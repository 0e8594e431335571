"""Where requests go and who signs them, resolved by botocore from the usual AWS places.

Region, endpoint rules and credentials are botocore's business, asked through its public interfaces: the
address of a bucket is read from a presigned URL, which knows every rule (virtual-host and path style, dual
stack, FIPS, acceleration, access points) and needs no network.
"""

from __future__ import annotations

import os
import re
import threading
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from s3torch.core.errors import ConfigurationError, NoCredentialsError, S3Error
from s3torch.core.models import BucketEndpoint, Credentials
from s3torch.core.transports._http import common_headers
from s3torch.core.uri import check_endpoint, is_confidential

if TYPE_CHECKING:
    from collections.abc import Callable

    from boto3.session import Session as Boto3Session
    from botocore.credentials import ReadOnlyCredentials
    from botocore.session import Session as BotocoreSession

    from s3torch.core.config import S3ClientConfig

__all__ = ["AwsSession"]

_AWS_HOST = re.compile(r"\.(amazonaws\.com|amazonaws\.com\.cn|api\.aws|c2s\.ic\.gov)$")
_PROBE_KEY = "k"
_DEFAULT_REGION = "us-east-1"
_POOL_CONNECTIONS = 64


class AwsSession:
    """Resolves addresses and credentials for one client in one process.

    Args:
        region: The region; ``None`` takes ``AWS_REGION``, ``AWS_DEFAULT_REGION``, then the profile.
        endpoint: The endpoint that was given to the client.
        config: The settings of the client.
        user_agent: What requests say they come from.
        endpoints: Addresses that are known already, by bucket; new ones are added to it.
    """

    def __init__(
        self,
        *,
        region: str | None,
        endpoint: str | None,
        config: S3ClientConfig,
        user_agent: str,
        endpoints: dict[str, BucketEndpoint],
    ) -> None:
        self._region = region
        self._config = config
        self._user_agent = user_agent
        self._endpoints = endpoints
        self._endpoint = endpoint or config.endpoint or _endpoint_variable()
        if self._endpoint is not None:
            self._endpoint = check_endpoint(self._endpoint)
        self._asked_profile = self._endpoint is not None
        self._lock = threading.RLock()
        self._botocore: BotocoreSession | None = None
        self._boto_session: Boto3Session | None = None
        self._boto_client: Any = None

    def endpoint(self, bucket: str) -> BucketEndpoint:
        """Tells where the requests for a bucket go; asked once per bucket."""
        if not bucket:
            raise ConfigurationError("Bucket should be specified")
        known = self._endpoints.get(bucket)
        if known is None:
            with self._lock:
                known = self._endpoints[bucket] = self._resolve(bucket)
        return known

    def credentials(self, bucket: str | None = None) -> Credentials | None:  # noqa: ARG002
        """Returns keys that are valid now; botocore refreshes them when that is due."""
        if self._config.unsigned:
            return None
        from botocore.exceptions import BotoCoreError

        try:
            found = self._session().get_credentials()
            frozen: ReadOnlyCredentials | None = found.get_frozen_credentials() if found else None
        except (BotoCoreError, RuntimeError) as exc:
            # botocore raises a RuntimeError for keys that have expired when they come.
            raise NoCredentialsError(f"credentials could not be loaded: {exc}") from exc
        if frozen is None or not frozen.access_key or not frozen.secret_key:
            raise NoCredentialsError(
                "no credentials found in environment variables, the AWS files "
                f"(profile {self._config.profile or os.environ.get('AWS_PROFILE') or 'default'}), "
                "web identity, container or instance metadata; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, name a profile, or use unsigned=True for public data"
            )
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token)

    def renew_credentials(self, stale: Credentials | None, bucket: str | None = None) -> bool:
        """Asks all providers anew because S3 has refused these keys; tells whether there are others now.

        botocore renews by the clock only, so the session begins again without what it has cached. A boto3
        client that somebody holds goes on with the old keys.
        """
        if stale is None:
            return False
        with self._lock:
            if self.credentials(bucket) == stale:
                self._botocore = self._boto_session = self._boto_client = None
            return self.credentials(bucket) != stale

    def boto_client(self) -> Any:
        """Returns the boto3 client of this session, made at the first call; it is safe to share."""
        with self._lock:
            if self._boto_client is None:
                style: Literal["path", "auto"] = "path" if self._path_style else "auto"
                self._boto_client = self._make_boto_client(addressing_style=style)
            return self._boto_client

    def close(self) -> None:
        """Closes the connections of the boto3 client, if there is one."""
        with self._lock:
            if self._boto_client is not None:
                self._boto_client.close()
                self._boto_client = None

    @property
    def region(self) -> str:
        """The region that requests are signed for."""
        region = self._region or os.environ.get("AWS_REGION")
        if not region:
            region = self._session().get_config_variable("region")
        if region:
            return str(region)
        if self._has_own_store:
            return _DEFAULT_REGION
        raise ConfigurationError(
            "no region: give region=..., or set AWS_REGION or a region in the AWS profile"
        )

    @property
    def _has_own_store(self) -> bool:
        self._ask_profile()
        if self._endpoint is None:
            return False
        host = urlsplit(self._endpoint).hostname or ""
        return _AWS_HOST.search(host) is None

    @property
    def _path_style(self) -> bool:
        return self._config.force_path_style or self._has_own_store

    def _ask_profile(self) -> None:
        """Takes the endpoint from the profile, where nothing else tells one."""
        with self._lock:
            if not self._asked_profile:
                endpoint = _profile_endpoint(self._session())
                self._endpoint = None if endpoint is None else check_endpoint(endpoint)
                self._asked_profile = True

    def _session(self) -> BotocoreSession:
        with self._lock:
            if self._botocore is None:
                self._botocore = self._make_botocore_session()
            return self._botocore

    def _make_botocore_session(self) -> BotocoreSession:
        import botocore.session
        from botocore.exceptions import ProfileNotFound

        profile = None if self._config.unsigned else self._config.profile
        session = botocore.session.Session(profile=profile)
        try:
            session.get_scoped_config()
        except ProfileNotFound as exc:
            raise ConfigurationError(
                f"{exc}; the AWS files have: {', '.join(session.available_profiles) or 'none'}"
            ) from exc
        if self._config.credentials is not None:
            _use_provider(session, self._config.credentials)
        return session

    def _resolve(self, bucket: str) -> BucketEndpoint:
        self._ask_profile()
        self._check_secrecy()
        if self._has_own_store and self._endpoint is not None:
            parts = urlsplit(self._endpoint)
            return BucketEndpoint(parts.scheme, parts.netloc, f"{parts.path}/{bucket}/", self.region)
        from botocore.exceptions import BotoCoreError

        try:
            # Presigning needs some keys; real ones could ask the network for a refresh.
            dotted = "." in bucket and not bucket.startswith("arn:")
            client = self._make_boto_client(
                aws_access_key_id="none",
                aws_secret_access_key="none",  # noqa: S106
                # A certificate for *.s3.amazonaws.com does not cover a bucket name with dots.
                addressing_style="path" if self._path_style or dotted else "virtual",
            )
            url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": _PROBE_KEY})
        except (BotoCoreError, ValueError) as exc:
            raise ConfigurationError(f"no address for this bucket: {exc}", bucket=bucket) from exc
        parts = urlsplit(url)
        scope = unquote(parse_qs(parts.query)["X-Amz-Credential"][0]).split("/")
        return BucketEndpoint(
            scheme=parts.scheme,
            host=parts.netloc,
            base_path=parts.path.removesuffix(_PROBE_KEY),
            signing_region=scope[2],
            signing_name=scope[3],
        )

    def _make_boto_client(self, *, addressing_style: Literal["auto", "path", "virtual"], **keys: str) -> Any:
        from boto3.session import Session
        from botocore import UNSIGNED
        from botocore.config import Config

        config = self._config
        self._check_secrecy()
        if self._boto_session is None:
            self._boto_session = Session(botocore_session=self._session())
        client = self._boto_session.client(  # type: ignore[call-overload]
            "s3",
            region_name=self.region,
            endpoint_url=self._endpoint,
            config=Config(
                signature_version=UNSIGNED if config.unsigned and not keys else "s3v4",
                retries={"total_max_attempts": config.attempts, "mode": "standard"},
                # Parts carry checksums; hashing every upload for the signature as well would cost more than
                # sending it.
                s3={"addressing_style": addressing_style, "payload_signing_enabled": False},
                connect_timeout=config.connect_timeout,
                read_timeout=config.read_timeout,
                max_pool_connections=_POOL_CONNECTIONS,
                user_agent_extra=self._user_agent,
                # s3torch makes and checks checksums itself, and some stores know none.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
            **keys,
        )
        client.meta.events.register("before-call.s3", self._add_headers)
        return client

    def _add_headers(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        """Gives the requests of a boto3 client what the settings add to those of all transports."""
        params["headers"].update(common_headers(self._config, model.name))

    def _check_secrecy(self) -> None:
        if self._config.sse_customer_key is None or self._endpoint is None:
            return
        if not is_confidential(self._endpoint):
            raise ConfigurationError(
                f"sse_customer_key must not be sent to {self._endpoint}; use an https:// endpoint"
            )


def _ignores_endpoints() -> bool:
    return os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"


def _endpoint_variable() -> str | None:
    if _ignores_endpoints():
        return None
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _profile_endpoint(session: BotocoreSession) -> str | None:
    profile = session.get_scoped_config()
    if _ignores_endpoints() or profile.get("ignore_configured_endpoint_urls", "").lower() == "true":
        return None
    services = session.full_config.get("services", {}).get(profile.get("services"), {})
    return services.get("s3", {}).get("endpoint_url") or profile.get("endpoint_url")


def _use_provider(session: BotocoreSession, provider: Callable[[], Credentials]) -> None:
    """Makes a function of the user the only source of credentials of a botocore session."""
    from botocore.credentials import (
        CredentialProvider,
        CredentialResolver,
        RefreshableCredentials,
    )
    from botocore.credentials import Credentials as BotoCredentials

    def ask() -> Credentials:
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

    def metadata(keys: Credentials) -> dict[str, Any]:
        expiry = keys.expires_at.isoformat() if keys.expires_at else None
        return {
            "access_key": keys.access_key,
            "secret_key": keys.secret_key,
            "token": keys.session_token,
            "expiry_time": expiry,
        }

    class FunctionProvider(CredentialProvider):
        METHOD = "s3torch-function"

        def load(self) -> Any:
            keys = ask()
            if keys.expires_at is None:
                return BotoCredentials(keys.access_key, keys.secret_key, keys.session_token)
            return RefreshableCredentials.create_from_metadata(
                metadata(keys), refresh_using=lambda: metadata(ask()), method=self.METHOD
            )

    session.register_component("credential_provider", CredentialResolver(providers=[FunctionProvider()]))

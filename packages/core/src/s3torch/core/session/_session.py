"""Where requests go and who signs them, resolved by botocore from the usual AWS places.

Region, endpoint rules and credentials are botocore's business, asked through its public interfaces. A process
that only moves bytes, whose addresses have come with a pickle and whose keys are in the environment, loads
neither boto3 nor botocore.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from s3torch.core._uri import check_endpoint, is_confidential
from s3torch.core.errors import ConfigurationError, S3Error
from s3torch.core.models import Credentials, hidden
from s3torch.core.requests import common_headers
from s3torch.core.session._botocore import (
    answer_before_signing,
    ask_botocore,
    checksums_when_required,
    endpoint_variable,
    files_mention,
    in_path_style,
    is_outside_aws,
    make_botocore_session,
    profile_endpoint,
    profile_style,
    session_credentials,
)
from s3torch.core.session._bucket_sessions import BucketSessions, create_session

if TYPE_CHECKING:
    from boto3.session import Session as Boto3Session
    from botocore.session import Session as BotocoreSession

    from s3torch.core._config import S3ClientConfig
    from s3torch.core.models import BucketEndpoint

__all__ = ["AwsSession"]

_DEFAULT_REGION = "us-east-1"
_POOL_CONNECTIONS = 64
_ENVIRONMENT_SECONDS = 1.0


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
        self._endpoint = endpoint or config.endpoint or endpoint_variable()
        if self._endpoint is not None:
            self._endpoint = check_endpoint(self._endpoint)
        self._asked_profile = self._endpoint is not None
        self._lock = threading.RLock()
        self._environment = EnvironmentCredentials()
        self._botocore: BotocoreSession | None = None
        self._boto_session: Boto3Session | None = None
        # These two serve nobody but this class: one answers with addresses, one begins sessions with buckets.
        self._address_client: Any = None
        self._session_client: Any = None
        # These sign URLs, one for each version of signatures.
        self._url_clients: dict[str | None, Any] = {}
        self._bucket_sessions = BucketSessions(self._create_bucket_session)

    def endpoint(self, bucket: str) -> BucketEndpoint:
        """Returns where the requests for a bucket go, or for none; asked once per bucket."""
        known = self._endpoints.get(bucket)
        if known is None:
            with self._lock:
                known = self._endpoints[bucket] = self._resolve(bucket)
        return known

    def credentials(self, bucket: str | None = None) -> Credentials | None:
        """Returns keys that are valid now, refreshed when that is due.

        Args:
            bucket: What the request is about. For a directory bucket these are the keys of a session with it.

        Raises:
            NoCredentialsError: No provider has any.
            S3Error: The directory bucket gives no session.
        """
        config = self._config
        if config.unsigned:
            return None
        if bucket is not None and self.endpoint(bucket).session_auth:
            return self._bucket_sessions.credentials(bucket)
        if config.credentials is None and config.profile is None:
            found = self._environment.get()
            if found is not None:
                return found
        return session_credentials(self._session(), profile=config.profile)

    def renew_credentials(self, stale: Credentials | None, bucket: str | None = None) -> bool:
        """Asks all providers anew because S3 has refused these keys; tells whether there are others now.

        botocore renews by the clock only, so the session begins again without what it has cached. A directory
        bucket gets another session.
        """
        if stale is None:
            return False
        if bucket is not None and self.endpoint(bucket).session_auth:
            return self._bucket_sessions.renew(bucket, stale)
        self._environment.forget()
        with self._lock:
            if self.credentials() == stale:
                self._botocore = self._boto_session = self._session_client = None
                self._url_clients.clear()
            return self.credentials() != stale

    def presign(self, operation: str, parameters: dict[str, Any], *, expires: int) -> str:
        """Returns a URL that is signed for one operation of boto3; botocore signs it, which sends nothing."""
        bucket = parameters["Bucket"]
        address = self.endpoint(bucket)
        self.credentials(bucket)  # Raises errors of ours where there are none.
        is_plain = not address.session_auth and address.signing_region != "*"
        # Unless it is told another, botocore signs URLs with version 2, and for an address without region.
        version = "s3v4" if is_plain and not self._config.unsigned else None
        style: Literal["path", "virtual"] = "path" if self._addressing_style == "path" else "virtual"
        with self._lock:
            client = self._url_clients.get(version)
            if client is None:
                client = self._make_boto_client(signature_version=version, addressing_style=style)
                self._url_clients[version] = client
        url: str = client.generate_presigned_url(operation, Params=parameters, ExpiresIn=expires)
        return url

    def close(self) -> None:
        """Closes the connections of the boto3 clients, if there are any."""
        with self._lock:
            clients = [*self._url_clients.values(), self._session_client]
            self._url_clients.clear()
            self._session_client = None
        for client in filter(None, clients):
            client.close()

    @property
    def is_encrypted(self) -> bool:
        """Whether requests go over TLS."""
        if self._endpoint is None and self._endpoints:
            return all(known.scheme == "https" for known in self._endpoints.values())
        self._ask_profile()
        return self._endpoint is None or self._endpoint.startswith("https:")

    @property
    def ca_bundle(self) -> str | None:
        """The file of certificates to trust, as botocore resolves it."""
        named = self._config.ca_bundle or os.environ.get("AWS_CA_BUNDLE")
        if not named and files_mention("ca_bundle"):
            named = self._session().get_config_variable("ca_bundle")
        return named or os.environ.get("REQUESTS_CA_BUNDLE") or None

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

    @cached_property
    def settled(self) -> S3ClientConfig:
        """The settings, with what environment and profile say where they say nothing.

        Raises:
            ConfigurationError: What they say is none of the values that botocore knows.
        """
        config = self._config
        if None not in {config.checksum_algorithm, config.verify, config.addressing_style}:
            return config
        is_mentioned = files_mention("checksum", "addressing_style")
        profile = self._session().get_scoped_config() if is_mentioned else {}
        if checksums_when_required("response_checksum_validation", profile):
            config = replace(config, verify=config.verify or "off")
        config = replace(config, verify="on" if config.verifies else "off")
        if checksums_when_required("request_checksum_calculation", profile):
            config = replace(config, checksum_algorithm=config.checksum_algorithm or "off")
        style = "path" if config.force_path_style else config.addressing_style or profile_style(profile)
        return replace(config, checksum_algorithm=config.upload_checksum or "off", addressing_style=style)

    def _resolve(self, bucket: str) -> BucketEndpoint:
        self._ask_profile()
        self._check_secrecy()
        if self._endpoint is not None and self._has_own_store and self._addressing_style == "path":
            address = in_path_style(bucket, endpoint=self._endpoint, region=self.region)
            if address is not None:
                return address
        from botocore.exceptions import BotoCoreError

        try:
            if self._address_client is None:
                # Signing needs some keys; real ones could ask the network for a refresh.
                keys: dict[str, Any] = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}
                self._address_client = self._make_boto_client(**keys)
                answer_before_signing(self._address_client)
            return ask_botocore(self._address_client, bucket)
        except (BotoCoreError, ValueError) as exc:
            raise ConfigurationError(f"no address for this bucket: {exc}", bucket=bucket) from exc

    def _create_bucket_session(self, bucket: str) -> Credentials:
        """Sends one CreateSession request, and another with other keys if ours have expired."""

        def create() -> Credentials:
            with self._lock:
                if self._session_client is None:
                    self._session_client = self._make_boto_client()
                client = self._session_client
            return create_session(client, bucket)

        before = self.credentials()
        try:
            return create()
        except S3Error as exc:
            if not exc.has_expired_credentials or not self.renew_credentials(before):
                raise
        return create()

    @property
    def _has_own_store(self) -> bool:
        self._ask_profile()
        return self._endpoint is not None and is_outside_aws(self._endpoint)

    @property
    def _addressing_style(self) -> Literal["auto", "path", "virtual"]:
        style = self.settled.addressing_style
        if style in {"path", "virtual"}:
            return style
        if self._has_own_store:
            return "path"
        # With "auto" botocore puts the bucket into the path of every endpoint that it is given.
        return "auto" if self._endpoint is None else "virtual"

    def _ask_profile(self) -> None:
        """Takes the endpoint from the profile, where nothing else tells one."""
        with self._lock:
            if not self._asked_profile:
                endpoint = profile_endpoint(self._session())
                self._endpoint = None if endpoint is None else check_endpoint(endpoint)
                self._asked_profile = True

    def _session(self) -> BotocoreSession:
        with self._lock:
            if self._botocore is None:
                config = self._config
                profile = None if config.unsigned else config.profile
                self._botocore = make_botocore_session(profile=profile, provider=config.credentials)
            return self._botocore

    def _make_boto_client(
        self,
        *,
        signature_version: str | None = None,
        addressing_style: Literal["auto", "path", "virtual"] | None = None,
        **keys: str,
    ) -> Any:
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
            verify=self.ca_bundle,
            config=Config(
                # What the rules of the endpoint say, unless nothing is signed.
                signature_version=UNSIGNED if config.unsigned and not keys else signature_version,
                retries={"total_max_attempts": config.attempts, "mode": "standard"},
                # Parts carry checksums; hashing every upload for the signature as well would cost more than
                # sending it.
                s3={
                    "addressing_style": addressing_style or self._addressing_style,
                    "payload_signing_enabled": False,
                },
                connect_timeout=config.connect_timeout,
                read_timeout=config.read_timeout,
                max_pool_connections=max(_POOL_CONNECTIONS, config.connections),
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


class EnvironmentCredentials:
    """The keys of the environment, looked up once a second: it takes about as long as to sign a request."""

    def __init__(self) -> None:
        self._known: tuple[float, Credentials | None] | None = None

    def get(self) -> Credentials | None:
        """Returns the keys, or ``None`` where botocore has more to say."""
        now = time.monotonic()
        known = self._known
        if known is None or now - known[0] > _ENVIRONMENT_SECONDS:
            known = self._known = (now, environment_credentials())
        return known[1]

    def forget(self) -> None:
        """Looks again the next time."""
        self._known = None


def environment_credentials() -> Credentials | None:
    """Returns the keys of the environment, as botocore would, but without the time that botocore takes.

    ``None`` where botocore has more to say: to a profile, to half of the keys, to keys that end.
    """
    if os.environ.get("AWS_PROFILE") or os.environ.get("AWS_CREDENTIAL_EXPIRATION"):
        return None
    access = hidden(os.environ.get("AWS_ACCESS_KEY_ID"))
    secret = hidden(os.environ.get("AWS_SECRET_ACCESS_KEY"))
    token = hidden(os.environ.get("AWS_SECURITY_TOKEN") or os.environ.get("AWS_SESSION_TOKEN"))
    return Credentials(access, secret, token or None) if access and secret else None

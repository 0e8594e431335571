"""Where requests go and who signs them, and which variable, file or option says so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from s3torch.core.cli.findings import Finding, Severity
from s3torch.core.errors import NoCredentialsError, S3Error
from s3torch.core.session._botocore import WAY_OUT, is_outside_aws

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core.cli.commands import CommandContext
    from s3torch.core.models import BucketEndpoint
    from s3torch.core.session import AwsSession

_TOPIC = "Where and who"
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_KINDS = {
    "env": "environment variables",
    "shared-credentials-file": "the AWS credentials file",
    "config-file": "the AWS config file",
    "assume-role": "an assumed role",
    "assume-role-with-web-identity": "a role assumed with a web identity",
    "sso": "IAM Identity Center (SSO)",
    "custom-process": "a credential process",
    "container-role": "the role of the container",
    "iam-role": "the role of the instance",
    "login": "aws login",
}
_GET_KEYS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile (--profile, AWS_PROFILE), or use "
    "--no-sign for public data"
)
_SECONDS = 5


def look_at_settings(context: CommandContext, session: AwsSession, bucket: str | None) -> Iterator[Finding]:
    """Tells region, endpoint, address and credentials, and what each comes from."""
    profile = context.profile or os.environ.get("AWS_PROFILE") or "default"
    yield from _guarded("region", lambda: _region(context, session, profile))
    yield from _guarded("endpoint", lambda: _endpoint(context, session, profile))
    if bucket is not None:
        yield from _guarded("address", lambda: _address(session, bucket))
    yield from _guarded("proxy", lambda: _proxy(session, bucket))
    yield from _guarded("credentials", lambda: _credentials(context, session, profile))


def _guarded(name: str, look: Any) -> Iterator[Finding]:
    try:
        yield look()
    except NoCredentialsError as exc:
        # The message ends with what a program can do.
        yield Finding(_TOPIC, name, Severity.ERROR, exc.message.removesuffix(f"; {WAY_OUT}"), _GET_KEYS)
    except S3Error as exc:
        yield Finding(_TOPIC, name, Severity.ERROR, exc.message, "correct this setting")


def _region(context: CommandContext, session: AwsSession, profile: str) -> Finding:
    region = session.region
    if context.region:
        origin = "--region"
    else:
        named = [name for name in _REGIONS if os.environ.get(name)]
        configured = session._session().get_scoped_config().get("region")
        origin = named[0] if named else f"profile {profile}" if configured else "the default for other stores"
    facts = {"region": region, "origin": origin}
    return Finding(_TOPIC, "region", Severity.OK, f"{region}, from {origin}", facts=facts)


def _endpoint(context: CommandContext, session: AwsSession, profile: str) -> Finding:
    session._ask_profile()
    url = session._endpoint
    named = [name for name in _ENDPOINTS if os.environ.get(name)]
    ignores = os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
    if context.endpoint:
        origin = "--endpoint"
    elif url is None:
        origin = "no other one is set"
        if ignores and named:
            origin = f"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS ignores {named[0]}"
    else:
        origin = named[0] if named and not ignores else f"profile {profile}"
    where = url or f"Amazon S3 in {session.region}"
    facts = {"endpoint": url, "origin": origin}
    if url is not None and url.startswith("http:") and not _is_near(url):
        text = f"{where}, from {origin}: others on the network can read what is sent"
        return Finding(_TOPIC, "endpoint", Severity.WARNING, text, "use https://", facts)
    return Finding(_TOPIC, "endpoint", Severity.OK, f"{where}, from {origin}", facts=facts)


def _is_near(url: str) -> bool:
    """Whether an endpoint is a host of this machine or network, by its name."""
    host = urlsplit(url).hostname or ""
    return "." not in host or host.startswith(("127.", "10.", "192.168.", "172.")) or host == "::1"


def _address(session: AwsSession, bucket: str) -> Finding:
    address = session.endpoint(bucket)
    in_path = address.base_path.rstrip("/").endswith(bucket)
    style = "in the path" if in_path else "in the name of the host"
    text = f"{address.scheme}://{address.host}{address.base_path}, the bucket {style}"
    facts = {"host": address.host, "path_style": in_path, "signing_region": address.signing_region}
    return Finding(_TOPIC, "address", Severity.OK, text, facts=facts)


def proxy_for(scheme: str, host: str) -> str | None:
    """Returns the proxy for requests to a host, without a user or a password; ``None`` for none."""
    name = urlsplit(f"//{host}").hostname or host
    url = getproxies().get(scheme)
    if not url or proxy_bypass(name):
        return None
    parts = urlsplit(url if "//" in url else f"http://{url}")
    return f"{parts.hostname}:{parts.port or 80}"


def _proxy(session: AwsSession, bucket: str | None) -> Finding:
    address = target_of(session, bucket)
    proxy = proxy_for(address[0], address[1])
    if proxy is None:
        unused = [name for name in ("http", "https") if name in getproxies()]
        why = " (NO_PROXY, or that of another scheme)" if unused else ""
        return Finding(_TOPIC, "proxy", Severity.OK, f"none{why}", facts={"proxy": None})
    variable = f"{address[0].upper()}_PROXY"
    return Finding(_TOPIC, "proxy", Severity.NOTE, f"{proxy}, from {variable}", facts={"proxy": proxy})


def target_of(session: AwsSession, bucket: str | None) -> tuple[str, str]:
    """Returns the scheme and the host that requests go to."""
    if bucket is not None:
        address: BucketEndpoint = session.endpoint(bucket)
        return address.scheme, address.host
    session._ask_profile()
    parts = urlsplit(session._endpoint or f"https://s3.{session.region}.amazonaws.com")
    return parts.scheme, parts.netloc


def _credentials(context: CommandContext, session: AwsSession, profile: str) -> Finding:
    if context.unsigned:
        return Finding(_TOPIC, "credentials", Severity.OK, "none: --no-sign", facts={"kind": None})
    half = [name for name in _KEYS if os.environ.get(name)]
    keys = session.credentials()
    if keys is None:
        raise NoCredentialsError("there are no credentials")
    found = session._session().get_credentials()
    method = getattr(found, "method", "env")
    kind = _KINDS.get(method, method)
    if method in {"shared-credentials-file", "config-file"}:
        kind += f", profile {profile}"
    masked = f"{keys.access_key[:4]}…{keys.access_key[-4:]}" if len(keys.access_key) > 8 else "a short one"
    temporary = ", temporary" if keys.session_token else ""
    text = f"access key {masked} from {kind}{temporary}"
    facts: dict[str, Any] = {"kind": method, "access_key": masked, "temporary": bool(keys.session_token)}
    if len(half) == 1:
        missing = next(name for name in _KEYS if name not in half)
        text += f"; {half[0]} is set without {missing} and is ignored"
        return Finding(
            _TOPIC, "credentials", Severity.WARNING, text, f"set {missing}, or unset {half[0]}", facts
        )
    identity = _identity(session)
    if identity is not None:
        text += f"; {identity}"
        facts["identity"] = identity
    return Finding(_TOPIC, "credentials", Severity.OK, text, facts=facts)


def _identity(session: AwsSession) -> str | None:
    """Asks STS who the keys belong to; other stores have none, unless a variable says where it is."""
    session._ask_profile()
    outside = session._endpoint is not None and is_outside_aws(session._endpoint)
    if outside and not os.environ.get("AWS_ENDPOINT_URL_STS"):
        return None
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(connect_timeout=_SECONDS, read_timeout=_SECONDS, retries={"total_max_attempts": 1})
    try:
        client: Any = session._session().create_client(
            "sts", region_name=session.region, verify=session.ca_bundle, config=config
        )
        return str(client.get_caller_identity()["Arn"])
    except (BotoCoreError, ClientError) as exc:
        # It says no more of S3 than that: the signed request below does.
        return f"STS does not say who owns it ({type(exc).__name__})"

"""Whether the store can be reached, trusts and is trusted, agrees about the time, and lets these keys in."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from s3torch.core import requests
from s3torch.core._uri import is_directory_bucket
from s3torch.core.cli._output import count_text
from s3torch.core.cli.doctor._origins import proxy_for, target_of
from s3torch.core.cli.findings import Finding, Severity
from s3torch.core.errors import (
    CertificateError,
    NotFoundError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    ThrottledError,
    TransportError,
    WrongRegionError,
)
from s3torch.core.requests import Answer, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core import S3Client
    from s3torch.core.session import AwsSession

_TOPIC = "Connection"
_PORTS = {"http": 80, "https": 443}
_SECONDS = 5.0
# S3 refuses signatures that are 15 minutes off.
_REFUSED_SKEW = 15 * 60
_NOTICED_SKEW = 60
_SOON_DAYS = 14
_FORBIDDEN = 403
_SKEWED = "RequestTimeTooSkewed"
_CLOCK = "set the clock by NTP (chronyc makestep, timedatectl set-ntp true), on the host of a container"
_KEYS_WRONG = "compare the keys with those of the store; spaces and quotes in variables count"
# By the code of the answer: what is wrong, and what to do.
_REFUSALS = {
    "InvalidAccessKeyId": ("the store does not know this access key", _KEYS_WRONG),
    "SignatureDoesNotMatch": (
        "the secret key does not belong to the access key, or a proxy changes requests",
        _KEYS_WRONG,
    ),
    "InvalidToken": ("the session token is damaged, or not of these keys", "set all three variables anew"),
    _SKEWED: ("the clock of this machine is off", _CLOCK),
    "InvalidClientTokenId": ("the store does not know this access key", _KEYS_WRONG),
    "AccessDenied": (
        "these keys may not list the bucket",
        "allow s3:ListBucket on arn:aws:s3:::{bucket} (and s3:GetObject on arn:aws:s3:::{bucket}/*)",
    ),
    "AllAccessDisabled": ("the account or the bucket is closed", "ask its owner"),
}


class _Probe(Request[Any]):
    """A request whose answer is wanted, whatever it is."""

    __slots__ = ()

    def result(self, answer: Answer) -> Answer:
        """Returns the answer."""
        return answer


@dataclass(frozen=True, slots=True)
class Reached:
    """What a signed request has brought.

    Attributes:
        finding: How it went.
        skew: What the clocks say, if the answer had a date.
        page: The first object, if there is one and the bucket may be listed.
    """

    finding: Finding
    skew: Finding | None = None
    page: Any = None


def look_at_network(session: AwsSession, bucket: str | None) -> Iterator[Finding]:
    """Looks up the host, connects to it, and shakes hands."""
    try:
        scheme, host = target_of(session, bucket)
    except S3Error:
        # It was said already why there is none.
        return
    proxy = proxy_for(scheme, host)
    parts = urlsplit(f"//{proxy or host}")
    name, port = parts.hostname or "", parts.port or _PORTS[scheme]
    what = f"the proxy {name}" if proxy else name
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)}
    except OSError as exc:
        remedy = "correct the endpoint or the region, or check DNS (/etc/resolv.conf)"
        yield Finding(
            _TOPIC, "name", Severity.ERROR, f"the name {name} was not found: {exc.strerror}", remedy
        )
        return
    begin = time.perf_counter()
    try:
        connected = socket.create_connection((name, port), _SECONDS)
    except OSError as exc:
        why = exc.strerror or f"no answer in {_SECONDS:.0f} seconds"
        remedy = "check that the server runs, the port is right, and no firewall or security group blocks it"
        yield Finding(_TOPIC, "connection", Severity.ERROR, f"{what}, port {port}: {why}", remedy)
        return
    with connected:
        milliseconds = (time.perf_counter() - begin) * 1000
        text = f"{what}, port {port}, in {milliseconds:.1f} ms ({count_text(len(addresses), 'address')})"
        facts = {"host": name, "port": port, "seconds": milliseconds / 1000}
        yield Finding(_TOPIC, "connection", Severity.OK, text, facts=facts)
        if scheme == "https" and not proxy:
            yield _shake_hands(connected, name, session.ca_bundle)


def _shake_hands(connected: socket.socket, host: str, ca_bundle: str | None) -> Finding:
    trusted = ca_bundle or "the certificates of this machine"
    try:
        context = ssl.create_default_context(cafile=ca_bundle)
        with context.wrap_socket(connected, server_hostname=host) as secure:
            certificate: Any = secure.getpeercert()
            version = secure.version()
    except ssl.SSLCertVerificationError as exc:
        remedy = "trust its authority: AWS_CA_BUNDLE=/path/ca.pem or S3ClientConfig(ca_bundle=…)"
        text = f"the certificate of {host} is not trusted: {exc.verify_message} (trusted: {trusted})"
        return Finding(_TOPIC, "TLS", Severity.ERROR, text, remedy)
    except (ssl.SSLError, OSError) as exc:
        if isinstance(exc, FileNotFoundError):
            text = f"the certificate file {ca_bundle} does not exist"
            return Finding(_TOPIC, "TLS", Severity.ERROR, text, "correct AWS_CA_BUNDLE or ca_bundle")
        text = f"{host} does not speak TLS on this port: {getattr(exc, 'reason', None) or exc}"
        return Finding(_TOPIC, "TLS", Severity.ERROR, text, "use http://, or the port that serves https://")
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    days = (ends - datetime.now(UTC)).days
    text = f"{version}, the certificate is trusted ({trusted}) until {ends:%Y-%m-%d}"
    facts = {"version": version, "expires": ends.isoformat()}
    if days < _SOON_DAYS:
        remedy = "renew it on the server before then"
        return Finding(_TOPIC, "TLS", Severity.WARNING, f"{text}: {days} days", remedy, facts)
    return Finding(_TOPIC, "TLS", Severity.OK, text, facts=facts)


def send_signed(client: S3Client, bucket: str, prefix: str) -> Reached:
    """Lists one object: what the answer tells of the keys, the region, the clocks and the permission."""
    if is_directory_bucket(bucket):
        # They list whole folders only.
        prefix = prefix[: prefix.rfind("/") + 1]
    listing = requests.list_objects(bucket, prefix=prefix, max_keys=1)
    begin = time.time()
    try:
        answer = client._handle.call(_Probe(*listing))
    except S3Error as error:
        return Reached(_without_answer(error))
    end = time.time()
    skew = _clocks(answer.headers.get("date"), begin, end)
    try:
        page = listing.result(answer)
    except S3Error as error:
        finding = _refused(error, bucket)
        if error.code == _SKEWED and skew is not None and skew.severity is Severity.ERROR:
            # Once, with the minutes.
            text = f"the clock of this machine is {skew.text} [{_SKEWED}]"
            return Reached(replace(finding, text=text))
        return Reached(finding, skew)
    text = (
        f"ListObjectsV2 was answered in {(end - begin) * 1000:.0f} ms: the credentials are valid and may list"
    )
    facts = {"seconds": end - begin, "server": answer.headers.get("server")}
    return Reached(Finding(_TOPIC, "signed request", Severity.OK, text, facts=facts), skew, page)


def _without_answer(error: S3Error) -> Finding:
    remedy = (
        "if the port serves https://, use that; --transport http (or crt) shows whether it is the network or "
        "the transport"
    )
    if isinstance(error, CertificateError):
        remedy = "trust its authority: AWS_CA_BUNDLE=/path/ca.pem"
    elif isinstance(error, TransportError):
        remedy = "choose another --transport, or install what this one needs"
    elif not isinstance(error, S3ConnectionError | S3TimeoutError):
        remedy = "see the findings above"
    return Finding(_TOPIC, "signed request", Severity.ERROR, str(error), remedy, _facts(error))


def _refused(error: S3Error, bucket: str) -> Finding:
    """Says why the store has refused a request, and what to do."""
    known = _REFUSALS.get(error.code or "")
    if known is not None:
        text, remedy = known[0], known[1].format(bucket=bucket)
    elif error.has_expired_credentials:
        text = "the credentials have expired"
        remedy = (
            "get new ones: aws sso login, or a new session token; long jobs need credentials that are renewed"
        )
    elif isinstance(error, WrongRegionError):
        where = error.expected_region
        text = error.message
        remedy = (
            f"give --region {where}, or set AWS_REGION={where}" if where else "give the region of the bucket"
        )
    elif isinstance(error, NotFoundError):
        text, remedy = f"there is no bucket {bucket}", "correct its name or the endpoint, or create it"
    elif isinstance(error, ThrottledError):
        text, remedy = (
            error.message,
            "the store is busy; send fewer requests, or spread keys over more prefixes",
        )
    elif error.status == _FORBIDDEN:
        text, remedy = _REFUSALS["AccessDenied"][0], _REFUSALS["AccessDenied"][1].format(bucket=bucket)
    else:
        text, remedy = error.message, "check that this is the endpoint of an S3 server"
    told = f" [{error.code}]" if error.code else f" [{error.status}]"
    return Finding(_TOPIC, "signed request", Severity.ERROR, text + told, remedy, _facts(error))


def _facts(error: S3Error) -> dict[str, Any]:
    facts = {"error": type(error).__name__, "code": error.code, "status": error.status}
    return {**facts, "request_id": error.request_id}


def _clocks(date: str | None, begin: float, end: float) -> Finding | None:
    """Compares the clock of this machine with that of the store, which tells whole seconds."""
    if date is None:
        return None
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    ahead = begin - theirs - 1 if begin > theirs + 1 else end - theirs if end < theirs else 0.0
    facts = {"seconds_ahead": round(ahead, 1)}
    if abs(ahead) < _NOTICED_SKEW:
        return Finding(_TOPIC, "clock", Severity.OK, "agrees with the store's", facts=facts)
    text = f"{abs(ahead) / 60:.0f} minutes {'ahead of' if ahead > 0 else 'behind'} the store's"
    if abs(ahead) < _REFUSED_SKEW:
        return Finding(
            _TOPIC, "clock", Severity.WARNING, f"{text}; at 15 minutes it refuses requests", _CLOCK, facts
        )
    return Finding(_TOPIC, "clock", Severity.ERROR, f"{text}, which S3 refuses", _CLOCK, facts)

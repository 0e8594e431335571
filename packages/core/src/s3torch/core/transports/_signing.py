"""Signatures of AWS, Version 4, in the headers of a request and without its body.

``Signer`` computes them here, for transports without native code; Version 4A, which is valid in all regions,
and those of ``crt`` are computed by awscrt.
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. botocore signs the same, but
takes longer for it than all the rest of a small request does.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from s3torch.core.errors import TransportError
from s3torch.core.models import SecretText

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from awscrt.auth import AwsSigningConfig

    from s3torch.core.models import BucketEndpoint, Credentials

_ALGORITHM = "AWS4-HMAC-SHA256"
# Parts carry checksums of their own; hashing every upload for the signature would cost more than sending it.
_PAYLOAD = "UNSIGNED-PAYLOAD"
_ALL_REGIONS = "*"
_ALSO_SIGNED = {"host", "content-type", "content-md5"}


class Signer:
    """Signs requests, and keeps the key that it derives for a day, a region and a service."""

    def __init__(self) -> None:
        self._derived: tuple[tuple[str, str, str, str], Callable[[bytes], str]] | None = None

    def sign(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]],
        *,
        endpoint: BucketEndpoint,
        credentials: Credentials,
        now: float | None = None,
    ) -> list[tuple[str, str]]:
        """Returns the headers that a request has to have besides these.

        Args:
            method: The HTTP method.
            target: The quoted path, and after a ``?`` the quoted query, sorted by name.
            headers: What the request has so far, ``Host`` among them.
            endpoint: Where it goes.
            credentials: The keys to sign with.
            now: Seconds since 1970; ``None`` for the clock of this machine.
        """
        if endpoint.signing_region == _ALL_REGIONS:
            return sign_for_all_regions(method, target, headers, endpoint=endpoint, credentials=credentials)
        stamp = _stamp(int(time.time() if now is None else now))
        added = [("x-amz-content-sha256", _PAYLOAD), ("x-amz-date", stamp)]
        if credentials.session_token is not None:
            added.append((endpoint.token_header, credentials.session_token))
        canonical, signed = _canonical_request(method, target, [*headers, *added])
        scope = f"{stamp[:8]}/{endpoint.signing_region}/{endpoint.signing_name}/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{digest}"
        signature = self._seal(credentials, stamp[:8], endpoint)(text.encode())
        authorization = (
            f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={signed}, Signature={signature}"
        )
        return [*added, ("Authorization", SecretText(authorization))]

    def _seal(self, credentials: Credentials, day: str, endpoint: BucketEndpoint) -> Callable[[bytes], str]:
        wanted = (credentials.secret_key, day, endpoint.signing_region, endpoint.signing_name)
        derived = self._derived
        if derived is not None and derived[0] == wanted:
            return derived[1]
        key = f"AWS4{credentials.secret_key}".encode()
        for part in (*wanted[1:], "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        seal = _hmac_sha256(key)
        self._derived = (wanted, seal)
        return seal


@lru_cache(maxsize=1)
def _stamp(second: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))


def _hmac_sha256(key: bytes) -> Callable[[bytes], str]:
    """Returns a function that authenticates messages with a key of up to 64 bytes, see RFC 2104.

    ``hmac.digest`` prepares the key each time, and lets go of the interpreter's lock, which takes many times
    longer to get back among busy threads than the digest of a short message.
    """
    padded = key.ljust(hashlib.sha256().block_size, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def seal(message: bytes) -> str:
        first, second = inner.copy(), outer.copy()
        first.update(message)
        second.update(first.digest())
        return second.hexdigest()

    return seal


def _canonical_request(method: str, target: str, headers: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Returns what is signed, and the names of the headers in it."""
    chosen: dict[str, str] = {}
    for name, value in headers:
        lower = _signed_name(name)
        if lower is not None:
            clean = " ".join(value.split()) if " " in value or "\t" in value else value
            chosen[lower] = f"{chosen[lower]},{clean}" if lower in chosen else clean
    names = sorted(chosen)
    lines = "".join([f"{name}:{chosen[name]}\n" for name in names])
    signed = ";".join(names)
    path, _, query = target.partition("?")
    return f"{method}\n{path}\n{query}\n{lines}\n{signed}\n{_PAYLOAD}", signed


@lru_cache(maxsize=256)
def _signed_name(name: str) -> str | None:
    """Returns the name of a header as it is signed; ``None`` if it is not."""
    lower = name.lower()
    return lower if lower.startswith("x-amz-") or lower in _ALSO_SIGNED else None


def make_signing_config(credentials: Credentials, endpoint: BucketEndpoint) -> AwsSigningConfig:
    """Tells awscrt how requests to an endpoint are signed with these keys."""
    from awscrt.auth import (
        AwsCredentialsProvider,
        AwsSignatureType,
        AwsSignedBodyHeaderType,
        AwsSignedBodyValue,
        AwsSigningAlgorithm,
        AwsSigningConfig,
    )

    everywhere = endpoint.signing_region == "*"
    return AwsSigningConfig(
        algorithm=AwsSigningAlgorithm.V4_ASYMMETRIC if everywhere else AwsSigningAlgorithm.V4,
        signature_type=AwsSignatureType.HTTP_REQUEST_HEADERS,
        service=endpoint.signing_name,
        signed_body_header_type=AwsSignedBodyHeaderType.X_AMZ_CONTENT_SHA_256,
        signed_body_value=AwsSignedBodyValue.UNSIGNED_PAYLOAD,
        region=endpoint.signing_region,
        credentials_provider=AwsCredentialsProvider.new_static(
            credentials.access_key,
            credentials.secret_key,
            # The token of a session with a bucket goes into a header of its own, see session_headers.
            None if endpoint.session_auth else credentials.session_token,
        ),
        use_double_uri_encode=False,
        should_normalize_uri_path=False,
    )


def sign_for_all_regions(
    method: str,
    target: str,
    headers: Sequence[tuple[str, str]],
    *,
    endpoint: BucketEndpoint,
    credentials: Credentials,
) -> list[tuple[str, str]]:
    """Returns the headers that a request to a multi-region access point has to have besides these.

    Raises:
        TransportError: awscrt cannot be used here.
    """
    try:
        from awscrt.auth import aws_sign_request
        from awscrt.http import HttpHeaders, HttpRequest
    except ImportError as exc:
        raise TransportError(
            f"multi-region access points need awscrt, which cannot be imported ({exc})"
        ) from exc
    request = HttpRequest(method, target, HttpHeaders(list(headers)))
    signed = aws_sign_request(request, make_signing_config(credentials, endpoint)).result()
    return list(signed.headers)[len(headers) :]

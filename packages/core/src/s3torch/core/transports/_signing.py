"""Signatures that awscrt computes: those of ``crt``, and Version 4A, which is valid in all regions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.core.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from awscrt.auth import AwsSigningConfig

    from s3torch.core.models import BucketEndpoint, Credentials

ALL_REGIONS = "*"


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

    everywhere = endpoint.signing_region == ALL_REGIONS
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

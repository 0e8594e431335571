"""AWS Signature Version 4A for the ``http`` transport: valid in all regions, computed by awscrt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.core.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from s3torch.core.models import BucketEndpoint, Credentials


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

        from s3torch.core.transports._crt_runtime import make_signing_config
    except ImportError as exc:
        raise TransportError(
            f"multi-region access points need awscrt, which cannot be imported ({exc})"
        ) from exc
    request = HttpRequest(method, target, HttpHeaders(list(headers)))
    signed = aws_sign_request(request, make_signing_config(credentials, endpoint)).result()
    return list(signed.headers)[len(headers) :]

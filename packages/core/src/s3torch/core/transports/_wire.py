"""What of a request goes over the wire, the same for every transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from s3torch.core.requests import common_headers

if TYPE_CHECKING:
    from s3torch.core.models import BucketEndpoint
    from s3torch.core.requests import Request
    from s3torch.core.seam import TransportContext

_WITH_BODY = {"POST", "PUT"}


def request_target(request: Request[Any], endpoint: BucketEndpoint) -> str:
    """Returns path and query of a request, quoted as they are sent and signed."""
    path = endpoint.base_path + quote(request.key, safe="/~")
    return f"{path}?{request.query}" if request.query else path


def request_headers(
    request: Request[Any], context: TransportContext, endpoint: BucketEndpoint, *, body: memoryview | None
) -> list[tuple[str, str]]:
    """Returns the headers of a request, without those of its signature.

    Args:
        request: The request.
        context: What the transport was created with.
        endpoint: Where it goes.
        body: The bytes that are sent with it; ``None`` for none.

    Raises:
        ConfigurationError: The function that gives the customer's key fails, or gives none.
    """
    headers = [("Host", endpoint.host), ("User-Agent", context.user_agent), *request.headers]
    headers += common_headers(context.config, request.operation)
    if request.method in _WITH_BODY:
        headers.append(("Content-Length", str(0 if body is None else len(body))))
    return headers


def body_of(request: Request[Any], body: memoryview | None) -> memoryview | None:
    """Returns what is sent with a request: the bytes of an object, or its own content."""
    if body is None and request.content:
        return memoryview(request.content)
    return body

"""Which operations of S3 were asked for, told from the requests on the wire."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from s3torch.testing.faults import Request

__all__ = ["count_operations"]

PLAIN = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
# With one of these parameters, a request means something else.
SPECIAL = {
    ("GET", "list-type"): "ListObjectsV2",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("PUT", "partNumber"): "UploadPart",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
}


def count_operations(requests: Iterable[Request]) -> Counter[str]:
    """Count requests by operation."""
    return Counter(operation(request) for request in requests)


def operation(request: Request) -> str:
    """Return the name of the operation that a request is for."""
    for (method, parameter), name in SPECIAL.items():
        if request.method == method and parameter in request.query:
            return name
    return PLAIN.get(request.method, request.method)

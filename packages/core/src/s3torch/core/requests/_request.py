"""A request to S3 and its answer, as values, and what of a request goes over the wire."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote, urlencode
from xml.etree import ElementTree as ET

from s3torch.core.errors import (
    ConfigurationError,
    RangeNotSatisfiableError,
    S3Error,
    ServerError,
    error_from_response,
)
from s3torch.core.models import SecretText

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from s3torch.core._config import S3ClientConfig
    from s3torch.core.models import BucketEndpoint
    from s3torch.core.ranges import ByteRange
    from s3torch.core.seam import TransportContext

T = TypeVar("T")

# From here on an answer is an error, and its body is not that of an object.
FIRST_ERROR_STATUS = 300
_ASKS_FOR_CHECKSUMS = ("x-amz-checksum-mode", "ENABLED")
_WITH_BODY = {"POST", "PUT"}
_CONDITIONS = {"If-Match", "If-None-Match"}
# What stores without conditional writes answer.
_REFUSES_CONDITIONS = {400, 501}
# Names, aliases and ARNs of buckets; nothing that would change the URL of a request.
_BUCKET = re.compile(r"[A-Za-z0-9._:/-]+")
# What needs the key of objects that are encrypted with a key of the customer (SSE-C).
_KEYED = {
    "CompleteMultipartUpload",
    "CreateMultipartUpload",
    "GetObject",
    "GetObjectAttributes",
    "HeadObject",
    "ListParts",
    "PutObject",
    "UploadPart",
}
_COPIES = {"CopyObject", "UploadPartCopy"}
# What is no result although its status says so: an error, or a web page of what is between S3 and this side.
# White space may come before the document, to keep the connection alive.
_NO_RESULT = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*\?>\s*)?<(?:Error|(?i:html|!doctype\s+html))[\s/>]"
)
# The digits of the largest size that a machine can count.
_DIGITS = 19


# Named tuples, because they are made in a fraction of the time of frozen dataclasses, once for each request.
class Answer(NamedTuple):
    """What S3 answered to one attempt.

    Attributes:
        status: The HTTP status.
        headers: All headers, with names in lower case.
        body: The body; ``None`` where it was received into the caller's buffer.
        length: How many bytes of the body were received.
        region: The region that the request was signed for; ``None`` where the transport does not tell.
        view: The bytes of the body of an object, wherever they are, for as long as the answer is judged;
            ``None`` where the transport does not show them.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes | None = b""
    length: int = 0
    region: str | None = None
    view: memoryview | None = None

    def __repr__(self) -> str:
        """Shows nothing that may quote the headers of the request."""
        return f"Answer(status={self.status}, length={self.length})"


class Request(NamedTuple, Generic[T]):
    """One S3 request. The bytes of an object that is stored go apart from it, see ``Transport.send``.

    Attributes:
        operation: The S3 operation, as in ``"GetObject"``.
        method: The HTTP method.
        bucket: The bucket.
        key: The key, as it is; empty for operations on a bucket.
        read: Makes the result of an answer without an error, or raises what is wrong with it.
        query: What follows the ``?``, quoted and sorted by name.
        headers: The headers of the operation.
        content: A small body that belongs to the operation, such as the list of parts.
        byte_range: The bytes of the object that are asked for, where it is a range.
        if_match: The ETag that the object has to have; ``headers`` has it, too.
        streams: Whether the body of the answer is that of an object.
        at_most: Bytes of the body after which a transport that ``ends_early`` ends the answer, and takes what
            it has for all of it; for requests without a range.
        recover: Makes the result of an error that means success, or raises it; it is also given what the
            ``body`` of the answer would be: no bytes, or ``None`` with a buffer of the caller.
    """

    operation: str
    method: str
    bucket: str
    key: str
    read: Callable[[Answer], T]
    query: str = ""
    headers: Sequence[tuple[str, str]] = ()
    content: bytes = b""
    byte_range: ByteRange | None = None
    if_match: str | None = None
    streams: bool = False
    at_most: int | None = None
    recover: Callable[[S3Error, bytes | None], T] | None = None

    def result(self, answer: Answer) -> T:
        """Returns what an answer brings.

        Raises:
            S3Error: The answer is an error, has none of what S3 promises, or has other bytes than were
                asked for.
        """
        if answer.status >= FIRST_ERROR_STATUS or (
            not self.streams and answer.body and _NO_RESULT.match(answer.body)
        ):
            raise self.error(answer)
        try:
            return self.read(answer)
        except ServerError as error:
            # With the status of a success it is the answer that is wrong, and the next one may be right.
            error.status = answer.status
            error.request_id = answer.headers.get("x-amz-request-id")
            raise

    def failed(self, error: S3Error, *, into: object = None) -> T:
        """Returns a result where this error means success, as for an empty object; else raises it.

        Args:
            error: What the last attempt has ended with.
            into: The caller's buffer, if there is one.
        """
        self.locate(error)
        if self.recover is None:
            raise error
        return self.recover(error, b"" if into is None else None)

    def locate(self, error: S3Error) -> None:
        """Puts operation, bucket and key into an error that does not tell them."""
        if error.bucket is None:
            error.operation, error.bucket, error.key = self.operation, self.bucket, self.key or None

    def error(self, answer: Answer) -> S3Error:
        """Makes the error that an answer tells."""
        fields = xml_fields(xml_root(answer.body))
        headers = answer.headers
        code = fields.get("Code")
        region = headers.get("x-amz-bucket-region") or fields.get("Region")
        if code is None and region == answer.region:
            # S3 names the region of the bucket also where that is not what is wrong.
            region = None
        error = error_from_response(
            operation=self.operation,
            bucket=self.bucket,
            key=self.key or None,
            status=answer.status,
            code=code,
            message=fields.get("Message"),
            request_id=headers.get("x-amz-request-id"),
            host_id=headers.get("x-amz-id-2"),
            region=region,
            location=headers.get("location") or fields.get("Endpoint"),
        )
        if isinstance(error, RangeNotSatisfiableError) and self.byte_range is not None:
            size = fields.get("ActualObjectSize") or headers.get("content-range", "").rpartition("/")[2]
            if len(size) <= _DIGITS and size.isdecimal() and int(size) > self.byte_range.start:
                return ServerError(
                    f"the store refuses {self.byte_range.header} of an object of {size} bytes",
                    operation=self.operation,
                    bucket=self.bucket,
                    key=self.key,
                    status=answer.status,
                )
        elif type(error) in {S3Error, ServerError} and answer.status in _REFUSES_CONDITIONS:
            for name in _CONDITIONS.intersection(name for name, _ in self.headers):
                error.message += f"; not every store knows {name}, which this request has"
        return error


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
    if _ASKS_FOR_CHECKSUMS in headers and not context.config.verifies:
        headers.remove(_ASKS_FOR_CHECKSUMS)
    headers += common_headers(context.config, request.operation)
    if request.method in _WITH_BODY:
        headers.append(("Content-Length", str(0 if body is None else len(body))))
    return headers


def body_of(request: Request[Any], body: memoryview | None) -> memoryview | None:
    """Returns what is sent with a request: the bytes of an object, or its own content."""
    if body is None and request.content:
        return memoryview(request.content)
    return body


def common_headers(config: S3ClientConfig, operation: str) -> list[tuple[str, str]]:
    """Returns the headers that the settings of a client add to a request of this S3 operation.

    Raises:
        ConfigurationError: The function that gives the customer's key fails, or gives none.
    """
    headers = [("x-amz-request-payer", "requester")] if config.requester_pays else []
    copies = operation in _COPIES
    owner = config.expected_bucket_owner
    if owner is not None:
        headers.append(("x-amz-expected-bucket-owner", owner))
        if copies:
            headers.append(("x-amz-source-expected-bucket-owner", owner))
    if config.sse_customer_key is not None and (copies or operation in _KEYED):
        key = config.customer_key()
        headers += _customer_key_headers("x-amz-", key)
        if copies:
            headers += _customer_key_headers("x-amz-copy-source-", key)
    return headers


def _customer_key_headers(prefix: str, key: bytes) -> list[tuple[str, str]]:
    digest = hashlib.md5(key, usedforsecurity=False).digest()
    name = f"{prefix}server-side-encryption-customer"
    return [
        (f"{name}-algorithm", "AES256"),
        (f"{name}-key", SecretText(base64.b64encode(key).decode())),
        (f"{name}-key-MD5", SecretText(base64.b64encode(digest).decode())),
    ]


def query_of(**parameters: str | int | None) -> str:
    """Quotes and sorts the parameters of a query; ``None`` leaves one out, ``_`` in names means ``-``."""
    given = {name.replace("_", "-"): str(value) for name, value in parameters.items() if value is not None}
    return urlencode(sorted(given.items()), quote_via=quote, safe="")


def xml_fields(element: ET.Element | None) -> dict[str, str]:
    """Reads the texts of the elements directly below one; empty for ``None``."""
    return {} if element is None else {local_name(child): child.text or "" for child in element}


def xml_root(body: bytes | None) -> ET.Element | None:
    """Reads an XML document; ``None`` if it is none."""
    try:
        return ET.fromstring((body or b"").strip())  # noqa: S314 - Expat limits entity expansion.
    except (ET.ParseError, LookupError, ValueError):  # The others are about encodings.
        return None


def result_document(answer: Answer, name: str) -> ET.Element:
    """Reads the document that an operation promises.

    Raises:
        ServerError: The answer has another one, a part of it, or none.
    """
    root = xml_root(answer.body)
    if root is None or local_name(root) != name:
        raise ServerError(f"the answer is no {name}")
    return root


def promised(facts: Mapping[str, str], name: str) -> str:
    """Returns a fact that an answer promises: an element, or a header.

    Raises:
        ServerError: The answer does not have it, so nobody knows what was done.
    """
    value = facts.get(name)
    if not value:
        raise ServerError(f"the answer has no {name}")
    return value


def natural(name: str, value: str) -> int:
    """Reads a size or a count of an answer.

    Raises:
        ServerError: It is none.
    """
    if value.isdigit() and value.isascii() and len(value) <= _DIGITS:
        return int(value)
    raise malformed(name, value)


def malformed(name: str, value: str) -> ServerError:
    """Makes the error for a value of an answer that is not what its name promises."""
    return ServerError(f"the answer has a malformed {name}: {value[:60]!r}")


def same_etag(one: str, other: str) -> bool:
    """Compares ETags: weak ones and those without quotes, as some stores and proxies tell them, as well."""
    return one == other or _bare(one) == _bare(other)


def quoted_etag(etag: str) -> str:
    """Writes an ETag as a condition has it: strong, because a weak one holds for nothing."""
    return etag if etag == "*" else f'"{_bare(etag)}"'


def is_weak(etag: str) -> bool:
    """Whether an ETag promises no equal bytes, so that no condition with it holds."""
    return etag.startswith("W/")


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def local_name(element: ET.Element) -> str:
    """Returns the name of an element without its namespace."""
    return element.tag.rpartition("}")[2]


def check_bucket(bucket: str) -> None:
    """Refuses what cannot be the name of a bucket."""
    if bucket is None or bucket == "":
        raise ConfigurationError(f"Bucket should be specified, got {bucket!r}")
    check_text("bucket", bucket)
    if not _BUCKET.fullmatch(bucket):
        raise ConfigurationError(f"the name of a bucket has letters, digits, dots and dashes, got {bucket!r}")


def check_place(bucket: str, key: str) -> None:
    """Refuses what cannot be the name of a bucket or a key."""
    check_bucket(bucket)
    check_text("key", key)
    if not key:
        raise ConfigurationError("key must not be empty")


def check_text(name: str, value: str) -> None:
    """Refuses what is no text that a request can have."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a string, got {value!r}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise ConfigurationError(f"{name} must be valid Unicode, got {value!r}") from exc


def check_kind(name: str, value: Any, kind: type) -> None:
    """Refuses what is neither ``None`` nor of this class."""
    if value is not None and not isinstance(value, kind):
        raise ConfigurationError(f"{name} must be None or {kind.__name__}, got {value!r}")


def check_version(version_id: str | None) -> None:
    """Refuses what cannot be a version; there is ``None`` for the latest."""
    if version_id is not None and (not isinstance(version_id, str) or not version_id):
        raise ConfigurationError(f"version_id must be None or a non-empty string, got {version_id!r}")

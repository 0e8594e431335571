"""A request to S3 and its answer, as values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar
from urllib.parse import quote, urlencode
from xml.etree import ElementTree as ET

from s3torch.core.errors import S3Error, error_from_response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from s3torch.core.ranges import ByteRange

T = TypeVar("T")

FIRST_ERROR_STATUS = 300
# White space may come before the document, to keep the connection alive.
_ERROR_DOCUMENT = re.compile(rb"\s*(?:<\?xml[^>]*\?>\s*)?<Error[\s>]")


# Named tuples, because they are made in a fraction of the time of frozen dataclasses, once for each request.
class Answer(NamedTuple):
    """What S3 answered to one attempt.

    Attributes:
        status: The HTTP status.
        headers: All headers, with names in lower case.
        body: The body; ``None`` where it was received into the caller's buffer.
        length: How many bytes of the body were received.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes | None = b""
    length: int = 0


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
    recover: Callable[[S3Error, bytes | None], T] | None = None

    def result(self, answer: Answer) -> T:
        """Returns what an answer brings.

        Raises:
            S3Error: The answer is an error, has none of what S3 promises, or has other bytes than were asked
            for.
        """
        if answer.status >= FIRST_ERROR_STATUS or (
            not self.streams and answer.body and _ERROR_DOCUMENT.match(answer.body)
        ):
            raise self.error(answer)
        return self.read(answer)

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
        fields = xml_fields(answer.body)
        headers = answer.headers
        return error_from_response(
            operation=self.operation,
            bucket=self.bucket,
            key=self.key or None,
            status=answer.status,
            code=fields.get("Code"),
            message=fields.get("Message"),
            request_id=headers.get("x-amz-request-id"),
            host_id=headers.get("x-amz-id-2"),
            region=headers.get("x-amz-bucket-region") or fields.get("Region"),
        )


def query_of(**parameters: str | int | None) -> str:
    """Quotes and sorts the parameters of a query; ``None`` leaves one out, ``_`` in names means ``-``."""
    given = {name.replace("_", "-"): str(value) for name, value in parameters.items() if value is not None}
    return urlencode(sorted(given.items()), quote_via=quote, safe="")


def xml_fields(body: bytes | None) -> dict[str, str]:
    """Reads the elements directly below the root of an XML document; empty if it is no XML."""
    root = xml_root(body)
    return {} if root is None else {local_name(child): child.text or "" for child in root}


def xml_root(body: bytes | None) -> ET.Element | None:
    """Reads an XML document; ``None`` if it is none."""
    try:
        return ET.fromstring((body or b"").strip())  # noqa: S314 - Expat limits entity expansion.
    except ET.ParseError:
        return None


def local_name(element: ET.Element) -> str:
    """Returns the name of an element without its namespace."""
    return element.tag.rpartition("}")[2]

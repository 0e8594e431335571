"""What a proxy remembers of the requests that came through it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from s3torch.testing._faults import Side
    from s3torch.testing._wire import Head


@dataclass(frozen=True, slots=True)
class Request:
    """One request and what became of it.

    Attributes:
        method: As in ``GET``.
        path: The path, with ``%xx`` decoded: ``/bucket/key``.
        query: The parameters behind the ``?``; those without a value have the empty one.
        headers: The headers of the request, with names in lower case.
        started: When it came, on the clock of ``time.monotonic``.
        status: The status of the response; ``None`` as long as none has been passed on.
        request_bytes: Bytes of the request's body that were passed on; of chunks, the content only.
        response_bytes: Bytes of the response's body that were passed on.
        response_headers: The headers that were passed on, with names in lower case.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    started: float
    status: int | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    response_headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_head(cls, head: Head) -> Request:
        """Reads the head of a request that has just come."""
        path, _, query = head.words[1].partition("?")
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        return cls(head.words[0], unquote(path), parameters, head.headers, time.monotonic())

    @property
    def bucket(self) -> str:
        """The bucket, where it is addressed in the path; empty for requests about no bucket."""
        return self.path.removeprefix("/").partition("/")[0]

    @property
    def key(self) -> str:
        """The key, where the bucket is addressed in the path; empty for requests about no object."""
        return self.path.removeprefix("/").partition("/")[2]


@dataclass(slots=True)
class Entry:
    """A request that is still changing, written by the proxy alone.

    Everything is noted before the bytes leave. So a test that has its response finds it in the record.
    """

    request: Request
    status: int | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    response_headers: Mapping[str, str] = field(default_factory=dict)

    def count(self, side: Side, size: int) -> None:
        """Notes bytes of a body."""
        if side == "request":
            self.request_bytes += size
        else:
            self.response_bytes += size

    def snapshot(self) -> Request:
        """Returns the request as it is now."""
        return replace(
            self.request,
            status=self.status,
            request_bytes=self.request_bytes,
            response_bytes=self.response_bytes,
            response_headers=self.response_headers,
        )

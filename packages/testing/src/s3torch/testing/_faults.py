"""The ways in which a request can go wrong, the rules that say which requests, and what is known of each."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl, unquote

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import h11

# How often a second a limited body moves on: often enough to look even, seldom enough to cost nothing.
_STEPS_PER_SECOND = 50

Side = Literal["request", "response"]


@dataclass(frozen=True, slots=True)
class Break:
    """Something that happens at one point of a request or a response, see the methods of ``Fault``."""

    kind: Literal["reset", "close", "stall"]
    side: Side
    after: int | None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.after is not None and self.after < 0:
            raise ConfigurationError(f"after must be None or at least 0, got {self.after}")


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that the proxy gives itself; the server does not see the request.

    Attributes:
        status: The HTTP status.
        code: The error code of S3.
        message: The text of the error.
        body: What is sent in place of an error, as XML.
    """

    status: int
    code: str
    message: str
    body: str | None = None


@dataclass(frozen=True, slots=True)
class Flip:
    """A byte of a body that arrives inverted."""

    index: int
    side: Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with a request; made by the class methods, or from the attributes for slow networks.

    Where several faults meet in one request, all of them apply; of two of the same kind, the one that was
    added last.

    Attributes:
        latency: Seconds from the server's response to its first byte that is passed on.
        bandwidth: Bytes per second that a body may pass on one connection, in either direction.
        headers: Headers of the response to replace or to add, or, where the value is ``None``, to remove.
        interruption: See ``reset``, ``truncate``, ``drop`` and ``stall``.
        reply: See ``error`` and ``answer``.
        corruption: See ``flip``.
    """

    latency: float | None = None
    bandwidth: float | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    interruption: Break | None = None
    reply: Reply | None = None
    corruption: Flip | None = None

    def __post_init__(self) -> None:
        if self.latency is not None and self.latency < 0:
            raise ConfigurationError(f"latency must be at least 0 seconds, got {self.latency}")
        if self.bandwidth is not None and self.bandwidth <= 0:
            raise ConfigurationError(f"bandwidth must be above 0 bytes/s, got {self.bandwidth}")

    @classmethod
    def error(cls, status: int, code: str, message: str = "injected by a test") -> Fault:
        """Answers with an error of S3 in place of the server, which does not see the request.

        Args:
            status: The HTTP status.
            code: The error code of S3.
            message: Its text.
        """
        return cls(reply=Reply(status, code, message))

    @classmethod
    def answer(cls, body: str, *, status: int = 200) -> Fault:
        """Answers in place of the server, which does not see the request: for what a test server cannot do.

        Args:
            body: The body, as XML.
            status: The HTTP status.
        """
        return cls(reply=Reply(status, "OK", "", body))

    @classmethod
    def slow_down(cls) -> Fault:
        """Answers 503 ``SlowDown``."""
        return cls.error(503, "SlowDown", "Please reduce your request rate.")

    @classmethod
    def internal_error(cls) -> Fault:
        """Answers 500 ``InternalError``."""
        return cls.error(500, "InternalError", "We encountered an internal error. Please try again.")

    @classmethod
    def expired_token(cls) -> Fault:
        """Answers 400 ``ExpiredToken``."""
        return cls.error(400, "ExpiredToken", "The provided token has expired.")

    @classmethod
    def reset(cls, after: int | None = None, *, side: Side = "response") -> Fault:
        """Resets the connection (RST).

        Args:
            after: Bytes of the body that are passed on first; a body that is not longer passes whole.
                ``None`` breaks before anything is passed on: of a response, the server has done the work,
                and only its answer is lost; of a request, the server sees nothing. A peer that reads more
                slowly than the bytes come may lose some of them with the connection, as in any reset.
            side: Whose bytes these are. Where an upload breaks, its connection to the server does, too.
        """
        return cls(interruption=Break("reset", side, after))

    @classmethod
    def truncate(cls, after: int, *, side: Side = "response") -> Fault:
        """Closes the connection in an orderly way within a body; arguments as in ``reset``."""
        return cls(interruption=Break("close", side, after))

    @classmethod
    def drop(cls, *, side: Side = "request") -> Fault:
        """Closes the connection in an orderly way without an answer.

        Args:
            side: ``"request"`` if the server does not see the request, ``"response"`` if it does, and only
                its answer is lost.
        """
        return cls(interruption=Break("close", side, None))

    @classmethod
    def stall(cls, seconds: float, after: int | None = None, *, side: Side = "response") -> Fault:
        """Lets the connection hang for a while, and then go on.

        Args:
            seconds: How long it hangs; closing the proxy ends it.
            after: Bytes of the body that are passed on first; ``None`` hangs before the headers.
            side: Whose bytes these are.
        """
        return cls(interruption=Break("stall", side, after, seconds))

    @classmethod
    def flip(cls, index: int, *, side: Side = "response") -> Fault:
        """Inverts all bits of one byte of the body.

        Args:
            index: The number of the byte, from 0; nothing happens to shorter bodies.
            side: Whose byte it is.
        """
        return cls(corruption=Flip(index, side))

    @classmethod
    def header(cls, name: str, value: str | None) -> Fault:
        """Replaces or adds a header of the response, or removes it where the value is ``None``."""
        return cls(headers={name: value})

    def __or__(self, other: Fault) -> Fault:
        """Returns both faults in one; ``other`` wins where both say something."""
        given = {
            each.name: value for each in fields(self) if (value := getattr(other, each.name)) is not None
        }
        return replace(self, **{**given, "headers": {**self.headers, **other.headers}})


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

    @property
    def bucket(self) -> str:
        """The bucket, where it is addressed in the path; empty for requests about no bucket."""
        return self.path.removeprefix("/").partition("/")[0]

    @property
    def key(self) -> str:
        """The key, where the bucket is addressed in the path; empty for requests about no object."""
        return self.path.removeprefix("/").partition("/")[2]


@dataclass(slots=True, eq=False)
class FaultRule:
    """A fault together with the requests that it strikes; made by ``FaultProxy.add``.

    Attributes:
        fault: What goes wrong.
        method, key, match, skip, times: Which requests, see ``FaultProxy.add``.
        seen: How many have fitted so far.
    """

    fault: Fault
    method: str | None = None
    key: str | None = None
    match: Callable[[Request], bool] | None = None
    skip: int = 0
    times: int | None = None
    seen: int = 0

    def __post_init__(self) -> None:
        if self.skip < 0 or (self.times is not None and self.times < 1):
            raise ConfigurationError(f"expected skip >= 0 and times >= 1, got {self.skip} and {self.times}")

    @property
    def hits(self) -> int:
        """How many requests it has struck."""
        hits = max(0, self.seen - self.skip)
        return hits if self.times is None else min(hits, self.times)

    def strikes(self, request: Request) -> bool:
        """Whether the fault is for this request; counts it."""
        if not fits(request, self.method, self.key):
            return False
        if self.match is not None and not self.match(request):
            return False
        before = self.hits
        self.seen += 1
        return self.hits > before


def fits(request: Request, method: str | None, key: str | None) -> bool:
    """Whether a request is of this method and has this in its key, where they are given."""
    return (method is None or method.upper() == request.method) and (key is None or key in request.key)


@dataclass(slots=True)
class Exchange:
    """A request under way, what goes wrong with it, and the bytes of both bodies that were passed on.

    Everything is recorded before the bytes leave. So a test that has its response finds it in the record.
    """

    request: Request
    fault: Fault = field(default_factory=Fault)
    passed: dict[Side, int] = field(default_factory=lambda: {"request": 0, "response": 0})

    @classmethod
    def of(cls, head: h11.Request) -> Exchange:
        """Reads the head of a request that has just come."""
        path, _, query = head.target.decode("latin-1").partition("?")
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        method, headers = head.method.decode("latin-1"), decoded(head.headers.raw_items())
        return cls(Request(method, unquote(path), parameters, headers, time.monotonic()))

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Records the head of the response."""
        self.request = replace(self.request, status=status, response_headers=headers)

    def room(self, side: Side) -> int | None:
        """Returns how many bytes of a body pass before something happens to it; ``None`` for any number."""
        limits = []
        if self.fault.bandwidth is not None:
            limits.append(max(1, int(self.fault.bandwidth / _STEPS_PER_SECOND)))
        ahead = self.fault.interruption
        after = ahead.after if ahead is not None and ahead.side == side else None
        if after is not None and after > self.passed[side]:
            limits.append(after - self.passed[side])
        return min(limits, default=None)

    def take(self, side: Side, part: memoryview) -> None:
        """Records a part of a body that passes now, and corrupts it where that is asked for."""
        flip = self.fault.corruption
        if flip is not None and flip.side == side and 0 <= flip.index - self.passed[side] < len(part):
            part[flip.index - self.passed[side]] ^= 0xFF
        self.passed[side] += len(part)

    def snapshot(self) -> Request:
        """Returns the request as it is now."""
        sent, received = self.passed["request"], self.passed["response"]
        return replace(self.request, request_bytes=sent, response_bytes=received)


def decoded(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Returns headers as text, with names in lower case."""
    return {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in headers}

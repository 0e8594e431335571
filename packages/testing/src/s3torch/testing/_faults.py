"""The ways in which a request can go wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        merged = {
            each.name: getattr(self, each.name)
            if getattr(other, each.name) is None
            else getattr(other, each.name)
            for each in fields(self)
        }
        return Fault(**{**merged, "headers": {**self.headers, **other.headers}})

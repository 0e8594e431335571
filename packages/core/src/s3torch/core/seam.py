"""The seam between s3torch and what moves the bytes: what a transport owes.

A request is a value that a function of ``s3torch.core.requests`` returns; a transport moves it and the bytes
that belong to it, and nothing else: it knows no operation of S3. ``S3Client`` is the comfort that users get;
``Transport`` is the minimum that a backend owes. ``s3torch.testing.transport_tests`` tests each of these
rules, and ``s3torch.core.transports`` has what transports share: the decision about retries, worker threads,
the target and the headers of a request.

* **Start and return.** ``send`` starts the work and returns a ``Transfer`` at once. It waits neither for
  memory nor for the network, except where credentials have expired and are refreshed first. Whoever calls
  decides how much is in flight.
* **Threads.** ``send`` may be called from any thread, many at a time. Callbacks of a transfer run on a thread
  of the transport, never on one that calls ``send`` or ``cancel``, unless they are added after the end; they
  must not block.
* **Processes.** A transport belongs to the process that created it. It is never used in a forked child, which
  creates its own, and it is never pickled.
* **Answers.** What came back for an attempt is an ``Answer``, and ``request.result(answer)`` judges it. A
  transport does not read answers itself, except to receive the body of an object into the caller's buffer.
* **Buffers.** ``into`` belongs to the transport until the transfer is done; the transport may fill it in any
  order, and what it holds after a failure means nothing. ``body`` must not change until the transfer is done;
  the transport copies it no more often than its backend needs, and lets go of it when done.
* **Whole or failed.** A transfer succeeds only with exactly the bytes that the response announced
  (``Content-Range`` or ``Content-Length``). Shorter and longer bodies are ``TruncatedError``; a connection
  that breaks within a body may also be ``S3ConnectionError``, as not every backend tells the two apart.
* **Connections.** What comes over a connection while it idles is no answer to the next request: whoever keeps
  connections looks before each use. Interim answers (1xx) are left out. Where the end of a body is told in
  two ways, or in none, the answer is none. The head of an answer has to be whole within ``read_timeout``,
  and bytes have to come as fast as ``low_speed_limit`` says. Over TLS the certificates of
  ``session.ca_bundle`` are trusted where there are some; a server that is not fails the transfer at once,
  with ``CertificateError``.
* **Retries.** ``s3torch.core.transports.decide_retry`` says after each failed attempt whether and when the
  next follows, ``config.attempts`` in all, or whether the credentials are renewed first. Each retry is told
  to ``context.on_retry``. An error tells in ``attempts`` how often the request may have reached the store:
  what is refused then may be what an earlier attempt, whose answer was lost, has done.
* **Errors** are those of ``s3torch.core.errors`` and carry the operation, the bucket and the key. The
  original error is the ``__cause__``. The class is what counts: a native backend may tell 502 and 504 as 500,
  and ``ServiceUnavailable`` as ``SlowDown``. Nothing is raised by starting; the transfer raises. The one
  exception is use after ``close()``, a ``ValueError``.
* **Cancelling** is prompt: once ``cancel()`` has returned, ``into`` is not touched any more, and ``result()``
  of a transfer that was cancelled in time raises ``TransferCancelledError``.
* **Keys** arrive as they are; ``s3torch.core.transports.request_target`` quotes them for the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core._config import S3ClientConfig
    from s3torch.core.errors import S3Error
    from s3torch.core.models import BucketEndpoint, Credentials
    from s3torch.core.requests import Request

__all__ = [
    "BuffersParts",
    "EndsEarly",
    "ResolvedSession",
    "RetryListener",
    "SupportsSendNow",
    "Transfer",
    "Transport",
    "TransportContext",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Transfer(Protocol[T_co]):
    """A piece of work that a transport has started; ``concurrent.futures.Future`` is one."""

    def result(self, timeout: float | None = None) -> T_co:
        """Waits for the end and returns what the work was for.

        Raises:
            S3Error: The work failed.
            TimeoutError: It has not ended after ``timeout`` seconds; it goes on.
        """
        ...

    def done(self) -> bool:
        """Whether the work has ended, well or not."""
        ...

    def cancel(self) -> bool:
        """Asks to stop the work; ``False`` when it has ended already."""
        ...

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Calls ``fn`` with this transfer when the work has ended, at once if it has already."""
        ...


class Transport(Protocol):
    """Moves requests and their bytes. See the rules at the top of this module."""

    def send(
        self, request: Request[T], *, body: memoryview | None = None, into: memoryview | None = None
    ) -> Transfer[T]:
        """Starts a request.

        Args:
            request: What is asked, and how the answer is judged.
            body: The bytes of an object or a part; ``None`` sends ``request.content``.
            into: Writable bytes that take the body of an answer that streams, at least as long as the range.
                ``None`` asks for the body in ``Answer.body``.
        """
        ...

    def close(self) -> None:
        """Cancels what is in flight and frees connections and threads; may be called again."""
        ...


@runtime_checkable
class SupportsSendNow(Protocol):
    """A transport that can send a request on the calling thread, for less than a transfer costs.

    A caller that has to wait for the answer in any case asks it first.
    """

    def send_now(
        self, request: Request[T], *, body: memoryview | None = None, into: memoryview | None = None
    ) -> T:
        """Does what ``send(…).result()`` does."""
        ...


@runtime_checkable
class BuffersParts(Protocol):
    """A transport that holds a part in memory of its own until it is whole, also where ``into`` is given.

    s3torch then has fewer bytes in flight where that costs no throughput.
    """

    buffers_parts: bool


@runtime_checkable
class EndsEarly(Protocol):
    """A transport that can end an answer after ``Request.at_most`` bytes, without receiving the rest.

    s3torch then asks for small objects of unknown size without a range, because many stores tell a checksum
    only with such an answer. A transport that cannot is never given a request with ``at_most``.
    """

    ends_early: bool


class ResolvedSession(Protocol):
    """Where requests go and who signs them, as resolved from the configuration, AWS files and variables."""

    def endpoint(self, bucket: str) -> BucketEndpoint:
        """Returns where the requests for a bucket go; cached.

        Raises:
            ConfigurationError: There is no region or the endpoint is malformed.
        """
        ...

    def credentials(self, bucket: str | None = None) -> Credentials | None:
        """Returns keys that are valid now, refreshed where that is due; ``None`` for anonymous requests.

        Args:
            bucket: What the request is about; directory buckets have keys of their own.

        Raises:
            NoCredentialsError: No provider has any.
        """
        ...

    def renew_credentials(self, stale: Credentials | None, bucket: str | None = None) -> bool:
        """Fetches credentials anew because S3 has refused these as expired.

        Args:
            stale: The keys that were refused.
            bucket: What the request was about.

        Returns:
            Whether there are now others than ``stale``, with which the request may be tried again.
        """
        ...

    @property
    def is_encrypted(self) -> bool:
        """Whether requests go over TLS."""
        ...

    @property
    def ca_bundle(self) -> str | None:
        """The file of certificates to trust with TLS; ``None`` for those of the machine."""
        ...


class RetryListener(Protocol):
    """What a transport tells of its retries."""

    def __call__(
        self,
        *,
        operation: str,
        bucket: str,
        key: str,
        attempt: int,
        error: S3Error,
        seconds: float,
        transfer: Transfer[Any] | None = None,
    ) -> None:
        """Takes note that ``attempt`` (from 1) failed and the next begins in so many seconds.

        Args:
            operation: The S3 operation, as in ``"GetObject"``.
            bucket: The bucket.
            key: The key.
            attempt: Which attempt failed, from 1.
            error: Why.
            seconds: The pause before the next.
            transfer: What the transport has returned, or is about to. Without it a retry may be taken for
                one of another transfer of the same object.
        """
        ...


@dataclass(frozen=True, slots=True)
class TransportContext:
    """What a transport is given when it is created.

    Attributes:
        config: The settings of the client.
        session: Addresses and credentials.
        user_agent: The value of the ``User-Agent`` header.
        on_retry: Told of every attempt that failed and is made again; ``None`` when nobody listens. It is
            called on a thread of the transport and does not block.
    """

    config: S3ClientConfig
    session: ResolvedSession
    user_agent: str
    on_retry: RetryListener | None = None

"""What can go wrong, one class for each decision that a caller can make.

::

    S3Error
    ├── ConfigurationError      (ValueError)         a setting, an argument, a URI or an endpoint is wrong
    │   ├── TransportError      (ImportError)        a transport is unknown or cannot be used here
    │   └── MissingPackageError (ImportError)        what was asked for needs a package that is not installed
    ├── NotFoundError           (FileNotFoundError)  no such object, bucket or upload
    ├── AccessDeniedError       (PermissionError)    S3 refuses these credentials
    │   └── NoCredentialsError                       there are none to sign with
    ├── PreconditionFailedError                      ``If-Match`` or ``If-None-Match`` did not hold
    │   └── ObjectChangedError                       the object was replaced while it was being read
    ├── ConflictError                                a concurrent request won; try again
    ├── RangeNotSatisfiableError                     the range begins behind the end of the object
    ├── WrongRegionError                             the bucket is in ``expected_region``
    ├── ThrottledError                               S3 asks to slow down, to the last attempt
    ├── ServerError                                  S3 failed, or its answer is none, to the last attempt
    ├── S3ConnectionError       (ConnectionError)    no connection, or it broke
    │   └── CertificateError                         the certificate of the server is not trusted
    ├── S3TimeoutError          (TimeoutError)       no answer in time
    ├── ChecksumMismatchError                        the bytes are not those that were stored
    ├── CheckpointFormatError   (ValueError)         the object is not what ``torch.save`` writes
    ├── TruncatedError          (EOFError)           fewer or more bytes came than were announced
    ├── TransferCancelledError                       the transfer was cancelled or aborted by this side
    └── ForkedProcessError      (RuntimeError)       a reader or writer was used in a forked child

Every error can be pickled and can be rebuilt from one string, because ``DataLoader`` and
``torch.distributed`` send errors from process to process. No code compares texts: the class, ``code``
and ``status`` say what happened.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = [
    "AccessDeniedError",
    "CertificateError",
    "CheckpointFormatError",
    "ChecksumMismatchError",
    "ConfigurationError",
    "ConflictError",
    "ForkedProcessError",
    "MissingPackageError",
    "NoCredentialsError",
    "NotFoundError",
    "ObjectChangedError",
    "PreconditionFailedError",
    "RangeNotSatisfiableError",
    "S3ConnectionError",
    "S3Error",
    "S3TimeoutError",
    "ServerError",
    "ThrottledError",
    "TransferCancelledError",
    "TransportError",
    "TruncatedError",
    "WrongRegionError",
    "error_from_response",
]

_HIDDEN = "<secret>"
# What a header, a query or a document says after the name of a secret, and the user of a URL.
_NAMED = re.compile(
    r"""((?:authorization|(?:security|session)[-_]?token|secret[-_]?(?:access[-_]?)?key|customer-key(?:-md5)?)"""
    r"""(?:["'</]*\s*[:=>]|["']\s*,)[:=>\s]*).*""",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(https?://)[^\s@]*:[^\s@]*@", re.IGNORECASE)


class S3Error(Exception):
    """An operation on S3 did not succeed; the base of every error of s3torch.

    Attributes:
        message: What happened, without the facts below.
        operation: The S3 operation, as in ``"GetObject"``.
        bucket: The bucket that it was about.
        key: The key that it was about.
        code: The error code of S3, as in ``"NoSuchKey"``; ``None`` where S3 sent none (a HEAD has no body).
        status: The HTTP status; ``None`` where there was no answer.
        request_id: The id under which S3 has logged the request.
        host_id: The second id (``x-amz-id-2``) that AWS support asks for.
        attempts: How often the request was sent in all; ``None`` where nothing was sent or nobody counted.
        s3_message: The message of S3, word for word; ``None`` where it sent none.
    """

    attempts: int | None = None
    s3_message: str | None = None

    def __init__(
        self,
        message: str = "",
        *,
        operation: str | None = None,
        bucket: str | None = None,
        key: str | None = None,
        code: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        host_id: str | None = None,
    ) -> None:
        # Servers and other libraries quote headers.
        self.message = redacted(message)
        super().__init__(self.message)
        self.operation = operation
        self.bucket = bucket
        self.key = key
        self.code = code
        self.status = status
        self.request_id = request_id
        self.host_id = host_id

    @property
    def has_expired_credentials(self) -> bool:
        """Whether S3 refused the credentials because their time is over."""
        return self.code in _EXPIRED

    def __str__(self) -> str:
        where = self.operation or ""
        if self.bucket is not None:
            where = f"{where} s3://{self.bucket}/{self.key or ''}".strip()
        facts = [str(fact) for fact in (self.code, self.status) if fact is not None]
        if self.attempts is not None and self.attempts > 1:
            facts.append(f"{self.attempts} attempts")
        if self.request_id:
            facts.append(f"request {self.request_id}")
        text = f"{where}: {self.message}" if where else self.message
        return f"{text} [{', '.join(facts)}]" if facts else text

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.message,), self.__dict__)


class ConfigurationError(S3Error, ValueError):
    """A setting, an argument, a URI or an endpoint is wrong; the text says which and what is allowed."""


class TransportError(ConfigurationError, ImportError):
    """A transport is not installed, or something that it needs is missing on this machine."""


class MissingPackageError(ConfigurationError, ImportError):
    """What was asked for needs a package that is not installed; the text says which."""


class NotFoundError(S3Error, FileNotFoundError):
    """The object, the bucket or the multipart upload does not exist."""


class AccessDeniedError(S3Error, PermissionError):
    """S3 refuses the request for these credentials."""


class NoCredentialsError(AccessDeniedError):
    """No credentials were found to sign with."""


class PreconditionFailedError(S3Error):
    """``If-Match`` or ``If-None-Match`` did not hold."""


class ObjectChangedError(PreconditionFailedError):
    """The object was replaced while it was being read."""


class ConflictError(S3Error):
    """A concurrent request on the same object or bucket won; the same request may succeed now."""


class RangeNotSatisfiableError(S3Error):
    """The requested range begins behind the end of the object."""


class WrongRegionError(S3Error):
    """The bucket is in another region.

    Attributes:
        expected_region: The region of the bucket, where S3 told it.
    """

    expected_region: str | None = None


class ThrottledError(S3Error):
    """S3 asked to slow down, to the last attempt."""


class ServerError(S3Error):
    """S3 answered with an internal error, to the last attempt.

    With the status of a success (2xx) it is the answer that is wrong: it lacks what S3 promises, or has a
    malformed value. Whether the store has done what was asked is not known then.
    """


class S3ConnectionError(S3Error, ConnectionError):
    """No connection could be made, or it broke, to the last attempt."""


class CertificateError(S3ConnectionError):
    """The certificate of the server is not trusted; never tried again."""

    @classmethod
    def of(cls, endpoint: str, reason: str) -> CertificateError:
        """Makes the error with the way out.

        Args:
            endpoint: Who was asked.
            reason: What is wrong with the certificate.
        """
        return cls(
            f"certificate verify failed: {endpoint} is not trusted ({reason}); name a file with that of its "
            "authority in S3ClientConfig(ca_bundle=...), AWS_CA_BUNDLE or ca_bundle of the profile"
        )


class S3TimeoutError(S3Error, TimeoutError):
    """There was no answer in time."""


class ChecksumMismatchError(S3Error):
    """The bytes that arrived are not the bytes that were stored."""


class CheckpointFormatError(S3Error, ValueError):
    """The object is not what ``torch.save`` writes, or not all of it."""


class TruncatedError(S3Error, EOFError):
    """The body is shorter or longer than the response announced."""


class TransferCancelledError(S3Error):
    """The transfer was cancelled, or its upload aborted, by this side."""


class ForkedProcessError(S3Error, RuntimeError):
    """An open reader or writer of the parent was used in a forked child."""


_MAX_SHOWN = 200
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}

_BY_CODE: dict[str, tuple[type[S3Error], str]] = {
    "NoSuchKey": (NotFoundError, "no such key"),
    "NoSuchBucket": (NotFoundError, "no such bucket"),
    "NoSuchUpload": (NotFoundError, "no such multipart upload; it was completed or aborted"),
    "NoSuchVersion": (NotFoundError, "no such version"),
    "AccessDenied": (AccessDeniedError, "access denied"),
    "InvalidAccessKeyId": (AccessDeniedError, "the access key is not known"),
    "SignatureDoesNotMatch": (AccessDeniedError, "the signature is wrong; check the secret key"),
    "ExpiredToken": (AccessDeniedError, "the credentials have expired"),
    "InvalidToken": (AccessDeniedError, "the session token is not valid"),
    "TokenRefreshRequired": (AccessDeniedError, "the credentials have expired"),
    "RequestTimeTooSkewed": (AccessDeniedError, "the clock of this machine is wrong"),
    "InvalidObjectState": (AccessDeniedError, "the object is archived and must be restored first"),
    "PreconditionFailed": (PreconditionFailedError, "the precondition does not hold"),
    "ConditionalRequestConflict": (ConflictError, "another request changed the object"),
    "OperationAborted": (ConflictError, "another request is changing the same resource"),
    "InvalidRange": (RangeNotSatisfiableError, "the range begins behind the end of the object"),
    "PermanentRedirect": (WrongRegionError, "the bucket is in another region"),
    "AuthorizationHeaderMalformed": (WrongRegionError, "the signature is for another region, or malformed"),
    "IllegalLocationConstraintException": (WrongRegionError, "the bucket is in another region"),
    "SlowDown": (ThrottledError, "S3 asks to slow down"),
    "Throttling": (ThrottledError, "S3 asks to slow down"),
    "TooManyRequests": (ThrottledError, "S3 asks to slow down"),
    "ServiceUnavailable": (ThrottledError, "S3 is not available for now"),
    "InternalError": (ServerError, "S3 had an internal error"),
    "RequestTimeout": (S3TimeoutError, "S3 did not get the request in time"),
    "BadDigest": (ChecksumMismatchError, "S3 received other bytes than were sent"),
    "XAmzContentChecksumMismatch": (ChecksumMismatchError, "S3 received other bytes than were sent"),
    "InvalidDigest": (ChecksumMismatchError, "S3 received other bytes than were sent"),
}

_BY_STATUS: dict[int, tuple[type[S3Error], str]] = {
    301: (WrongRegionError, "the bucket is in another region"),
    307: (WrongRegionError, "the bucket is in another region"),
    403: (AccessDeniedError, "access denied"),
    404: (NotFoundError, "not found"),
    408: (S3TimeoutError, "S3 did not get the request in time"),
    409: (ConflictError, "another request changed the object"),
    412: (PreconditionFailedError, "the precondition does not hold"),
    416: (RangeNotSatisfiableError, "the range begins behind the end of the object"),
    429: (ThrottledError, "S3 asks to slow down"),
    503: (ThrottledError, "S3 asks to slow down"),
}

# What an answer to a HEAD leaves open, which has no body to tell it.
_HEAD_OPERATIONS = {"HeadBucket", "HeadObject"}
_OF_A_HEAD = {
    400: "the credentials may have expired, or the region or the encryption key may be wrong",
    403: "the keys may be wrong or lack a permission; without that to list, a missing object looks the same",
    404: "the key or the bucket may be missing",
}


def redacted(text: str) -> str:
    """Leaves out what stands behind the names of secret headers, and users and passwords of URLs."""
    return _IN_URL.sub(rf"\1{_HIDDEN}@", _NAMED.sub(rf"\1{_HIDDEN}", text))


def bare_cause(exc: Exception) -> Exception:
    """Returns an exception of another library as the cause of one of ours, with no more than its text.

    Its frames and attributes hold requests with all of their headers, and so do those of its own causes.
    """
    exc.args = (redacted(str(exc)),)
    vars(exc).clear()
    exc.__traceback__ = exc.__cause__ = exc.__context__ = None
    return exc


def error_from_response(
    *,
    operation: str,
    bucket: str,
    key: str | None = None,
    status: int | None = None,
    code: str | None = None,
    message: str | None = None,
    request_id: str | None = None,
    host_id: str | None = None,
    region: str | None = None,
    location: str | None = None,
) -> S3Error:
    """Makes the error for an answer of S3, from its code, and from its status where there is no known code.

    Every transport and the control plane translate through this function, so the same answer is the same
    class everywhere.

    Args:
        operation: The S3 operation, as in ``"GetObject"``.
        bucket: The bucket that was asked.
        key: The key that was asked for, if any.
        status: The HTTP status of the answer.
        code: ``<Code>`` of the answer's body.
        message: ``<Message>`` of the answer's body.
        request_id: Header ``x-amz-request-id``.
        host_id: Header ``x-amz-id-2``.
        region: The region that S3 says the bucket is in (``x-amz-bucket-region``).
        location: Where the answer redirects to.
    """
    cls, text = _BY_CODE.get(code or "", _BY_STATUS.get(status or 0, (S3Error, "")))
    if not text:
        cls, text = (
            (ServerError, "S3 failed") if (status or 0) >= 500 else (S3Error, "S3 refused the request")
        )
        if status is not None and status < 300 and code is None:
            cls, text = ServerError, "the answer is an error or a web page, and no result"
    # S3 names the region in many answers; beside a 400 without a code (a HEAD) it is what was wrong.
    wrong_region = cls is WrongRegionError or (status == 400 and code is None)
    if wrong_region and region:
        cls, text = WrongRegionError, f"the bucket is in region {region}; give that region"
    elif 300 <= (status or 0) < 400 and location:
        text = f"the server redirects to {_shown(location)}: the bucket or the endpoint is elsewhere"
    elif operation in _HEAD_OPERATIONS and code is None and status in _OF_A_HEAD:
        text = f"{text}; S3 gives no reason in the answer to a HEAD: {_OF_A_HEAD[status]}"
    elif message and cls is not NotFoundError:
        text = f"{text}: {message}"
    error = cls(
        text,
        operation=operation,
        bucket=bucket,
        key=key,
        code=code,
        status=status,
        request_id=request_id,
        host_id=host_id,
    )
    if message:
        error.s3_message = redacted(message)
    if isinstance(error, WrongRegionError):
        error.expected_region = region
    return error


def _shown(location: str) -> str:
    """Returns as much of a URL as may be in a text: no query, no user, nothing that does not print."""
    place = location.partition("?")[0].partition("#")[0]
    scheme, separator, rest = place.rpartition("//")
    host, slash, path = rest.partition("/")
    text = f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"[:_MAX_SHOWN]
    return "".join(character if character.isprintable() else "?" for character in text)

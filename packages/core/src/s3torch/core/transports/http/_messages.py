"""Messages of HTTP/1.1: how a request is signed and written, what a response says, and bodies in chunks.

Signatures are those of AWS, Version 4, in the headers of a request and without its body:
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. botocore signs the same, but
takes longer for it than all the rest of a small request does.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from s3torch.core.errors import ConfigurationError, S3ConnectionError
from s3torch.core.models import SecretBytes, SecretText
from s3torch.core.transports._signing import ALL_REGIONS, sign_for_all_regions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from s3torch.core.models import BucketEndpoint, Credentials

MAX_HEAD = 64 * 1024

_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: .*)?")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_WITHOUT_BODY = {204, 304}
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
# Of 2 ** 63, as sizes of files have it.
_LENGTH = re.compile(r"[0-9]{1,19}")
_MAX_LINE = 16 * 1024
_ALGORITHM = "AWS4-HMAC-SHA256"
# Parts carry checksums of their own; hashing every upload for the signature would cost more than sending it.
_UNSIGNED = "UNSIGNED-PAYLOAD"
_ALSO_SIGNED = {"host", "content-type", "content-md5"}


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What a response says before its body.

    Attributes:
        status: The status code.
        headers: All headers; names are in lower case, values of headers that repeat are joined.
        keeps_alive: Whether the connection may be used again after the body.
        may_be_kept: The same where there is no body.
        is_chunked: Whether the body comes in chunks.
        length: How long the body is; ``None`` if it comes in chunks or until the connection ends.
    """

    status: int
    # Not shown, because a server may quote the headers of a request.
    headers: dict[str, str] = field(repr=False)
    keeps_alive: bool
    is_chunked: bool
    length: int | None
    may_be_kept: bool


def request_head(method: str, target: str, headers: Sequence[tuple[str, str]]) -> bytes:
    """Writes the head of a request.

    Raises:
        ConfigurationError: A header could not be told from what follows it.
    """
    lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in headers], "", ""]
    data = SecretBytes("\r\n".join(lines).encode(errors="replace"))
    # One line break too many may look like one more header.
    breaks = len(lines) - 1
    # For an error tracker, which shows what the names of a frame stand for.
    del lines
    clean = data.count(b"\r") == data.count(b"\n") == breaks and not data.count(b"\0") and " " not in target
    if not clean or None in [_lower(name) for name, _ in headers]:
        wrong = next((name for name, value in headers if not _is_header(name, value)), target)
        raise ConfigurationError(f"{wrong!r} cannot be sent: it has characters that HTTP does not allow")
    return data


def response_head(data: bytes) -> ResponseHead:
    """Reads the head of a response, without the empty line at its end.

    Raises:
        S3ConnectionError: This is no head of HTTP/1.1, or it does not tell where the body ends.
    """
    status_line, *lines = _text(data).split("\r\n")
    found = _STATUS_LINE.fullmatch(status_line)
    if found is None:
        raise S3ConnectionError(f"the answer is not HTTP/1.1: {status_line[:60]!r}")
    status = int(found[2])
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        lower = _lower(name)
        if not colon or lower is None:
            raise S3ConnectionError(f"the answer has a malformed header: {line[:60]!r}")
        value = value.strip(" \t")
        headers[lower] = f"{headers[lower]}, {value}" if lower in headers else value
    options = headers.get("connection", "").lower()
    keeps_alive = "close" not in options and (found[1] == "1" or "keep-alive" in options)
    is_chunked = _is_chunked(headers)
    told = _length(headers)
    if told is not None:
        headers["content-length"] = str(told)
    length = 0 if status in _WITHOUT_BODY else None if is_chunked else told
    ends = is_chunked or length is not None
    return ResponseHead(status, headers, keeps_alive and ends, is_chunked, length, may_be_kept=keeps_alive)


@lru_cache(maxsize=256)
def _lower(name: str) -> str | None:
    """Returns the name of a header in lower case; ``None`` if it is none. Names repeat all the time."""
    return name.lower() if _NAME.fullmatch(name) else None


def _is_header(name: str, value: str) -> bool:
    return _NAME.fullmatch(name) is not None and not any(character in value for character in "\r\n\0")


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _is_chunked(headers: dict[str, str]) -> bool:
    coding = headers.get("transfer-encoding", "").lower()
    if coding not in {"", "identity", "chunked"}:
        raise S3ConnectionError(f"the answer has an unknown transfer encoding: {coding[:60]!r}")
    return coding == "chunked"


def _length(headers: dict[str, str]) -> int | None:
    told = headers.get("content-length")
    if told is None:
        return None
    # A length that is told twice in the same way is one; two lengths are none.
    (length, *others) = {part.strip() for part in told.split(",")} if "," in told else (told,)
    if others or not _LENGTH.fullmatch(length):
        raise S3ConnectionError(f"the answer has no usable length: {told[:60]!r}")
    return int(length)


class Signer:
    """Signs requests, and keeps the key that it derives for a day, a region and a service."""

    def __init__(self) -> None:
        self._derived: tuple[tuple[str, str, str, str], Callable[[bytes], str]] | None = None

    def sign(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]],
        *,
        endpoint: BucketEndpoint,
        credentials: Credentials,
        now: float | None = None,
    ) -> list[tuple[str, str]]:
        """Returns the headers that a request has to have besides these.

        Args:
            method: The HTTP method.
            target: The quoted path, and after a ``?`` the quoted query, sorted by name.
            headers: What the request has so far, ``Host`` among them.
            endpoint: Where it goes.
            credentials: The keys to sign with.
            now: Seconds since 1970; ``None`` for the clock of this machine.
        """
        if endpoint.signing_region == ALL_REGIONS:
            return sign_for_all_regions(method, target, headers, endpoint=endpoint, credentials=credentials)
        stamp = _stamp(int(time.time() if now is None else now))
        added = [("x-amz-content-sha256", _UNSIGNED), ("x-amz-date", stamp)]
        if credentials.session_token is not None:
            added.append((endpoint.token_header, credentials.session_token))
        canonical, signed = _canonical_request(method, target, [*headers, *added])
        scope = f"{stamp[:8]}/{endpoint.signing_region}/{endpoint.signing_name}/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{digest}"
        signature = self._seal(credentials, stamp[:8], endpoint)(text.encode())
        authorization = (
            f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={signed}, Signature={signature}"
        )
        return [*added, ("Authorization", SecretText(authorization))]

    def _seal(self, credentials: Credentials, day: str, endpoint: BucketEndpoint) -> Callable[[bytes], str]:
        wanted = (credentials.secret_key, day, endpoint.signing_region, endpoint.signing_name)
        derived = self._derived
        if derived is not None and derived[0] == wanted:
            return derived[1]
        key = f"AWS4{credentials.secret_key}".encode()
        for part in (*wanted[1:], "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        seal = _hmac_sha256(key)
        self._derived = (wanted, seal)
        return seal


@lru_cache(maxsize=1)
def _stamp(second: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))


def _hmac_sha256(key: bytes) -> Callable[[bytes], str]:
    """Returns a function that authenticates messages with a key of up to 64 bytes, see RFC 2104.

    ``hmac.digest`` prepares the key each time, and lets go of the interpreter's lock, which takes many times
    longer to get back among busy threads than the digest of a short message.
    """
    padded = key.ljust(hashlib.sha256().block_size, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def seal(message: bytes) -> str:
        first, second = inner.copy(), outer.copy()
        first.update(message)
        second.update(first.digest())
        return second.hexdigest()

    return seal


def _canonical_request(method: str, target: str, headers: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Returns what is signed, and the names of the headers in it."""
    chosen: dict[str, str] = {}
    for name, value in headers:
        lower = _signed_name(name)
        if lower is not None:
            clean = " ".join(value.split()) if " " in value or "\t" in value else value
            chosen[lower] = f"{chosen[lower]},{clean}" if lower in chosen else clean
    names = sorted(chosen)
    lines = "".join([f"{name}:{chosen[name]}\n" for name in names])
    signed = ";".join(names)
    path, _, query = target.partition("?")
    return f"{method}\n{path}\n{query}\n{lines}\n{signed}\n{_UNSIGNED}", signed


@lru_cache(maxsize=256)
def _signed_name(name: str) -> str | None:
    """Returns the name of a header as it is signed; ``None`` if it is not."""
    lower = name.lower()
    return lower if lower.startswith("x-amz-") or lower in _ALSO_SIGNED else None


class ChunkedDecoder:
    """Takes a body in chunks (RFC 9112, section 7.1) piece by piece, as it comes, and gives what is in them.

    Attributes:
        ended: Whether the last chunk and what follows it were seen.
        rest: What was taken beyond the end.
    """

    def __init__(self) -> None:
        self.ended = False
        self.rest = b""
        self._pending = b""
        # Bytes of this chunk that have not come.
        self._missing = 0
        # What comes next: a "size", "data", the line "break" behind it, or the "trailer".
        self._state = "size"

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Takes the next bytes and gives the content in them.

        Raises:
            S3ConnectionError: These are no chunks.
        """
        self._pending += data
        while not self.ended:
            if self._state == "data":
                piece, self._pending = self._pending[: self._missing], self._pending[self._missing :]
                if not piece:
                    return
                self._missing -= len(piece)
                self._state = "data" if self._missing else "break"
                yield piece
                continue
            line, found, after = self._pending.partition(b"\r\n")
            if not found:
                if len(line) > _MAX_LINE:
                    raise S3ConnectionError("the answer has a chunk whose size has no end")
                return
            self._pending = after
            self._take_line(line)
        self.rest, self._pending = self._pending, b""

    def _take_line(self, line: bytes) -> None:
        if self._state == "trailer":
            self.ended = not line
        elif self._state == "break":
            if line:
                raise S3ConnectionError("the answer has a chunk that is longer than its size")
            self._state = "size"
        else:
            size = _SIZE_LINE.fullmatch(line)
            if size is None:
                raise S3ConnectionError(f"the answer has a chunk with a malformed size: {line[:60]!r}")
            self._missing = int(size[1], 16)
            self._state = "data" if self._missing else "trailer"

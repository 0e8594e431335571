"""Values that S3 tells or is told: what is in a listing, in the head of an object, in a request."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from s3torch.core._put_options import PutOptions
from s3torch.core.errors import ConfigurationError, error_from_response

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from s3torch.core.errors import S3Error

__all__ = [
    "BucketEndpoint",
    "BucketInfo",
    "CompletedPart",
    "Credentials",
    "DeleteFailure",
    "GetResult",
    "HeadObjectResult",
    "ListObjectResult",
    "ListUploadsResult",
    "ListVersionsResult",
    "MultipartUpload",
    "ObjectInfo",
    "ObjectVersion",
    "PutOptions",
    "PutResult",
    "RestoreStatus",
    "S3BucketKeyData",
    "UploadInfo",
]

# What a header can carry, and what only has to be the same on both sides.
_VISIBLE = re.compile(r"[!-~]+")
_LINE = re.compile(r"\S(?:.*\S)?")


@dataclass(frozen=True, slots=True)
class RestoreStatus:
    """How far the restoration of an archived object is.

    Attributes:
        in_progress: True until the restored copy can be read.
        expiry: When the restored copy goes away, in seconds since 1970; ``None`` while in progress.
    """

    in_progress: bool
    expiry: int | None = None


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One entry of a listing.

    Attributes:
        key: The key.
        etag: The ETag with its quotes.
        size: Bytes.
        last_modified: Seconds since 1970.
        storage_class: As in ``"STANDARD"``.
        restore_status: Only for objects that are archived.
    """

    key: str
    etag: str
    size: int
    last_modified: int
    storage_class: str | None = None
    restore_status: RestoreStatus | None = None


@dataclass(frozen=True, slots=True)
class HeadObjectResult:
    """What S3 tells of an object besides its bytes.

    Attributes:
        etag: The ETag with its quotes.
        size: Bytes of the whole object.
        last_modified: Seconds since 1970.
        storage_class: ``None`` for STANDARD, for which S3 leaves the header out.
        restore_status: Only for objects that are archived.
        version_id: The version, in a bucket that keeps versions.
        content_type: The media type that was stored.
        metadata: The user's own metadata (``x-amz-meta-…``), with lower-case names.
        checksums: Checksums of the whole object by algorithm, in base64, where the response has them; those
            with ``-N`` at their end are of the checksums of N parts.
        cache_control: How long caches may keep it.
        content_disposition: What browsers do with it.
        content_encoding: How the bytes are encoded.
        content_language: The language.
        expires: When caches forget it, as it was stored.
        server_side_encryption: How S3 keeps it: ``"AES256"``, ``"aws:kms"`` …; ``None`` for SSE-C.
        kms_key_id: The key of ``aws:kms``.
        tag_count: How many tags it has, where they may be read.
    """

    etag: str
    size: int
    last_modified: int
    storage_class: str | None = None
    restore_status: RestoreStatus | None = None
    version_id: str | None = None
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    checksums: Mapping[str, str] = field(default_factory=dict, hash=False)
    cache_control: str | None = None
    content_disposition: str | None = None
    content_encoding: str | None = None
    content_language: str | None = None
    expires: str | None = None
    server_side_encryption: str | None = None
    kms_key_id: str | None = None
    tag_count: int = 0


@dataclass(frozen=True, slots=True)
class BucketInfo:
    """A bucket, as the listing of buckets tells of it.

    Attributes:
        name: The name.
        created: When it was made, in seconds since 1970; ``None`` where the store does not tell.
    """

    name: str
    created: int | None = None


@dataclass(frozen=True, slots=True)
class ListObjectResult:
    """One page of a listing.

    Attributes:
        object_info: The objects of this page.
        common_prefixes: What stands in for all keys that share it up to the delimiter.
        continuation_token: Where the next page begins; ``None`` after the last one.
    """

    object_info: list[ObjectInfo]
    common_prefixes: list[str]
    continuation_token: str | None = None


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version of an object, or a marker that it was deleted.

    Attributes:
        key: The key.
        version_id: The version; ``"null"`` for what was stored while the bucket kept none.
        is_latest: Whether a request without a version is answered with this one.
        last_modified: Seconds since 1970.
        etag: The ETag with its quotes; empty for a delete marker.
        size: Bytes; 0 for a delete marker.
        storage_class: As in ``"STANDARD"``.
        is_delete_marker: Whether the key was deleted with this version.
    """

    key: str
    version_id: str
    is_latest: bool
    last_modified: int
    etag: str = ""
    size: int = 0
    storage_class: str | None = None
    is_delete_marker: bool = False


@dataclass(frozen=True, slots=True)
class ListVersionsResult:
    """One page of a listing of versions, in the order of keys, and for each key the latest first.

    Attributes:
        versions: The versions and delete markers of this page.
        common_prefixes: What stands in for all keys that share it up to the delimiter.
        next_marker: The key and the version behind which the next page begins; ``None`` after the last one.
    """

    versions: list[ObjectVersion]
    common_prefixes: list[str]
    next_marker: tuple[str, str] | None = None


class S3BucketKeyData(NamedTuple):
    """Where an object is, and what a listing told of it, if there was one."""

    bucket: str
    key: str
    object_info: ObjectInfo | None = None


class _Hidden:
    """Is itself wherever it is used, but not where it is shown: in frames, containers, ``%r``.

    ``str`` and f-strings give the value: signatures and headers are made with them, here and in plugins.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"


class SecretText(_Hidden, str):
    """A key, a token, or a header that carries one."""

    __slots__ = ()


class SecretBytes(_Hidden, bytes):
    """A key in bytes."""


def hidden(text: str | None) -> SecretText | None:
    """Makes a text a secret; there may be none."""
    return None if text is None else SecretText(text)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The keys that requests are signed with; never shown by ``repr``.

    Attributes:
        access_key: The access key id.
        secret_key: The secret access key.
        session_token: Only for temporary credentials.
        expires_at: When they end, with a time zone; ``None`` for keys that do not.
    """

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None

    def __init__(
        self,
        access_key: str,
        secret_key: str,
        session_token: str | None = None,
        expires_at: datetime | None = None,
    ) -> None:
        # First of all, because an error tracker shows what the names of a frame stand for.
        access_key, secret_key, session_token = map(_hide, (access_key, secret_key, session_token))
        object.__setattr__(self, "access_key", access_key)
        object.__setattr__(self, "secret_key", secret_key)
        object.__setattr__(self, "session_token", session_token)
        object.__setattr__(self, "expires_at", expires_at)
        _check_key("access_key", access_key, _VISIBLE)
        _check_key("secret_key", secret_key, _LINE)
        if session_token is not None:
            _check_key("session_token", session_token, _VISIBLE)
        if expires_at is not None and expires_at.utcoffset() is None:
            raise ConfigurationError(f"expires_at needs a time zone, got {expires_at!r}")


def _hide(value: Any) -> Any:
    """Makes a text a secret; of anything else only the type stays."""
    return None if value is None else SecretText(value) if isinstance(value, str) else type(value)


def _check_key(name: str, value: Any, allowed: re.Pattern[str]) -> None:
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a string, got {value and value.__name__}")
    if not allowed.fullmatch(value):
        raise ConfigurationError(
            f"{name} is empty, has leading or trailing white space, or characters that no key has, such as "
            "a line break; it is not shown"
        )


@dataclass(frozen=True, slots=True)
class BucketEndpoint:
    """Where the requests for one bucket go and for whom they are signed.

    Attributes:
        scheme: ``"https"`` or ``"http"``.
        host: The value of the ``Host`` header, with the port unless it is the scheme's own.
        base_path: What stands before the key in the path: ``"/"``, or ``"/bucket/"`` with path style.
        signing_region: The region of the signature; ``"*"`` for a signature of version 4A, which is valid
            in every region, as multi-region access points need it.
        signing_name: The service of the signature: ``"s3"``, ``"s3express"``, ``"s3-outposts"`` ….
        session_auth: Whether the keys are those of a session with this bucket (CreateSession), as directory
            buckets have it.
    """

    scheme: str
    host: str
    base_path: str
    signing_region: str
    signing_name: str = "s3"
    session_auth: bool = False

    @property
    def token_header(self) -> str:
        """The header that carries the session token of temporary keys."""
        return "x-amz-s3session-token" if self.session_auth else "x-amz-security-token"


@dataclass(frozen=True, slots=True)
class GetResult:
    """The answer to a GET.

    Attributes:
        head: What the response tells of the object; ``size`` is that of the whole object.
        length: How many bytes the response had.
        data: The bytes, where the request gave no buffer for them.
    """

    head: HeadObjectResult
    length: int
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class PutResult:
    """What S3 tells of an object that was just stored."""

    etag: str
    version_id: str | None = None


@dataclass(frozen=True, slots=True)
class MultipartUpload:
    """A multipart upload in progress."""

    bucket: str
    key: str
    upload_id: str


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """A multipart upload in progress, as a listing tells of it.

    Attributes:
        key: The key.
        upload_id: The id.
        initiated: When it was begun, in seconds since 1970.
        storage_class: As in ``"STANDARD"``.
    """

    key: str
    upload_id: str
    initiated: int
    storage_class: str | None = None


@dataclass(frozen=True, slots=True)
class ListUploadsResult:
    """One page of the multipart uploads in progress.

    Attributes:
        uploads: The uploads of this page.
        next_marker: The key and the id behind which the next page begins; ``None`` after the last one.
    """

    uploads: list[UploadInfo]
    next_marker: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class CompletedPart:
    """A part that S3 has.

    Attributes:
        number: From 1.
        etag: What CompleteMultipartUpload has to name.
        checksum: The part's checksum in base64, if one was sent.
    """

    number: int
    etag: str
    checksum: str | None = None


@dataclass(frozen=True, slots=True)
class DeleteFailure:
    """A key, or one version of it, that a batch delete could not delete, and why."""

    key: str
    code: str
    message: str
    version_id: str | None = None

    def error(self, bucket: str) -> S3Error:
        """Returns it as an error, of the class that a DELETE of this key alone would raise."""
        return error_from_response(
            operation="DeleteObjects", bucket=bucket, key=self.key, code=self.code, message=self.message
        )

"""How a new object is stored: what an upload or a copy tells S3 besides the bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ENCRYPTIONS", "PutOptions"]

ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse")
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/acl-overview.html#canned-acl
_ACLS = (
    "private",
    "public-read",
    "public-read-write",
    "authenticated-read",
    "aws-exec-read",
    "bucket-owner-read",
    "bucket-owner-full-control",
)
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
_MAX_METADATA_BYTES = 2048
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html
_MAX_TAGS = 10
_MAX_TAG_NAME = 128
_MAX_TAG_VALUE = 256

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TEXT = re.compile(r"[!-~](?:[ -~]*[!-~])?")

_DESCRIPTION = (
    "content_type",
    "metadata",
    "cache_control",
    "content_disposition",
    "content_encoding",
    "content_language",
    "expires",
)
_ENCRYPTION = ("server_side_encryption", "kms_key_id", "kms_encryption_context", "bucket_key")
_CONDITIONS = ("if_none_match", "if_match")


@dataclass(frozen=True, slots=True)
class PutOptions:
    """How a new object is stored; ``None`` is S3's default.

    ``S3ClientConfig(put_options=…)`` sets what all uploads of a client have in common; what a call says comes
    before it.

    Attributes:
        storage_class: As in ``"STANDARD_IA"`` or ``"INTELLIGENT_TIERING"``.
        content_type: The media type.
        metadata: The user's own metadata, up to 2 KB of ASCII.
        if_none_match: ``"*"`` stores the object only if there is none with this key. A store that does not
            know conditions refuses the request or, worse, ignores them, which no answer tells.
        if_match: Stores the object only if the present one has this ETag.
        tags: Up to 10 tags.
        cache_control: How long caches may keep the object.
        content_disposition: What browsers do with it, as in ``'attachment; filename="model.pt"'``.
        content_encoding: How the bytes are encoded, as in ``"gzip"``.
        content_language: The language, as in ``"en"``.
        expires: When caches forget the object, with a time zone.
        acl: A canned ACL, as in ``"bucket-owner-full-control"``.
        server_side_encryption: ``"AES256"``, ``"aws:kms"`` or ``"aws:kms:dsse"``. For keys of your own
            (SSE-C) see ``S3ClientConfig.sse_customer_key``.
        kms_key_id: The key for ``aws:kms``; ``None`` for that of the account.
        kms_encryption_context: The encryption context for ``aws:kms``.
        bucket_key: Whether ``aws:kms`` uses a bucket key, which saves requests to KMS.

    Raises:
        ConfigurationError: A value is none that S3 takes.
    """

    storage_class: str | None = None
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    if_none_match: str | None = None
    if_match: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    cache_control: str | None = None
    content_disposition: str | None = None
    content_encoding: str | None = None
    content_language: str | None = None
    expires: datetime | None = None
    acl: str | None = None
    server_side_encryption: str | None = None
    kms_key_id: str | None = None
    kms_encryption_context: Mapping[str, str] = field(default_factory=dict, hash=False)
    bucket_key: bool | None = None

    def __post_init__(self) -> None:
        for name in ("storage_class", "content_type", "if_match", "cache_control", "content_disposition"):
            _check_text(name, getattr(self, name))
        for name in ("content_encoding", "content_language", "kms_key_id"):
            _check_text(name, getattr(self, name))
        _check_choice("if_none_match", self.if_none_match, ("*",))
        if self.if_none_match is not None and self.if_match is not None:
            raise ConfigurationError("give if_none_match or if_match, not both")
        _check_choice("acl", self.acl, _ACLS)
        _check_metadata(self.metadata)
        _check_tags(self.tags)
        if self.expires is not None and (
            not isinstance(self.expires, datetime) or self.expires.utcoffset() is None
        ):
            raise ConfigurationError(f"expires must be a datetime with a time zone, got {self.expires!r}")
        self._check_encryption()

    def over(self, defaults: PutOptions | None) -> PutOptions:
        """Returns these options, with those of ``defaults`` where these say nothing.

        Metadata and tags are put together, name by name. The four settings of the encryption belong together,
        and so do the two conditions: they are those of one side.
        """
        if defaults is None:
            return self
        chosen: dict[str, Any] = {one.name: getattr(defaults, one.name) for one in fields(self)}
        for group in (_ENCRYPTION, _CONDITIONS):
            if self._says_any(group):
                chosen.update(dict.fromkeys(group))
        said = {name: value for name, value in self._all() if value is not None}
        mine = {**said, "metadata": {**defaults.metadata, **self.metadata}}
        mine["tags"] = {**defaults.tags, **self.tags}
        mine["kms_encryption_context"] = (
            self if self._says_any(_ENCRYPTION) else defaults
        ).kms_encryption_context
        return PutOptions(**{**chosen, **mine})

    @property
    def describes(self) -> bool:
        """Whether these say anything of what a HEAD tells: media type, metadata, caching."""
        return self._says_any(_DESCRIPTION)

    @property
    def placement(self) -> PutOptions:
        """Where and how the bytes are kept, without what describes them: storage class, encryption, ACL."""
        nothing: dict[str, Any] = dict.fromkeys((*_DESCRIPTION, *_CONDITIONS))
        return replace(self, **{**nothing, "metadata": {}, "tags": {}})

    def _all(self) -> Iterable[tuple[str, Any]]:
        return ((one.name, getattr(self, one.name)) for one in fields(self))

    def _says_any(self, names: tuple[str, ...]) -> bool:
        return any(getattr(self, name) not in (None, {}) for name in names)

    def _check_encryption(self) -> None:
        _check_choice("server_side_encryption", self.server_side_encryption, ENCRYPTIONS)
        _check_strings("kms_encryption_context", self.kms_encryption_context)
        if self.bucket_key is not None and not isinstance(self.bucket_key, bool):
            raise ConfigurationError(f"bucket_key must be None or a bool, got {self.bucket_key!r}")
        if self._says_any(_ENCRYPTION[1:]) and not (self.server_side_encryption or "").startswith("aws:kms"):
            raise ConfigurationError(
                "kms_key_id, kms_encryption_context and bucket_key need server_side_encryption='aws:kms'"
            )


def _check_text(name: str, value: object) -> None:
    if value is None:
        return
    # What is no printable ASCII could not be sent in a header, or would end it.
    if not isinstance(value, str) or not _TEXT.fullmatch(value):
        raise ConfigurationError(f"{name} must be None or a string of printable ASCII, got {value!r}")


def _check_choice(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise ConfigurationError(f"{name} must be None or one of {', '.join(allowed)}, got {value!r}")


def _check_strings(name: str, values: Mapping[str, str]) -> None:
    valid = isinstance(values, Mapping) and all(
        isinstance(part, str) for pair in values.items() for part in pair
    )
    if not valid:
        raise ConfigurationError(f"{name} must map strings to strings, got {values!r}")


def _check_metadata(metadata: Mapping[str, str]) -> None:
    _check_strings("metadata", metadata)
    for name, value in metadata.items():
        if not _TOKEN.fullmatch(name):
            raise ConfigurationError(f"metadata has a name that is no HTTP token: {name!r}")
        if value and not _TEXT.fullmatch(value):
            raise ConfigurationError(
                f"metadata {name!r} must be printable ASCII, got {value!r}; encode it, as with json.dumps"
            )
    size = sum(len(name) + len(value) for name, value in metadata.items())
    if size > _MAX_METADATA_BYTES:
        raise ConfigurationError(f"metadata may have {_MAX_METADATA_BYTES} bytes in all, got {size}")


def _check_tags(tags: Mapping[str, str]) -> None:
    _check_strings("tags", tags)
    if len(tags) > _MAX_TAGS:
        raise ConfigurationError(f"an object has at most {_MAX_TAGS} tags, got {len(tags)}")
    for name, value in tags.items():
        if not 0 < len(name) <= _MAX_TAG_NAME or len(value) > _MAX_TAG_VALUE:
            raise ConfigurationError(
                f"the name of a tag has 1 to {_MAX_TAG_NAME} characters and its value up to "
                f"{_MAX_TAG_VALUE}, got {name!r}: {value!r}"
            )

"""Copies within S3: in one request up to 5 GiB, in parts above; and objects made of several others."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from s3torch.core import requests
from s3torch.core.errors import AccessDeniedError, ConfigurationError, S3Error, ServerError
from s3torch.core.models import PutOptions
from s3torch.core.ranges import (
    GIB,
    MAX_PART_SIZE,
    MAX_PARTS,
    MIB,
    MIN_PART_SIZE,
    planned_part_size,
    split_range,
)
from s3torch.core.transfer import run_ahead
from s3torch.core.transfer._upload_parts import etag_of_parts, resolve_ambiguous_commit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from s3torch.core._client import Runtime
    from s3torch.core.models import CompletedPart, HeadObjectResult, MultipartUpload
    from s3torch.core.ranges import ByteRange

# https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html
MAX_SINGLE_COPY = 5 * GIB
_PART = 128 * MIB
_REQUESTS = 16
# Stores without tags answer so.
_NOT_IMPLEMENTED = 501
# What S3 answers for a source of more than 5 GiB, and not for that alone.
_PERHAPS_TOO_LARGE = {"InvalidRequest", "EntityTooLarge"}

_log = logging.getLogger(__name__)


def copy_ranges(size: int, *, part_size: int = _PART) -> list[ByteRange]:
    """Cuts an object into the parts of a copy: as large as asked for, or what 10,000 parts need."""
    return list(split_range(0, size, planned_part_size(size, part_size)))


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of an object that become a part of another, with what the object has to be."""

    bucket: str
    key: str
    byte_range: ByteRange
    version_id: str | None
    etag: str | None


def assemble(
    runtime: Runtime, bucket: str, key: str, pieces: Iterable[Piece], *, options: PutOptions
) -> None:
    """Makes an object of pieces of others, within S3; it appears whole or not at all."""
    upload = runtime.call(requests.create_multipart_upload(bucket, key, options=options))

    def copy(numbered: tuple[int, Piece]) -> CompletedPart:
        number, piece = numbered
        return runtime.call(
            requests.upload_part_copy(
                upload,
                number,
                piece.bucket,
                piece.key,
                byte_range=piece.byte_range,
                version_id=piece.version_id,
                if_match=piece.etag,
            )
        )

    try:
        parts = list(run_ahead(copy, enumerate(pieces, 1), workers=_REQUESTS, name="s3torch-copy"))
        try:
            runtime.call(requests.complete_multipart_upload(upload, parts, options=options))
        except S3Error as error:
            _resolve(runtime, error, bucket, key, options, lambda: etag_of_parts(parts))
    except BaseException as error:
        _abort(runtime, upload, error)
        raise


def _resolve(
    runtime: Runtime,
    error: S3Error,
    bucket: str,
    key: str,
    options: PutOptions,
    etag: Callable[[], str | None],
) -> None:
    """Asks whether the copy is there after all; if not, raises the error."""
    resolve_ambiguous_commit(
        error,
        lambda: runtime.call(requests.head_object(bucket, key)),
        options=options,
        checksum=None,
        etag=etag,
    )


def _abort(runtime: Runtime, upload: MultipartUpload, error: BaseException) -> None:
    try:
        runtime.call(requests.abort_multipart_upload(upload))
    except S3Error as exc:
        error.add_note(
            f"The copy to s3://{upload.bucket}/{upload.key} could not be aborted ({exc}); its parts "
            "stay until a lifecycle rule or a clean-up removes them."
        )


def join_objects(
    runtime: Runtime, sources: Sequence[tuple[str, str]], bucket: str, key: str, *, options: PutOptions
) -> None:
    """Makes an object of others, one after the other; see ``S3Client.join_objects``."""
    heads = list(
        run_ahead(
            lambda source: runtime.call(requests.head_object(*source)),
            sources,
            workers=_REQUESTS,
            name="s3torch-head",
        )
    )
    found = [(source, head) for source, head in zip(sources, heads, strict=True) if head.size]
    for source, head in found[:-1]:
        if head.size < MIN_PART_SIZE:
            text = f"all objects but the last need {MIN_PART_SIZE} bytes to be joined, this has {head.size}"
            raise ConfigurationError(text, bucket=source[0], key=source[1])
    if not found:
        raise ConfigurationError("there is nothing to join: all of the objects are empty")
    pieces = [
        Piece(*source, byte_range, head.version_id, head.etag)
        for source, head in found
        for byte_range in _joined_ranges(head.size)
    ]
    if len(pieces) > MAX_PARTS:
        raise ConfigurationError(f"an object has at most {MAX_PARTS} parts, these would need {len(pieces)}")
    assemble(runtime, bucket, key, pieces, options=options)


def _joined_ranges(size: int) -> Iterator[ByteRange]:
    """Cuts an object into as few parts as there can be, none of them too small for a part in the middle."""
    count = -(-size // MAX_PART_SIZE)
    return split_range(0, size, -(-size // count))


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyJob:
    """One object that is to be copied.

    Attributes:
        src_bucket: The bucket of the source.
        src_key: Its key.
        dst_bucket: The bucket of the copy.
        dst_key: Its key.
        options: How the copy is stored.
        version_id: The version of the source.
        size: How large the source is, where that is known.
        etag: What its ETag has to be, where that is known.
        limit: How much one request copies.
        part_size: How large parts are at least.
    """

    src_bucket: str
    src_key: str
    dst_bucket: str
    dst_key: str
    options: PutOptions
    version_id: str | None = None
    size: int | None = None
    etag: str | None = None
    limit: int = MAX_SINGLE_COPY
    part_size: int = _PART

    def run(self, runtime: Runtime) -> None:
        """Copies the object; it appears whole or not at all.

        A source of unknown size is tried in one request. Where S3 refuses that, a HEAD tells whether the size
        was the reason.
        """
        if self.size is not None and self.size > self.limit:
            self._copy_parts(runtime, self._head(runtime))
            return
        try:
            runtime.call(
                requests.copy_object(
                    self.src_bucket,
                    self.src_key,
                    self.dst_bucket,
                    self.dst_key,
                    options=self.options if self.options != PutOptions() else None,
                    version_id=self.version_id,
                    if_match=self.etag,
                )
            )
        except S3Error as error:
            if self.size is not None or error.code not in _PERHAPS_TOO_LARGE:
                # A copy in one request has the ETag of its source, unless that was made of parts.
                options, source = self.options, lambda: self.etag or self._head(runtime).etag
                _resolve(runtime, error, self.dst_bucket, self.dst_key, options, source)
                return
            head = self._head(runtime)
            if head.size <= self.limit:
                raise
            self._copy_parts(runtime, head)

    def _head(self, runtime: Runtime) -> HeadObjectResult:
        return runtime.call(requests.head_object(self.src_bucket, self.src_key, version_id=self.version_id))

    def _copy_parts(self, runtime: Runtime, head: HeadObjectResult) -> None:
        etag = self.etag or head.etag
        options = self._described(runtime, head)
        ranges = copy_ranges(head.size, part_size=self.part_size)
        pieces = (Piece(self.src_bucket, self.src_key, one, self.version_id, etag) for one in ranges)
        assemble(runtime, self.dst_bucket, self.dst_key, pieces, options=options)

    def _described(self, runtime: Runtime, head: HeadObjectResult) -> PutOptions:
        """Puts what describes the source into the options, as a copy in one request does by itself."""
        options = self.options
        if not options.tags:
            options = replace(options, tags=self._tags(runtime))
        if options.describes:
            return options
        return replace(
            options,
            content_type=head.content_type,
            metadata=head.metadata,
            cache_control=head.cache_control,
            content_disposition=head.content_disposition,
            content_encoding=head.content_encoding,
            content_language=head.content_language,
            expires=_date(head.expires),
        )

    def _tags(self, runtime: Runtime) -> Mapping[str, str]:
        try:
            return runtime.call(
                requests.get_object_tagging(self.src_bucket, self.src_key, version_id=self.version_id)
            )
        except (AccessDeniedError, ServerError) as error:
            if isinstance(error, ServerError) and error.status != _NOT_IMPLEMENTED:
                raise
            _log.warning(
                "The copy of s3://%s/%s is made without tags: %s", self.src_bucket, self.src_key, error
            )
            return {}


def _date(header: str | None) -> datetime | None:
    """Reads a date; what is none (``Expires: 0``) is left out."""
    try:
        return None if header is None else parsedate_to_datetime(header).astimezone(UTC)
    except ValueError:
        return None

"""Conformance of control planes: copies."""

# ruff: noqa: S101 - In tests, assert is how they tell.

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from s3torch.core.errors import NotFoundError, PreconditionFailedError
from s3torch.core.models import PutOptions
from s3torch.core.ranges import MIN_PART_SIZE, ByteRange
from s3torch.testing._calls import PATIENCE
from s3torch.testing._transport_case import TransportCase, get, put

if TYPE_CHECKING:
    from s3torch.testing._calls import TransportCalls

_DESCRIBED = PutOptions(content_type="text/x-test", metadata={"a": "b"}, cache_control="max-age=5")


class CopyTests(TransportCase):
    """What ``ControlPlane.copy_object`` owes."""

    def test_copy(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """The copy has the bytes and what describes them, and what was there is replaced."""
        put(transport, bucket, f"{prefix}from", b"new", options=_DESCRIBED)
        put(transport, bucket, f"{prefix}to", b"old")
        transport.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to")
        result = get(transport, bucket, f"{prefix}to")
        assert result.data == b"new"
        assert (result.head.content_type, result.head.metadata) == ("text/x-test", {"a": "b"})
        assert result.head.cache_control == "max-age=5"

    def test_copy_of_missing_object(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """A missing source is an error."""
        with pytest.raises(NotFoundError) as caught:
            transport.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to")
        assert (caught.value.operation, caught.value.code) == ("CopyObject", "NoSuchKey")

    def test_copy_with_a_place_of_its_own(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """The storage class is that of the options; what describes the content still goes along."""
        put(transport, bucket, f"{prefix}from", options=_DESCRIBED)
        options = PutOptions(storage_class="STANDARD_IA")
        transport.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to", options=options)
        head = transport.head_object(bucket, f"{prefix}to")
        assert head.storage_class == "STANDARD_IA"
        assert (head.content_type, head.metadata) == ("text/x-test", {"a": "b"})

    def test_copy_with_other_metadata(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """Options that describe the content replace all that does."""
        put(transport, bucket, f"{prefix}from", options=_DESCRIBED)
        options = PutOptions(content_type="text/x-other", metadata={"c": "d"})
        transport.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to", options=options)
        head = transport.head_object(bucket, f"{prefix}to")
        assert (head.content_type, head.metadata) == ("text/x-other", {"c": "d"})
        assert head.cache_control is None

    @pytest.mark.parametrize("tags", [{}, {"new": "2"}], ids=["the same tags", "other tags"])
    def test_copy_with_tags(
        self,
        transport: TransportCalls,
        bucket: str,
        prefix: str,
        tags: dict[str, str],
    ) -> None:
        """Tags go along, unless the options have some."""
        put(transport, bucket, f"{prefix}from", options=PutOptions(tags={"old": "1"}))
        transport.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to", options=PutOptions(tags=tags))
        assert transport.object_tags(bucket, f"{prefix}to") == tags or {"old": "1"}

    def test_copy_of_a_version(self, transport: TransportCalls, versioned_bucket: str, prefix: str) -> None:
        """An older version can be copied."""
        first = put(transport, versioned_bucket, f"{prefix}from", b"first")
        put(transport, versioned_bucket, f"{prefix}from", b"second")
        transport.copy_object(
            versioned_bucket,
            f"{prefix}from",
            versioned_bucket,
            f"{prefix}to",
            version_id=first.version_id,
        )
        assert get(transport, versioned_bucket, f"{prefix}to").data == b"first"

    def test_copy_if_match(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """A source that was replaced is not copied."""
        if not self.checks_copy_conditions:
            pytest.skip("the store does not check the conditions of copies")
        known = put(transport, bucket, f"{prefix}from", b"first").etag
        transport.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to", if_match=known)
        put(transport, bucket, f"{prefix}from", b"second")
        with pytest.raises(PreconditionFailedError):
            transport.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to", if_match=known)
        assert get(transport, bucket, f"{prefix}to").data == b"first"


class PartCopyTests(TransportCase):
    """What ``SupportsPartCopy`` owes."""

    def test_parts_of_another_object(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """An upload can be made of ranges of an object."""
        data = bytes(range(256)) * (MIN_PART_SIZE // 256) + b"tail"
        stored = put(transport, bucket, f"{prefix}from ü+", data)
        upload = transport.create_multipart_upload(bucket, f"{prefix}to", options=PutOptions()).result(
            PATIENCE
        )
        ranges = [ByteRange(0, MIN_PART_SIZE), ByteRange(MIN_PART_SIZE, len(data))]
        parts = [
            transport.upload_part_copy(
                upload, number, bucket, f"{prefix}from ü+", byte_range=byte_range, if_match=stored.etag
            )
            for number, byte_range in enumerate(ranges, 1)
        ]
        assert [part.number for part in parts] == [1, 2]
        transport.complete_multipart_upload(upload, parts, options=PutOptions()).result(PATIENCE)
        assert get(transport, bucket, f"{prefix}to").data == data

    def test_part_of_missing_object(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """A missing source is an error about the source."""
        upload = transport.create_multipart_upload(bucket, f"{prefix}to", options=PutOptions()).result(
            PATIENCE
        )
        with pytest.raises(NotFoundError) as caught:
            transport.upload_part_copy(upload, 1, bucket, f"{prefix}from", byte_range=ByteRange(0, 1))
        assert caught.value.operation == "UploadPartCopy"
        transport.abort_multipart_upload(upload).result(PATIENCE)

    def test_part_if_match(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """A source that was replaced gives no part."""
        if not self.checks_copy_conditions:
            pytest.skip("the store does not check the conditions of copies")
        known = put(transport, bucket, f"{prefix}from", b"first").etag
        put(transport, bucket, f"{prefix}from", b"second")
        upload = transport.create_multipart_upload(bucket, f"{prefix}to", options=PutOptions()).result(
            PATIENCE
        )
        with pytest.raises(PreconditionFailedError):
            transport.upload_part_copy(
                upload, 1, bucket, f"{prefix}from", byte_range=ByteRange(0, 5), if_match=known
            )
        transport.abort_multipart_upload(upload).result(PATIENCE)

"""Conformance of transports: objects are read, whatever their keys."""

# ruff: noqa: S101 - In tests, assert is how they tell.

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import pytest

from s3torch.core.errors import (
    NotFoundError,
    PreconditionFailedError,
    RangeNotSatisfiableError,
    TruncatedError,
)
from s3torch.core.models import PutOptions
from s3torch.core.ranges import MIB, ByteRange
from s3torch.testing._transport_case import (
    PATIENCE,
    TransportCase,
    begin_upload,
    checksum_of,
    get,
    put,
    refused,
)

if TYPE_CHECKING:
    from s3torch.testing._transport_case import TransportCalls

_DATA = bytes(range(256)) * 5


class ReadTests(TransportCase):
    """Objects and ranges of them."""

    def test_get_returns_whole_object(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """Without a range and a buffer, all bytes come in the result."""
        put(transport, bucket, key, _DATA)
        result = get(transport, bucket, key)
        assert result.data == _DATA
        assert result.length == result.head.size == len(_DATA)

    def test_get_tells_what_a_head_would(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """The response of a GET spares the HEAD."""
        options = PutOptions(content_type="text/x-test", metadata={"Colour": "blue"})
        before = int(time.time())
        stored = put(transport, bucket, key, _DATA, options=options)
        for how in ({}, {"byte_range": ByteRange(10, 20)}):
            head = get(transport, bucket, key, **how).head
            assert head.etag == stored.etag == f'"{hashlib.md5(_DATA).hexdigest()}"'  # noqa: S324
            assert head.size == len(_DATA)
            assert before - 5 <= head.last_modified <= time.time() + 5
            assert head.content_type == "text/x-test"
            assert head.metadata == {"colour": "blue"}
            assert head.storage_class is None

    def test_get_tells_checksum_of_whole_object(
        self, transport: TransportCalls, bucket: str, key: str
    ) -> None:
        """A checksum that was stored comes with the whole object, and never with a range of it."""
        if not self.verifies_checksums:
            pytest.skip("the store keeps no checksums")
        algorithm, checksum = checksum_of(_DATA)
        put(transport, bucket, key, _DATA, checksum=(algorithm, checksum))
        assert get(transport, bucket, key).head.checksums[algorithm] == checksum
        ranged = get(transport, bucket, key, byte_range=ByteRange(0, 10))
        assert ranged.head.checksums.get(algorithm) in {None, checksum}

    @pytest.mark.parametrize(
        ("start", "stop"),
        [(0, 1), (0, 1280), (3, 300), (1279, 1280), (1000, 5000), (0, 9999)],
    )
    def test_get_returns_range(
        self, transport: TransportCalls, bucket: str, key: str, start: int, stop: int
    ) -> None:
        """A range is half open and ends at the end of the object at the latest."""
        put(transport, bucket, key, _DATA)
        result = get(transport, bucket, key, byte_range=ByteRange(start, stop))
        assert result.data == _DATA[start:stop]
        assert result.length == len(_DATA[start:stop])
        assert result.head.size == len(_DATA)

    @pytest.mark.parametrize(("start", "stop"), [(1280, 1281), (5000, 6000)])
    def test_get_range_behind_the_end(
        self, transport: TransportCalls, bucket: str, key: str, start: int, stop: int
    ) -> None:
        """A range that begins at or behind the end cannot be satisfied."""
        put(transport, bucket, key, _DATA)
        with refused(
            RangeNotSatisfiableError,
            operation="GetObject",
            bucket=bucket,
            key=key,
            code="InvalidRange",
            status=416,
        ):
            get(transport, bucket, key, byte_range=ByteRange(start, stop))

    def test_get_fills_buffer(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """With a buffer, the bytes go there and only there."""
        put(transport, bucket, key, _DATA)
        buffer = bytearray(len(_DATA) + 20)
        into = memoryview(buffer)[10:-10]
        result = get(transport, bucket, key, into=into)
        assert result.data is None
        assert result.length == len(_DATA)
        assert buffer == bytes(10) + _DATA + bytes(10)

    def test_get_fills_buffer_with_range(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """The first byte of the range is the first byte of the buffer."""
        put(transport, bucket, key, _DATA)
        buffer = bytearray(300)
        result = get(transport, bucket, key, byte_range=ByteRange(1000, 1300), into=memoryview(buffer))
        assert (result.data, result.length) == (None, 280)
        assert buffer[:280] == _DATA[1000:]

    def test_get_fills_buffer_with_many_pieces(
        self, transport: TransportCalls, bucket: str, key: str
    ) -> None:
        """An object of several megabytes arrives whole and in order."""
        data = _DATA * (6 * MIB // len(_DATA))
        put(transport, bucket, key, data)
        buffer = bytearray(len(data))
        assert get(transport, bucket, key, into=memoryview(buffer)).length == len(data)
        assert buffer == data
        half = len(data) // 2
        ranged = ByteRange(half, len(data))
        get(transport, bucket, key, byte_range=ranged, into=memoryview(buffer)[: len(data) - half])
        assert buffer[: len(data) - half] == data[half:]

    def test_get_object_longer_than_buffer(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """A body that does not fit is an error, never a part of the object."""
        put(transport, bucket, key, _DATA)
        with pytest.raises(TruncatedError):
            get(transport, bucket, key, into=memoryview(bytearray(100)))

    def test_get_empty_object(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """No bytes are no error, with a range that begins at 0 neither."""
        put(transport, bucket, key, b"")
        for byte_range in (None, ByteRange(0, 1), ByteRange(0, 8 * MIB)):
            result = get(transport, bucket, key, byte_range=byte_range)
            assert (result.data, result.length, result.head.size) == (b"", 0, 0)
            into = memoryview(bytearray(8))
            result = get(transport, bucket, key, byte_range=byte_range, into=into)
            assert (result.data, result.length, result.head.size) == (None, 0, 0)

    def test_get_range_behind_the_start_of_empty_object(
        self, transport: TransportCalls, bucket: str, key: str
    ) -> None:
        """An object without bytes ends at 0."""
        put(transport, bucket, key, b"")
        with pytest.raises(RangeNotSatisfiableError):
            get(transport, bucket, key, byte_range=ByteRange(1, 2))

    def test_get_if_match(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """The object is read only while it has the ETag that was asked for."""
        etag = put(transport, bucket, key, _DATA).etag
        assert get(transport, bucket, key, if_match=etag).data == _DATA
        put(transport, bucket, key, b"other")
        for byte_range in (None, ByteRange(0, 3)):
            with refused(
                PreconditionFailedError,
                operation="GetObject",
                bucket=bucket,
                key=key,
                code="PreconditionFailed",
                status=412,
            ):
                get(transport, bucket, key, if_match=etag, byte_range=byte_range)

    def test_get_version(self, transport: TransportCalls, versioned_bucket: str, key: str) -> None:
        """An older version can still be read."""
        first = put(transport, versioned_bucket, key, b"first")
        second = put(transport, versioned_bucket, key, b"second")
        assert first.version_id is not None
        assert first.version_id != second.version_id
        result = get(transport, versioned_bucket, key, version_id=first.version_id)
        assert (result.data, result.head.version_id) == (b"first", first.version_id)
        assert get(transport, versioned_bucket, key).head.version_id == second.version_id

    def test_get_missing_key(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """A missing object is told from a missing bucket."""
        for byte_range in (None, ByteRange(0, 10)):
            with refused(
                NotFoundError,
                operation="GetObject",
                bucket=bucket,
                key=key,
                code="NoSuchKey",
                status=404,
            ):
                get(transport, bucket, key, byte_range=byte_range)

    def test_get_from_missing_bucket(self, transport: TransportCalls, key: str) -> None:
        """A missing bucket is told from a missing object."""
        with refused(
            NotFoundError,
            operation="GetObject",
            bucket="s3torch-no-such-bucket",
            key=key,
            code="NoSuchBucket",
            status=404,
        ):
            get(transport, "s3torch-no-such-bucket", key)


AWKWARD_KEYS = (
    "a b",
    " leading and trailing ",
    "plus+plus",
    "percent%percent%20%2F%25",
    "question?mark=1&and#hash",
    "double//slash",
    "/leading/slash",
    "trailing/slash/",
    "dot/./dot",
    "dots/../dots",
    "quote'quote\"quote`",
    "<xml>&amp;</xml>",
    "semi;colon:comma,at@equal=dollar$",
    "star*(bracket)[square]{curly}|pipe^caret~tilde!",
    "back\\slash",
    "tab\tkey",
    "line\nbreak",
    "umlaut-ü-combined-u\u0308",
    "日本語/ключ/🔥",
    "n" * 1024,
    "/".join(["ü" * 63] * 8) + "/" + "x" * 8,
)
"""Keys that S3 takes and that are easily spoilt on the way; the last two have 1,024 bytes."""


class KeyTests(TransportCase):
    """Every key that S3 takes arrives as it is."""

    @pytest.mark.parametrize("awkward", AWKWARD_KEYS, ids=lambda key: repr(key[:24]))
    def test_key_through_everything(self, transport: TransportCalls, bucket: str, awkward: str) -> None:
        """The key is the same in every operation."""
        if awkward in self.unsupported_keys:
            pytest.skip("the store does not keep this key as it is")
        data = awkward.encode()
        put(transport, bucket, awkward, data)
        assert get(transport, bucket, awkward).data == data
        assert transport.head_object(bucket, awkward).size == len(data)
        listed = transport.list_objects(bucket, prefix=awkward).object_info
        assert [info.key for info in listed] == [awkward]
        transport.copy_object(bucket, awkward, bucket, "copied")
        assert get(transport, bucket, "copied").data == data
        transport.delete_object(bucket, awkward)
        with pytest.raises(NotFoundError):
            get(transport, bucket, awkward)
        upload = begin_upload(transport, bucket, awkward)
        part = transport.upload_part(upload, 1, memoryview(data), checksum=checksum_of(data))
        transport.complete_multipart_upload(
            upload, [part.result(PATIENCE)], options=PutOptions(), checksum=checksum_of(data)
        ).result(PATIENCE)
        assert get(transport, bucket, awkward).data == data
        assert transport.delete_objects(bucket, [awkward, "copied"]) == []
        assert transport.list_objects(bucket, prefix=awkward).object_info == []

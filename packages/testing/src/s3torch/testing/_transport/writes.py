"""Conformance of transports: objects and multipart uploads are written."""

# ruff: noqa: S101 - In tests, assert is how they tell.

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from s3torch.core import requests
from s3torch.core.errors import ChecksumMismatchError, NotFoundError, PreconditionFailedError
from s3torch.core.models import MultipartUpload, PutOptions
from s3torch.core.ranges import MIN_PART_SIZE, ByteRange
from s3torch.core.requests import same_etag
from s3torch.testing._transport.case import (
    NOWHERE,
    PATIENCE,
    TransportCase,
    begin_upload,
    checksum_of,
    complete,
    get,
    put,
    refused,
    send_part,
)
from s3torch.testing.scripted import ScriptedAnswer

if TYPE_CHECKING:
    from s3torch.core.models import UploadInfo
    from s3torch.core.requests import StoredPart
    from s3torch.testing._transport.case import Script, TransportCalls

_NEW = PutOptions(if_none_match="*")


class PutTests(TransportCase):
    """Objects of one request."""

    @pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
    def test_put_stores_all_bytes(self, transport: TransportCalls, bucket: str, key: str, size: int) -> None:
        data = bytes(range(251)) * (size // 251 + 1)
        put(transport, bucket, key, data[:size])
        assert get(transport, bucket, key).data == data[:size]

    def test_put_takes_any_view(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """The body may be a writable buffer, or a piece of one."""
        data = bytearray(b"0123456789" * 200_000)
        body = memoryview(data)[5:-5]
        transport.put(bucket, key, body).result(PATIENCE)
        assert get(transport, bucket, key).data == bytes(body)

    def test_put_replaces(self, transport: TransportCalls, bucket: str, key: str) -> None:
        first = put(transport, bucket, key, b"first")
        second = put(transport, bucket, key, b"second")
        result = get(transport, bucket, key)
        assert (result.data, result.head.etag) == (b"second", second.etag)
        assert first.etag != second.etag

    def test_put_stores_as_options_say(self, transport: TransportCalls, bucket: str, key: str) -> None:
        options = PutOptions("STANDARD_IA", "image/x-test", {"one": "1", "two": "2 = 2"})
        put(transport, bucket, key, options=options)
        head = transport.head_object(bucket, key)
        assert head.storage_class == "STANDARD_IA"
        assert head.content_type == "image/x-test"
        assert head.metadata == {"one": "1", "two": "2 = 2"}

    def test_put_keeps_description(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """What browsers and caches ask for comes back as it was; a multipart upload keeps it, too."""
        options = PutOptions(
            cache_control="max-age=5",
            content_disposition='attachment; filename="x y"',
            content_encoding="gzip",
            content_language="en",
            expires=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
        )
        put(transport, bucket, key, options=options)
        upload = begin_upload(transport, bucket, f"{key}-parts", options=options)
        complete(transport, upload, [send_part(transport, upload, b"x")], b"x", options=options)
        for stored in (key, f"{key}-parts"):
            head = transport.head_object(bucket, stored)
            assert head.cache_control == "max-age=5"
            assert head.content_disposition == 'attachment; filename="x y"'
            assert head.content_encoding == "gzip"
            assert head.content_language == "en"
            assert head.expires == "Wed, 02 Jan 2030 03:04:05 GMT"

    def test_put_with_tags(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """Tags are kept, with all characters that S3 allows in them."""
        tags = {"plain": "text", "a b": "c+d=e/f@g", "none": ""}
        put(transport, bucket, key, options=PutOptions(tags=tags))
        assert transport.object_tags(bucket, key) == tags

    def test_put_with_encryption(self, transport: TransportCalls, bucket: str, key: str) -> None:
        put(transport, bucket, key, options=PutOptions(server_side_encryption="AES256"))
        head = transport.head_object(bucket, key)
        assert head.server_side_encryption == "AES256"
        assert get(transport, bucket, key).data == b"data"

    @pytest.mark.parametrize("algorithm", ["CRC64NVME", "CRC32C", "CRC32"])
    @pytest.mark.parametrize("size", [0, 100, 2_000_000])
    def test_put_with_checksum(
        self, transport: TransportCalls, bucket: str, key: str, algorithm: str, size: int
    ) -> None:
        data = bytes(size)
        put(transport, bucket, key, data, checksum=checksum_of(data, algorithm))
        assert get(transport, bucket, key).data == data
        if not self.verifies_checksums:
            return
        wrong = checksum_of(data + b"x", algorithm)
        with pytest.raises(ChecksumMismatchError) as caught:
            put(transport, bucket, key, data, checksum=wrong)
        assert (caught.value.status, caught.value.key) == (400, key)

    def test_no_checksum_where_they_are_off(self, script: Script) -> None:
        """A store that knows none is sent none, and asked for none, also not in a trailer."""
        script.server.will(*[ScriptedAnswer()] * 3)
        transport = script.connect(checksum_algorithm="off")
        transport.put("bucket", "key", memoryview(b"data")).result(PATIENCE)
        transport.get("bucket", "key").result(PATIENCE)
        transport.send(requests.delete_object("bucket", "key")).result(PATIENCE)
        names = {name for told in script.server.requests for name in told.headers}
        assert not [name for name in names if "checksum" in name or "trailer" in name]

    def test_wrong_checksum_replaces_nothing(self, transport: TransportCalls, bucket: str, key: str) -> None:
        if not self.verifies_checksums:
            pytest.skip("the store does not verify checksums")
        put(transport, bucket, key, b"old")
        with pytest.raises(ChecksumMismatchError):
            put(transport, bucket, key, b"new", checksum=checksum_of(b"other"))
        assert get(transport, bucket, key).data == b"old"

    def test_put_if_none_match(self, transport: TransportCalls, bucket: str, key: str) -> None:
        put(transport, bucket, key, b"first", options=_NEW)
        with refused("PreconditionFailed", "PutObject", bucket, key):
            put(transport, bucket, key, b"second", options=_NEW)
        assert get(transport, bucket, key).data == b"first"

    def test_put_if_match(self, transport: TransportCalls, bucket: str, key: str) -> None:
        known = put(transport, bucket, key, b"first").etag
        put(transport, bucket, key, b"second", options=PutOptions(if_match=known))
        with pytest.raises(PreconditionFailedError):
            put(transport, bucket, key, b"third", options=PutOptions(if_match=known))
        assert get(transport, bucket, key).data == b"second"

    def test_put_into_missing_bucket(self, transport: TransportCalls, key: str) -> None:
        """A bucket is never made by the way."""
        with refused("NoSuchBucket", "PutObject", NOWHERE, key):
            put(transport, NOWHERE, key)


class MultipartTests(TransportCase):
    """Objects of many requests."""

    def test_multipart_in_any_order(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """The object is its parts in the order of their numbers, with the options of the start."""
        bodies = [bytes([number]) * MIN_PART_SIZE for number in (1, 2)] + [b"end"]
        options = PutOptions(content_type="text/x-test", metadata={"a": "b"})
        upload = begin_upload(transport, bucket, key, options=options)
        transfers = {
            number: transport.upload_part(upload, number, memoryview(body), checksum=checksum_of(body))
            for number, body in reversed([*enumerate(bodies, 1)])
        }
        parts = [transfers[number].result(PATIENCE) for number in sorted(transfers)]
        assert [part.number for part in parts] == [1, 2, 3]
        assert [part.checksum for part in parts] == [checksum_of(body)[1] for body in bodies]
        whole = b"".join(bodies)
        done = complete(transport, upload, parts, whole, options=options)
        result = get(transport, bucket, key)
        assert result.data == whole
        assert result.head.etag == done.etag
        assert result.head.content_type == "text/x-test"
        assert result.head.metadata == {"a": "b"}

    def test_multipart_without_checksums(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """Checksums may be left out, for stores that know none."""
        upload = begin_upload(transport, bucket, key, None)
        part = transport.upload_part(upload, 1, memoryview(b"only")).result(PATIENCE)
        assert part.checksum is None
        complete(transport, upload, [part])
        assert get(transport, bucket, key).data == b"only"

    def test_multipart_shows_nothing_before(self, transport: TransportCalls, bucket: str, key: str) -> None:
        put(transport, bucket, key, b"old")
        upload = begin_upload(transport, bucket, key)
        part = send_part(transport, upload, b"new")
        assert get(transport, bucket, key).data == b"old"
        complete(transport, upload, [part], b"new")
        assert get(transport, bucket, key).data == b"new"

    def test_multipart_wrong_checksum_of_part(self, transport: TransportCalls, bucket: str, key: str) -> None:
        if not self.verifies_checksums:
            pytest.skip("the store does not verify checksums")
        upload = begin_upload(transport, bucket, key)
        transfer = transport.upload_part(upload, 1, memoryview(b"part"), checksum=checksum_of(b"other"))
        with pytest.raises(ChecksumMismatchError):
            transfer.result(PATIENCE)
        transport.abort_multipart_upload(upload).result(PATIENCE)

    def test_multipart_condition(self, transport: TransportCalls, bucket: str, key: str) -> None:
        upload = begin_upload(transport, bucket, key, options=_NEW)
        part = send_part(transport, upload, b"mine")
        put(transport, bucket, key, b"theirs")
        with refused("PreconditionFailed", "CompleteMultipartUpload", bucket, key):
            complete(transport, upload, [part], b"mine", options=_NEW)
        assert get(transport, bucket, key).data == b"theirs"
        transport.abort_multipart_upload(upload).result(PATIENCE)

    def test_multipart_abort_leaves_nothing(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """After an abort there is neither an object nor an upload; a second abort is no error."""
        upload = begin_upload(transport, bucket, key)
        part = send_part(transport, upload, b"part")
        for _ in range(2):
            assert transport.abort_multipart_upload(upload).result(PATIENCE) is None
        with pytest.raises(NotFoundError):
            get(transport, bucket, key)
        if not self.forgets_aborted_uploads:
            return
        with refused("NoSuchUpload", "UploadPart", bucket, key):
            send_part(transport, upload, b"part")
        with refused("NoSuchUpload", "CompleteMultipartUpload", bucket, key):
            complete(transport, upload, [part], b"part")


class PartCopyTests(TransportCase):
    """Parts that are bytes of another object."""

    def test_parts_of_another_object(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        data = bytes(range(256)) * (MIN_PART_SIZE // 256) + b"tail"
        stored = put(transport, bucket, f"{prefix}from ü+", data)
        upload = begin_upload(transport, bucket, f"{prefix}to", None)
        ranges = [ByteRange(0, MIN_PART_SIZE), ByteRange(MIN_PART_SIZE, len(data))]
        parts = [
            transport.upload_part_copy(
                upload, number, bucket, f"{prefix}from ü+", byte_range=byte_range, if_match=stored.etag
            )
            for number, byte_range in enumerate(ranges, 1)
        ]
        assert [part.number for part in parts] == [1, 2]
        complete(transport, upload, parts)
        assert get(transport, bucket, f"{prefix}to").data == data

    def test_part_of_missing_object(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        upload = begin_upload(transport, bucket, f"{prefix}to", None)
        with pytest.raises(NotFoundError) as caught:
            transport.upload_part_copy(upload, 1, bucket, f"{prefix}from", byte_range=ByteRange(0, 1))
        assert caught.value.operation == "UploadPartCopy"
        transport.abort_multipart_upload(upload).result(PATIENCE)

    def test_part_if_match(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        if not self.checks_copy_conditions:
            pytest.skip("the store does not check the conditions of copies")
        known = put(transport, bucket, f"{prefix}from", b"first").etag
        put(transport, bucket, f"{prefix}from", b"second")
        upload = begin_upload(transport, bucket, f"{prefix}to", None)
        with pytest.raises(PreconditionFailedError):
            transport.upload_part_copy(
                upload, 1, bucket, f"{prefix}from", byte_range=ByteRange(0, 5), if_match=known
            )
        transport.abort_multipart_upload(upload).result(PATIENCE)


class UploadListingTests(TransportCase):
    """Multipart uploads in progress."""

    def test_uploads_in_progress(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        awkward = "ü +%20/b" if self.quotes_keys_of_uploads else "ü /b"
        begun = [begin_upload(transport, bucket, f"{prefix}{name}") for name in ("a", "a", awkward)]
        told: list[UploadInfo] = []
        marker = None
        for _ in begun:
            page = transport.list_multipart_uploads(bucket, prefix=prefix, max_uploads=2, marker=marker)
            told += page.uploads
            marker = page.next_marker
            if marker is None:
                break
        assert marker is None
        assert {MultipartUpload(bucket, one.key, one.upload_id) for one in told} == set(begun)
        assert len(told) == len(begun)
        if self.tells_upload_times:
            assert all(abs(one.initiated - time.time()) < PATIENCE for one in told)
        for upload in begun:
            transport.abort_multipart_upload(upload).result(PATIENCE)
        assert transport.list_multipart_uploads(bucket, prefix=prefix).uploads == []

    def test_parts_of_an_upload(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        upload = begin_upload(transport, bucket, f"{prefix}a")
        bodies = {3: b"three", 1: b"one", 7: b"seven!!"}
        sent = {
            number: transport.upload_part(upload, number, memoryview(body), checksum=checksum_of(body))
            for number, body in bodies.items()
        }
        etags = {number: part.result(PATIENCE).etag for number, part in sent.items()}
        told: list[StoredPart] = []
        marker = None
        for _ in bodies:
            page, marker = transport.call(requests.list_parts(upload, max_parts=2, marker=marker))
            told += page
            if marker is None:
                break
        assert [part.number for part in told] == [1, 3, 7]
        for part in told:
            assert part.size == len(bodies[part.number])
            assert same_etag(part.etag, etags[part.number])
            assert set(part.checksums.items()) <= {checksum_of(bodies[part.number])}
        transport.abort_multipart_upload(upload).result(PATIENCE)
        with refused("NoSuchUpload", "ListParts", bucket, upload.key):
            transport.call(requests.list_parts(upload))

    def test_uploads_in_missing_bucket(self, transport: TransportCalls) -> None:
        with refused("NoSuchBucket", "ListMultipartUploads", NOWHERE):
            transport.list_multipart_uploads(NOWHERE)

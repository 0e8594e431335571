"""The conformance suite of transports: it demands every rule of ``s3torch.core.seam`` that can be tested.

The author of a transport plugin subclasses ``TransportTests`` in a test module and overrides
``create_transport`` and the fixtures ``transport_context`` and ``bucket``; ``pytest`` does the rest::

    import pytest

    pytest.register_assert_rewrite("s3torch.testing")

    from s3torch.testing.transport_tests import TransportTests


    class TestMyTransport(TransportTests):
        verifies_checksums = False

        def create_transport(self, context):
            return MyTransport(context)

        @pytest.fixture
        def transport_context(self): ...

        @pytest.fixture
        def bucket(self): ...

Most tests ask a store: the class attributes say what that can, and what needs versions is skipped without a
``versioned_bucket``. The others ask a server that answers as they script (``s3torch.testing.scripted``): what
goes over the wire, which failures are tried again, what happens while the server is silent. A transport that
does not speak HTTP says so with ``speaks_http = False``; one that needs more than addresses, keys and
settings overrides ``create_context``.
"""

# ruff: noqa: FBT001, S101 - In tests, assert is how they tell, and parametrize gives what it gives.

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

import pytest

from s3torch.core.errors import RangeNotSatisfiableError, TruncatedError
from s3torch.core.models import PutOptions
from s3torch.core.ranges import MIB, ByteRange
from s3torch.testing._transport.answers import AnswerTests, EtagTests, PromiseTests, SizeTests
from s3torch.testing._transport.case import (
    CUT_OFF,
    NOWHERE,
    PATIENCE,
    StaticSession,
    TransportCalls,
    TransportCase,
    checksum_of,
    failure,
    get,
    put,
    refused,
)
from s3torch.testing._transport.connections import BareRefusalTests, CertificateTests, ConnectionTests
from s3torch.testing._transport.control import (
    AWKWARD_KEYS,
    CopyTests,
    DeleteTests,
    HeadTests,
    KeyTests,
    ListTests,
    VersionTests,
)
from s3torch.testing._transport.transfers import (
    BufferTests,
    CancelTests,
    CloseTests,
    SilenceTests,
    TransferTests,
)
from s3torch.testing._transport.wire import RetryTests, WireTests
from s3torch.testing._transport.writes import MultipartTests, PartCopyTests, PutTests, UploadListingTests
from s3torch.testing.scripted import ScriptedAnswer

if TYPE_CHECKING:
    from s3torch.testing._transport.case import Script

__all__ = ["AWKWARD_KEYS", "StaticSession", "TransportCalls", "TransportTests"]

_DATA = bytes(range(256)) * 5
_LONG = bytes(range(256)) * 40


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

    def test_get_tells_checksum(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """A checksum that was stored comes with the whole object, and never with a range of it."""
        if not self.verifies_checksums:
            pytest.skip("the store keeps no checksums")
        algorithm, checksum = checksum_of(_DATA)
        put(transport, bucket, key, _DATA, checksum=(algorithm, checksum))
        assert get(transport, bucket, key).head.checksums[algorithm] == checksum
        ranged = get(transport, bucket, key, byte_range=ByteRange(0, 10))
        assert ranged.head.checksums.get(algorithm) in {None, checksum}

    @pytest.mark.parametrize(
        ("start", "stop"), [(0, 1), (0, 1280), (3, 300), (1279, 1280), (1000, 5000), (0, 9999)]
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
        with refused("InvalidRange", "GetObject", bucket, key):
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

    def test_get_fills_buffer_in_pieces(self, transport: TransportCalls, bucket: str, key: str) -> None:
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

    def test_get_range_of_empty_object(self, transport: TransportCalls, bucket: str, key: str) -> None:
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
            with refused("PreconditionFailed", "GetObject", bucket, key):
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
            with refused("NoSuchKey", "GetObject", bucket, key):
                get(transport, bucket, key, byte_range=byte_range)

    def test_get_from_missing_bucket(self, transport: TransportCalls, key: str) -> None:
        """A missing bucket is told from a missing object."""
        with refused("NoSuchBucket", "GetObject", NOWHERE, key):
            get(transport, NOWHERE, key)


class BodyTests(TransportCase):
    """Bodies are whole, or errors."""

    @pytest.mark.parametrize("buffered", [False, True])
    @pytest.mark.parametrize("ranged", [False, True])
    @pytest.mark.parametrize("cut", [0, 1, 5000])
    def test_body_that_breaks_off(self, script: Script, cut: int, ranged: bool, buffered: bool) -> None:
        """It is never a shorter object: the request is sent again, and fails in the end."""
        start, stop = (100, 9000) if ranged else (0, len(_LONG))
        how: dict[str, Any] = {"byte_range": ByteRange(start, stop)} if ranged else {}
        script.server.will(
            *[_part(start, stop, cut=cut) if ranged else ScriptedAnswer(body=_LONG, cut=cut)] * 9
        )
        buffer = memoryview(bytearray(stop - start)) if buffered else None
        error = failure(script.connect(max_attempts=2).get("bucket", "key", into=buffer, **how), CUT_OFF)
        assert (error.attempts, len(script.server.requests)) == (2, 2)

    def test_short_answer_of_other_operations(self, script: Script) -> None:
        """A listing that breaks off is no listing."""
        page = b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"
        script.server.will(*[ScriptedAnswer(body=page + b"\n" * 100, cut=len(page))] * 9)
        with pytest.raises(CUT_OFF):
            script.connect(max_attempts=2).list_objects("bucket")

    def test_answer_is_ended_early(self, script: Script) -> None:
        """Where a transport says that it can, it waits for no more, and tells of the whole object."""
        transport = script.connect()
        if not getattr(transport.transport, "ends_early", False):
            pytest.skip("the transport does not end answers early")
        script.server.will(ScriptedAnswer(body=_LONG, stall=150), ScriptedAnswer(body=b"other"))
        first = transport.get("bucket", "key", at_most=100).result(PATIENCE)
        assert (first.data, first.length, first.head.size) == (_LONG[:100], 100, len(_LONG))
        assert transport.get("bucket", "key", at_most=100).result(PATIENCE).data == b"other"
        assert all("range" not in request.headers for request in script.server.requests)
        # Of an object that may be of any size a range is asked for.
        part = {"Content-Range": f"bytes 0-99/{len(_LONG)}"}
        script.server.will(
            ScriptedAnswer(body=_LONG, headers={"Content-Length": None}),
            ScriptedAnswer(206, _LONG[:100], part),
        )
        assert transport.get("bucket", "key", at_most=100).result(PATIENCE).data == _LONG[:100]
        assert script.server.requests[-1].headers["range"] == "bytes=0-99"

    @pytest.mark.parametrize("buffered", [False, True])
    @pytest.mark.parametrize(
        "told",
        [None, f"bytes 0-99/{len(_LONG)}", f"bytes 50-148/{len(_LONG)}", f"bytes 50-150/{len(_LONG)}"],
        ids=["no range", "other start", "too short", "too long"],
    )
    def test_other_bytes_than_asked_for(self, script: Script, told: str | None, buffered: bool) -> None:
        """An answer that announces other bytes is an error, whatever comes."""
        answer = ScriptedAnswer(206, _LONG[50:150], {"Content-Range": told})
        script.server.will(*[answer] * 9)
        buffer = memoryview(bytearray(100)) if buffered else None
        transfer = script.connect(max_attempts=2).get(
            "bucket", "key", byte_range=ByteRange(50, 150), into=buffer
        )
        failure(transfer, TruncatedError)

    @pytest.mark.parametrize("buffered", [False, True])
    @pytest.mark.parametrize("size", [90, 110])
    def test_body_of_other_length_than_its_range(self, script: Script, size: int, buffered: bool) -> None:
        """Not even a byte more or less is taken than the range has."""
        headers = {"Content-Range": f"bytes 50-149/{len(_LONG)}"}
        script.server.will(*[ScriptedAnswer(206, _LONG[50 : 50 + size], headers)] * 9)
        buffer = bytearray(b"?" * 200)
        into = memoryview(buffer)[:100] if buffered else None
        transfer = script.connect(max_attempts=2).get(
            "bucket", "key", byte_range=ByteRange(50, 150), into=into
        )
        failure(transfer, CUT_OFF)
        assert buffer[100:] == b"?" * 100

    @pytest.mark.parametrize("buffered", [False, True])
    @pytest.mark.parametrize("size", [0, 5, 100])
    def test_whole_object_may_answer_a_range(self, script: Script, size: int, buffered: bool) -> None:
        """Where it begins at 0 and the object ends within it."""
        script.server.will(*[ScriptedAnswer(body=_LONG[:size])] * 2)
        buffer = bytearray(100)
        into = memoryview(buffer) if buffered else None
        transfer = script.connect().get("bucket", "key", byte_range=ByteRange(0, 100), into=into)
        result = transfer.result(PATIENCE)
        assert (result.length, result.head.size) == (size, size)
        assert (bytes(buffer[:size]) if buffered else result.data) == _LONG[:size]

    @pytest.mark.parametrize("buffered", [False, True])
    @pytest.mark.parametrize("start", [0, 1])
    def test_longer_object_does_not_answer_a_range(self, script: Script, start: int, buffered: bool) -> None:
        """What was not asked for is no answer."""
        script.server.will(*[ScriptedAnswer(body=_LONG)] * 9)
        into = memoryview(bytearray(100)) if buffered else None
        transfer = script.connect(max_attempts=2).get(
            "bucket", "key", byte_range=ByteRange(start, start + 100), into=into
        )
        failure(transfer, TruncatedError)


def _part(start: int, stop: int, **how: Any) -> ScriptedAnswer:
    told = {"Content-Range": f"bytes {start}-{stop - 1}/{len(_LONG)}"}
    return ScriptedAnswer(206, _LONG[start:stop], told, **how)


class TransportTests(
    ReadTests,
    KeyTests,
    BodyTests,
    PutTests,
    MultipartTests,
    PartCopyTests,
    UploadListingTests,
    HeadTests,
    ListTests,
    DeleteTests,
    CopyTests,
    VersionTests,
    TransferTests,
    BufferTests,
    CancelTests,
    CloseTests,
    SilenceTests,
    WireTests,
    AnswerTests,
    PromiseTests,
    SizeTests,
    EtagTests,
    RetryTests,
    ConnectionTests,
    CertificateTests,
    BareRefusalTests,
):
    """All groups of the suite, to be subclassed."""

"""Conformance of transports: what counts as success, and which answers are none."""

# ruff: noqa: FBT001, S101 - In tests, assert is how they tell, and parametrize gives what it gives.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from s3torch.core import requests
from s3torch.core.errors import (
    AccessDeniedError,
    NotFoundError,
    RangeNotSatisfiableError,
    S3ConnectionError,
    S3Error,
    ServerError,
    TruncatedError,
    WrongRegionError,
)
from s3torch.core.models import CompletedPart, MultipartUpload, PutOptions, PutResult
from s3torch.core.ranges import ByteRange
from s3torch.testing._transport.case import PATIENCE, TransportCase, failure
from s3torch.testing.scripted import ScriptedAnswer, refusal

if TYPE_CHECKING:
    from s3torch.core.requests import Request
    from s3torch.testing._transport.case import Script, TransportCalls

_DATA = bytes(range(256)) * 40
_UPLOAD = MultipartUpload("bucket", "key", "upload")
_PLAIN = PutOptions()
_ETAG = "<ETag>&quot;e&quot;</ETag>"
# Each with what S3 answers, and what that means.
_PROMISES: list[tuple[Request[Any], str, object]] = [
    (
        requests.create_multipart_upload("bucket", "key", options=_PLAIN),
        "<InitiateMultipartUploadResult><UploadId>upload</UploadId></InitiateMultipartUploadResult>",
        _UPLOAD,
    ),
    (
        requests.upload_part_copy(_UPLOAD, 1, "bucket", "from", byte_range=ByteRange(0, 9)),
        f"<CopyPartResult>{_ETAG}</CopyPartResult>",
        CompletedPart(1, '"e"'),
    ),
    (
        requests.complete_multipart_upload(_UPLOAD, [], options=_PLAIN),
        f"<CompleteMultipartUploadResult>{_ETAG}</CompleteMultipartUploadResult>",
        PutResult('"e"'),
    ),
    (
        requests.copy_object("bucket", "from", "bucket", "key"),
        f"<CopyObjectResult>{_ETAG}</CopyObjectResult>",
        None,
    ),
    (requests.delete_objects("bucket", [("key", None)]), "<DeleteResult/>", []),
    (requests.get_object_tagging("bucket", "key"), "<Tagging><TagSet/></Tagging>", {}),
    (requests.list_buckets(), "<ListAllMyBucketsResult><Buckets/></ListAllMyBucketsResult>", ([], None)),
]
_BY_OPERATION = pytest.mark.parametrize(
    ("asked", "document", "result"), [pytest.param(*one, id=one[0].operation) for one in _PROMISES]
)
_NO_RESULTS = {
    "empty": "",
    "white space": " \n ",
    "a web page": "<!DOCTYPE html>\n<html><body>Please log in</body></html>",
    "text": "OK",
    "another document": "<Result><ETag>e</ETag></Result>",
    "half a document": None,
}
_MALFORMED = {
    "date": {"Last-Modified": "yesterday"},
    "huge date": {"Last-Modified": "Mon, 01 Jan 99999999999 00:00:00 GMT"},
    "count": {"x-amz-tagging-count": "many"},
    "restore": {"x-amz-restore": 'ongoing-request="false", expiry-date="soon"'},
}


def put_data(transport: TransportCalls) -> Any:
    """Stores some bytes."""
    return transport.put("bucket", "key", memoryview(_DATA))


def _chunked(body: bytes, status: int = 200, **headers: str | None) -> ScriptedAnswer:
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    told = {"Content-Length": None, "Transfer-Encoding": "chunked", **headers}
    return ScriptedAnswer(status, chunks, told)


class AnswerTests(TransportCase):
    """What counts as success."""

    @pytest.mark.parametrize("status", [301, 302, 307])
    def test_redirect_is_an_error(self, script: Script, status: int) -> None:
        """No request goes where its signature is not for."""
        location = {"Location": f"{script.server.endpoint}/other/key", "x-amz-bucket-region": "eu-west-1"}
        code = "PermanentRedirect" if status == 301 else "TemporaryRedirect"
        script.server.will(refusal(status, code, **location), ScriptedAnswer())
        error = failure(script.connect().get("bucket", "key"), (S3Error,))
        assert (error.status, error.code) == (status, code)
        if status in {301, 307}:
            assert isinstance(error, WrongRegionError)
            assert error.expected_region == "eu-west-1"
        assert len(script.server.requests) == 1

    def test_head_has_a_length_and_no_body(self, script: Script) -> None:
        """Nobody waits for bytes that do not come, neither then nor with the next request."""
        script.server.will(
            ScriptedAnswer(body=_DATA), ScriptedAnswer(404, b"12345"), ScriptedAnswer(body=b"x")
        )
        transport = script.connect()
        assert transport.head_object("bucket", "key").size == len(_DATA)
        with pytest.raises(NotFoundError):
            transport.head_object("bucket", "key")
        assert transport.get("bucket", "key").result(PATIENCE).data == b"x"

    def test_answers_without_a_body(self, script: Script) -> None:
        """204 has none, and others may have none."""
        script.server.will(ScriptedAnswer(204), ScriptedAnswer(), ScriptedAnswer(), ScriptedAnswer(body=b"x"))
        transport = script.connect()
        transport.delete_object("bucket", "key")
        assert put_data(transport).result(PATIENCE).etag == '"e"'
        assert transport.get("bucket", "key").result(PATIENCE).data == b""
        assert transport.get("bucket", "key").result(PATIENCE).data == b"x"

    def test_error_in_a_success(self, script: Script) -> None:
        """S3 may begin to answer before it knows the end, and so say 200 before an error."""
        error = refusal(200, "NoSuchUpload")
        script.server.will(error)
        transfer = script.connect().complete_multipart_upload(_UPLOAD, [])
        assert failure(transfer, NotFoundError, "CompleteMultipartUpload").code == "NoSuchUpload"
        script.server.will(ScriptedAnswer(body=error.body))
        assert script.connect().get("bucket", "key").result(PATIENCE).data == error.body

    def test_error_in_a_success_is_tried_again(self, script: Script) -> None:
        copied = f"<CopyObjectResult>{_ETAG}</CopyObjectResult>".encode()
        script.server.will(refusal(200, "InternalError"), ScriptedAnswer(body=copied))
        script.connect().copy_object("bucket", "from", "bucket", "key")
        assert len(script.server.requests) == 2

    def test_facts_of_an_error(self, script: Script) -> None:
        """What S3 tells for its support is kept."""
        script.server.will(refusal(403, "AccessDenied", **{"x-amz-request-id": "R1", "x-amz-id-2": "H1"}))
        error = failure(put_data(script.connect()), AccessDeniedError, "PutObject")
        assert (error.request_id, error.host_id, error.s3_message) == ("R1", "H1", "told by the script")


class PromiseTests(TransportCase):
    """An answer without what S3 promises is a failure, whatever its status."""

    @pytest.mark.parametrize("body", _NO_RESULTS.values(), ids=_NO_RESULTS)
    @_BY_OPERATION
    def test_success_that_is_no_result(
        self, script: Script, asked: Request[Any], document: str, result: object, body: str | None
    ) -> None:
        """It is asked for again; the last one is an error, although there is an ETag."""
        wrong = ScriptedAnswer(body=(document[: len(document) // 2] if body is None else body).encode())
        script.server.will(wrong, ScriptedAnswer(body=f" \n{document}".encode()), wrong)
        assert script.connect().send(asked).result(PATIENCE) == result
        assert [type(told.error) for told in script.retries] == [ServerError]
        with pytest.raises(ServerError) as caught:
            script.connect(max_attempts=1).send(asked).result(PATIENCE)
        assert (caught.value.operation, caught.value.status) == (asked.operation, 200)

    @pytest.mark.parametrize("operation", ["PutObject", "UploadPart"])
    @pytest.mark.parametrize("wrong", [{"ETag": None}, {}], ids=["no ETag", "a web page"])
    def test_upload_that_is_not_confirmed(
        self, script: Script, operation: str, wrong: dict[str, str | None]
    ) -> None:
        """Bytes are sent again, whole, until an ETag says that they are stored."""
        body = b"" if wrong else b"<html><body>Please log in</body></html>"
        script.server.will(ScriptedAnswer(200, body, wrong), ScriptedAnswer())
        transport = script.connect()
        data = memoryview(_DATA)
        if operation == "PutObject":
            assert transport.put("bucket", "key", data).result(PATIENCE).etag == '"e"'
        else:
            assert transport.upload_part(_UPLOAD, 1, data).result(PATIENCE).etag == '"e"'
        assert [told.body for told in script.server.requests] == [_DATA] * 2

    @pytest.mark.parametrize("status", [200, 404])
    def test_web_page_deletes_nothing(self, script: Script, status: int) -> None:
        page = ScriptedAnswer(status, b"<html><body>Please log in</body></html>")
        script.server.will(*[page] * 9)
        with pytest.raises(ServerError if status == 200 else NotFoundError):
            script.connect(max_attempts=1).delete_object("bucket", "key")

    @pytest.mark.parametrize("headers", _MALFORMED.values(), ids=_MALFORMED)
    def test_head_with_a_malformed_fact(self, script: Script, headers: dict[str, str | None]) -> None:
        """What is no size, date or count is an error of the server, and never 0; the next may be right."""
        wrong = ScriptedAnswer(200, _DATA, headers)
        script.server.will(wrong, ScriptedAnswer(body=_DATA))
        assert script.connect().head_object("bucket", "key").size == len(_DATA)
        script.server.will(wrong)
        with pytest.raises(ServerError) as caught:
            script.connect(max_attempts=1).head_object("bucket", "key")
        assert (caught.value.operation, caught.value.key, caught.value.status) == ("HeadObject", "key", 200)

    def test_head_without_a_length(self, script: Script) -> None:
        """It is an error at once, which a client knows by its code, and asks otherwise."""
        script.server.will(*[ScriptedAnswer(headers={"Content-Length": None})] * 2)
        with pytest.raises(ServerError) as caught:
            script.connect().head_object("bucket", "key")
        assert (caught.value.status, caught.value.code) == (200, "MissingContentLength")
        assert len(script.server.requests) == 1

    @pytest.mark.parametrize(
        "facts",
        [
            "<IsTruncated>true</IsTruncated>",
            "<IsTruncated>perhaps</IsTruncated>",
            "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>",
            "<Contents><Key>k</Key><Size>many</Size><LastModified>2030-01-02T03:04:05Z</LastModified></Contents>",
            "<Contents><Key>k</Key><Size>1</Size><LastModified>soon</LastModified></Contents>",
            "<Contents><Size>1</Size><LastModified>2030-01-02T03:04:05Z</LastModified></Contents>",
            "<MaxKeys>1</MaxKeys><CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>",
            "<NextMarker>m</NextMarker>",
        ],
        ids=["no token", "truncated", "the same token", "size", "date", "no key", "full", "other marker"],
    )
    def test_page_with_a_malformed_fact(self, script: Script, facts: str) -> None:
        """A listing ends when the store says so, and only then."""
        page = f"<ListBucketResult>{facts}</ListBucketResult>".encode()
        script.server.will(ScriptedAnswer(body=page))
        with pytest.raises(ServerError) as caught:
            script.connect(max_attempts=1).list_objects("bucket", continuation_token="t")  # noqa: S106
        assert (caught.value.operation, caught.value.status) == ("ListObjectsV2", 200)


class SizeTests(TransportCase):
    """A size that is not known is not 0, and no part is taken for the whole."""

    @pytest.mark.parametrize("buffered", [False, True])
    @pytest.mark.parametrize("ranged", [False, True])
    @pytest.mark.parametrize("size", [0, 5, 5000])
    def test_object_in_chunks(self, script: Script, size: int, ranged: bool, buffered: bool) -> None:
        """Nothing announces its length, and what has come is all of it, also in answer to a range."""
        script.server.will(*[_chunked(_DATA[:size])] * 2)
        buffer = bytearray(6000)
        transfer = script.connect(max_attempts=1).get(
            "bucket",
            "key",
            byte_range=ByteRange(0, 6000) if ranged else None,
            into=memoryview(buffer) if buffered else None,
        )
        result = transfer.result(PATIENCE)
        assert (result.length, result.head.size) == (size, size)
        assert (bytes(buffer[:size]) if buffered else result.data) == _DATA[:size]

    @pytest.mark.parametrize("buffered", [False, True])
    @pytest.mark.parametrize("ranged", [False, True])
    @pytest.mark.parametrize("version", ["1.0", "1.1"])
    def test_body_whose_end_nothing_tells(
        self, script: Script, version: str, ranged: bool, buffered: bool
    ) -> None:
        """It is no empty object, and what came in place of a range need not be all of one."""
        head = f'HTTP/{version} 200 OK\r\nConnection: close\r\nETag: "e"\r\n\r\n'.encode()
        script.server.will(*[ScriptedAnswer(raw=head + _DATA[:50], cut=len(head) + 50)] * 2)
        transfer = script.connect(max_attempts=1).get(
            "bucket",
            "key",
            byte_range=ByteRange(0, 100) if ranged else None,
            into=memoryview(bytearray(100)) if buffered else None,
        )
        try:
            result = transfer.result(PATIENCE)
        except (TruncatedError, S3ConnectionError):
            return
        assert not ranged
        assert result.length == 50

    @pytest.mark.parametrize("buffered", [False, True])
    @pytest.mark.parametrize("ranged", [False, True])
    def test_chunks_that_end_early(self, script: Script, ranged: bool, buffered: bool) -> None:
        """An answer in good order that has less than the object is known to have is asked for again."""
        script.server.will(*[_chunked(_DATA[:100], ETag='"e"')] * 2, ScriptedAnswer(body=_DATA))
        buffer = bytearray(len(_DATA))
        transfer = script.connect(max_attempts=3).get(
            "bucket",
            "key",
            byte_range=ByteRange(0, len(_DATA)) if ranged else None,
            if_match='"e"',
            size=len(_DATA),
            into=memoryview(buffer) if buffered else None,
        )
        result = transfer.result(PATIENCE)
        assert (bytes(buffer) if buffered else result.data) == _DATA
        assert len(script.server.requests) == 3

    @pytest.mark.parametrize("buffered", [False, True])
    @pytest.mark.parametrize("start", [0, 1])
    def test_chunks_do_not_answer_a_range_within(self, script: Script, start: int, buffered: bool) -> None:
        script.server.will(*[_chunked(_DATA)] * 9)
        transfer = script.connect(max_attempts=1).get(
            "bucket",
            "key",
            byte_range=ByteRange(start, start + 100),
            into=memoryview(bytearray(100)) if buffered else None,
        )
        failure(transfer, TruncatedError)

    @pytest.mark.parametrize("buffered", [False, True])
    @pytest.mark.parametrize("told", [None, "bytes 0-99/*", "bytes */500", "0-99/500"], ids=str)
    @pytest.mark.parametrize("chunked", [False, True])
    def test_part_without_the_size_of_the_whole(
        self, script: Script, told: str | None, buffered: bool, chunked: bool
    ) -> None:
        """It could be the whole object as well as its beginning."""
        headers = {"Content-Range": told}
        part = ScriptedAnswer(206, _DATA[:100], headers)
        script.server.will(*[_chunked(_DATA[:100], 206, **headers) if chunked else part] * 9)
        transfer = script.connect(max_attempts=1).get(
            "bucket",
            "key",
            byte_range=ByteRange(0, 100),
            into=memoryview(bytearray(100)) if buffered else None,
        )
        failure(transfer, TruncatedError)

    @pytest.mark.parametrize("told", [None, f"bytes 0-99/{len(_DATA)}"], ids=["no range", "range"])
    def test_part_does_not_answer_for_the_whole(self, script: Script, told: str | None) -> None:
        script.server.will(*[ScriptedAnswer(206, _DATA[:100], {"Content-Range": told})] * 9)
        failure(script.connect(max_attempts=1).get("bucket", "key"), TruncatedError)

    @pytest.mark.parametrize("status", [202, 203, 204])
    def test_success_without_an_object(self, script: Script, status: int) -> None:
        """Only 200 and 206 bring an object, and no other an empty one."""
        script.server.will(ScriptedAnswer(status), ScriptedAnswer(body=_DATA))
        assert script.connect().get("bucket", "key").result(PATIENCE).data == _DATA
        script.server.will(*[ScriptedAnswer(status)] * 9)
        failure(script.connect(max_attempts=1).get("bucket", "key"), ServerError)

    @pytest.mark.parametrize("size", [None, 0, 500])
    def test_first_bytes_that_are_refused(self, script: Script, size: int | None) -> None:
        """An empty object has no first byte; a store that refuses those of another one is wrong."""
        headers = {} if size is None else {"Content-Range": f"bytes */{size}"}
        script.server.will(*[refusal(416, "InvalidRange", **headers)] * 9)
        transport = script.connect(max_attempts=1)
        transfer = transport.get("bucket", "key", byte_range=ByteRange(0, 100))
        if size:
            failure(transfer, ServerError)
        else:
            assert transfer.result(PATIENCE).head.size == 0
        failure(transport.get("bucket", "key", byte_range=ByteRange(500, 600)), RangeNotSatisfiableError)


class EtagTests(TransportCase):
    """ETags of all kinds, and none."""

    @pytest.mark.parametrize("etag", [None, "e", 'W/"e"'], ids=["none", "unquoted", "weak"])
    @pytest.mark.parametrize("buffered", [False, True])
    @pytest.mark.parametrize("start", [None, 0, 50])
    def test_object_with_another_etag(
        self, script: Script, start: int | None, buffered: bool, etag: str | None
    ) -> None:
        """Objects are read without one, and with such as proxies make of it."""
        byte_range = None if start is None else ByteRange(start, start + 100)
        data = _DATA if byte_range is None else _DATA[byte_range.start : byte_range.stop]
        told = None if byte_range is None else f"bytes {start}-{byte_range.stop - 1}/{len(_DATA)}"
        status = 200 if told is None else 206
        script.server.will(*[ScriptedAnswer(status, data, {"ETag": etag, "Content-Range": told})] * 3)
        buffer = bytearray(len(data))
        transport = script.connect(max_attempts=1)
        for _ in range(2):
            transfer = transport.get(
                "bucket", "key", byte_range=byte_range, into=memoryview(buffer) if buffered else None
            )
            result = transfer.result(PATIENCE)
            assert (bytes(buffer) if buffered else result.data) == data
            assert (result.head.etag, result.head.size) == (etag or "", len(_DATA))

    @pytest.mark.parametrize(
        ("known", "sent"), [('"e"', '"e"'), ("e", '"e"'), ('W/"e"', None), ('"e\r\nX: 1"', None)]
    )
    def test_condition_of_a_read(self, script: Script, known: str, sent: str | None) -> None:
        """A weak ETag holds for nothing, so it is not sent, and what is sent has its quotes."""
        headers = {"Content-Range": f"bytes 0-99/{len(_DATA)}"}
        script.server.will(ScriptedAnswer(206, _DATA[:100], headers))
        transfer = script.connect().get("bucket", "key", byte_range=ByteRange(0, 100), if_match=known)
        assert transfer.result(PATIENCE).data == _DATA[:100]
        (told,) = script.server.requests
        assert told.headers.get("if-match") == sent

    @pytest.mark.parametrize("known", ['"e"', "e", 'W/"e"'])
    def test_condition_of_a_write(self, script: Script, known: str) -> None:
        """It is strong: the store has the last word about what is replaced."""
        script.server.will(ScriptedAnswer())
        transport = script.connect()
        transport.put("bucket", "key", memoryview(b""), options=PutOptions(if_match=known)).result(PATIENCE)
        (told,) = script.server.requests
        assert told.headers["if-match"] == '"e"'

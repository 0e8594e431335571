"""How answers are read and judged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core import requests
from s3torch.core.errors import (
    AccessDeniedError,
    NotFoundError,
    PreconditionFailedError,
    RangeNotSatisfiableError,
    ServerError,
    ThrottledError,
    TruncatedError,
    WrongRegionError,
)
from s3torch.core.models import (
    BucketInfo,
    CompletedPart,
    DeleteFailure,
    MultipartUpload,
    ObjectVersion,
    PutOptions,
    PutResult,
    UploadInfo,
)
from s3torch.core.ranges import ByteRange
from s3torch.core.requests import Answer, StoredPart, announced_length

UPLOAD = MultipartUpload("bucket", "key", "u")
NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
LATE = b'<?xml version="1.0"?>\n<Error><Code>%s</Code><Message>late</Message></Error>'
COPY = requests.copy_object("from", "key", "bucket", "key")
PART_COPY = requests.upload_part_copy(UPLOAD, 2, "from", "key", byte_range=ByteRange(0, 9))
COMPLETE = requests.complete_multipart_upload(UPLOAD, [], options=PutOptions())
PUT = requests.put_object("bucket", "key", options=PutOptions())
PART = requests.upload_part(UPLOAD, 2, checksum=("CRC32", "AAAA"))
CREATE = requests.create_multipart_upload("bucket", "key", options=PutOptions())
DELETE_MANY = requests.delete_objects("bucket", [("k", None)])


def ok(body="", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(200, named, body.encode(), len(body))


# Errors.


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "NoSuchKey", NotFoundError),
        (403, "AccessDenied", AccessDeniedError),
        (503, "SlowDown", ThrottledError),
        (500, "InternalError", ServerError),
        (412, "PreconditionFailed", PreconditionFailedError),
        (301, "PermanentRedirect", WrongRegionError),
    ],
)
def test_an_error_tells_what_the_answer_tells(status, code, expected):
    body = f"<Error{NAMESPACE}><Code>{code}</Code><Message>why</Message></Error>".encode()
    headers = {"x-amz-request-id": "R", "x-amz-id-2": "H", "x-amz-bucket-region": "eu-west-1"}
    with pytest.raises(expected) as caught:
        requests.get_object("bucket", "key").result(Answer(status, headers, body))
    error = caught.value
    assert (error.operation, error.bucket, error.key) == ("GetObject", "bucket", "key")
    assert (error.code, error.status, error.request_id, error.host_id) == (code, status, "R", "H")


@pytest.mark.parametrize("body", [None, b"", b"no XML", b"<Error>", b"<Error/>", b"<html/>"], ids=repr)
def test_an_error_without_a_document_has_its_status(body):
    with pytest.raises(NotFoundError) as caught:
        requests.list_objects("bucket").result(Answer(404, {}, body))
    assert (caught.value.code, caught.value.status, caught.value.key) == (None, 404, None)


@pytest.mark.parametrize("before", [b"", b" ", b"\n \r\n"], ids=repr)
@pytest.mark.parametrize("request_", [COPY, PART_COPY, COMPLETE, DELETE_MANY], ids=lambda one: one.operation)
def test_an_error_may_come_as_200(request_, before):
    with pytest.raises(ServerError) as caught:
        request_.result(Answer(200, {"etag": '"e"'}, before + LATE % b"InternalError"))
    assert (caught.value.code, caught.value.operation) == ("InternalError", request_.operation)
    with pytest.raises(ThrottledError):
        request_.result(Answer(200, {}, before + LATE % b"SlowDown"))


def test_an_object_may_look_like_an_error():
    body = LATE % b"InternalError"
    request = requests.get_object("bucket", "key")
    result = request.result(Answer(200, {"content-length": str(len(body))}, body, len(body)))
    assert result.data == body


def test_an_error_that_tells_its_place_keeps_it():
    error = NotFoundError(operation="CreateSession", bucket="other")
    COPY.locate(error)
    assert (error.operation, error.bucket, error.key) == ("CreateSession", "other", None)


# Objects.


def test_an_object_comes_with_its_facts():
    request = requests.get_object("bucket", "key", byte_range=ByteRange(2, 6))
    headers = {"content-range": "bytes 2-5/9", "content-length": "4", "etag": '"e"'}
    result = request.result(Answer(206, headers, b"data", 4))
    assert (result.data, result.length, result.head.size, result.head.etag) == (b"data", 4, 9, '"e"')
    received = request.result(Answer(206, headers, None, 4))
    assert (received.data, received.length) == (None, 4)


@pytest.mark.parametrize("length", [3, 5])
def test_an_object_that_is_not_whole_is_an_error(length):
    request = requests.get_object("bucket", "key")
    with pytest.raises(TruncatedError):
        request.result(Answer(200, {"content-length": "4"}, b"x" * length, length))


def test_a_length_that_nobody_announced_is_taken():
    assert requests.get_object("bucket", "key").result(Answer(200, {}, b"data", 4)).length == 4


def test_a_range_of_an_empty_object_is_empty():
    error = RangeNotSatisfiableError()
    for byte_range in (ByteRange(0, 9), None):
        request = requests.get_object("bucket", "key", byte_range=byte_range)
        assert (request.failed(error).data, request.failed(error).length) == (b"", 0)
        assert request.failed(error, into=memoryview(b"")).data is None
        with pytest.raises(NotFoundError):
            request.failed(NotFoundError())
    with pytest.raises(RangeNotSatisfiableError) as caught:
        requests.get_object("bucket", "key", byte_range=ByteRange(1, 9)).failed(RangeNotSatisfiableError())
    assert caught.value.key == "key"


@given(st.integers(0, 100), st.integers(1, 100), st.integers(1, 200))
def test_only_the_bytes_that_were_asked_for_are_right(start, count, size):
    asked = ByteRange(start, start + count)
    stop = min(asked.stop, size)
    if start < size:
        headers = {"content-range": f"bytes {start}-{stop - 1}/{size}", "content-length": str(stop - start)}
        assert announced_length(headers, asked) == stop - start
    for first, last in ((start + 1, stop), (start, stop), (start, stop - 2)):
        if first <= last:
            with pytest.raises(TruncatedError):
                announced_length({"content-range": f"bytes {first}-{last}/{size}"}, asked)


# What is stored.


def test_what_was_stored_has_an_etag():
    assert PUT.result(ok(etag='"e"', x_amz_version_id="v")) == PutResult('"e"', "v")
    assert PART.result(ok(etag='"e"')) == CompletedPart(2, '"e"', "AAAA")
    copied = f'<CopyPartResult{NAMESPACE}><ETag>"e"</ETag></CopyPartResult>'
    assert PART_COPY.result(ok(copied)) == CompletedPart(2, '"e"')
    assert COPY.result(ok(f'<CopyObjectResult{NAMESPACE}><ETag>"e"</ETag></CopyObjectResult>')) is None
    completed = f"<CompleteMultipartUploadResult{NAMESPACE}><ETag>&quot;e-2&quot;</ETag>"
    completed += "</CompleteMultipartUploadResult>"
    assert COMPLETE.result(ok("\n " + completed)) == PutResult('"e-2"', None)


@pytest.mark.parametrize(
    "request_", [PUT, PART, PART_COPY, COPY, COMPLETE], ids=lambda request: request.operation
)
@pytest.mark.parametrize("body", ["", " \n", "no XML", "<Result/>", "<Result><ETag/></Result>"], ids=repr)
def test_without_one_nobody_knows_that_it_was_stored(request_, body):
    with pytest.raises(ServerError, match="no (ETag|etag|.*Result)"):
        request_.result(ok(body))


def test_an_upload_has_an_id():
    begun = (
        f"<InitiateMultipartUploadResult{NAMESPACE}><UploadId>u+</UploadId></InitiateMultipartUploadResult>"
    )
    assert CREATE.result(ok(begun)) == MultipartUpload("bucket", "key", "u+")
    for body in (
        "",
        "<Other/>",
        "<InitiateMultipartUploadResult><UploadId/></InitiateMultipartUploadResult>",
    ):
        with pytest.raises(ServerError, match="no (UploadId|InitiateMultipartUploadResult)"):
            CREATE.result(ok(body))


def test_an_upload_that_is_gone_is_aborted():
    request = requests.abort_multipart_upload(UPLOAD)
    assert request.result(Answer(204, {}, b"")) is None
    assert request.failed(NotFoundError(code="NoSuchUpload")) is None
    with pytest.raises(AccessDeniedError):
        request.failed(AccessDeniedError())


def test_what_could_not_be_deleted():
    assert DELETE_MANY.result(ok("<DeleteResult/>")) == []
    body = (
        f"<DeleteResult{NAMESPACE}><Deleted><Key>a</Key></Deleted>"
        "<Error><Key>b &amp;&#13;</Key><VersionId>v</VersionId><Code>AccessDenied</Code><Message>no</Message>"
        "</Error><Error><Key>c</Key><VersionId/></Error></DeleteResult>"
    )
    assert DELETE_MANY.result(ok(body)) == [
        DeleteFailure("b &\r", "AccessDenied", "no", "v"),
        DeleteFailure("c", "", "", None),
    ]


def test_tags():
    request = requests.get_object_tagging("bucket", "key")
    body = (
        f"<Tagging{NAMESPACE}><TagSet><Tag><Key>a b</Key><Value>c&amp;d</Value></Tag>"
        "<Tag><Key>e</Key><Value/></Tag></TagSet></Tagging>"
    )
    assert request.result(ok(body)) == {"a b": "c&d", "e": ""}
    assert request.result(ok("<Tagging><TagSet/></Tagging>")) == {}


# Listings.


def test_buckets():
    page = (
        f"<ListAllMyBucketsResult{NAMESPACE}><Owner><ID>me</ID></Owner><Buckets><Bucket><Name>a</Name>"
        "<CreationDate>1970-01-01T00:00:09.000Z</CreationDate></Bucket><Bucket><Name>b</Name></Bucket>"
        "</Buckets><ContinuationToken>t</ContinuationToken></ListAllMyBucketsResult>"
    )
    assert requests.list_buckets().result(ok(page)) == ([BucketInfo("a", 9), BucketInfo("b")], "t")
    assert requests.list_buckets().result(ok("<ListAllMyBucketsResult/>")) == ([], None)


VERSION_PAGE = f"""<ListVersionsResult{NAMESPACE}>
  <EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
  <NextKeyMarker>b+%2B</NextKeyMarker><NextVersionIdMarker>v9</NextVersionIdMarker>
  <Version><Key>b%0A</Key><VersionId>v2</VersionId><IsLatest>true</IsLatest><Size>5</Size>
    <LastModified>2024-01-02T03:04:05.000Z</LastModified><ETag>"e"</ETag>
    <StorageClass>GLACIER</StorageClass><Owner><ID>i</ID></Owner></Version>
  <Version><Key>a%20+</Key><VersionId>v1</VersionId><IsLatest>false</IsLatest><Size>3</Size>
    <LastModified>2024-01-01T00:00:00Z</LastModified><ETag>"f"</ETag></Version>
  <DeleteMarker><Key>a%20+</Key><VersionId>null</VersionId><IsLatest>true</IsLatest>
    <LastModified>2024-01-02T03:04:05Z</LastModified></DeleteMarker>
  <CommonPrefixes><Prefix>c%20d/</Prefix></CommonPrefixes>
</ListVersionsResult>"""


def test_versions():
    page = requests.list_object_versions("bucket").result(ok(VERSION_PAGE))
    assert page.versions == [
        ObjectVersion("a  ", "null", True, 1704164645, is_delete_marker=True),
        ObjectVersion("a  ", "v1", False, 1704067200, '"f"', 3),
        ObjectVersion("b\n", "v2", True, 1704164645, '"e"', 5, "GLACIER"),
    ]
    assert page.common_prefixes == ["c d/"]
    assert page.next_marker == ("b +", "v9")
    plain = VERSION_PAGE.replace("<EncodingType>url</EncodingType>", "").replace(
        ">true</IsTr", ">false</IsTr"
    )
    page = requests.list_object_versions("bucket").result(ok(plain))
    assert [one.key for one in page.versions] == ["a%20+", "a%20+", "b%0A"]
    assert page.next_marker is None


def test_uploads():
    body = f"""<ListMultipartUploadsResult{NAMESPACE}>
      <EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
      <NextKeyMarker>a%20b</NextKeyMarker><NextUploadIdMarker>u9</NextUploadIdMarker>
      <Upload><Key>a%20b</Key><UploadId>u1</UploadId><Initiated>2024-01-02T03:04:05Z</Initiated>
        <StorageClass>STANDARD</StorageClass></Upload>
      <Upload><Key>a%20b</Key><UploadId>u2</UploadId><Initiated>2024-01-02T03:04:05</Initiated></Upload>
    </ListMultipartUploadsResult>"""
    page = requests.list_multipart_uploads("bucket").result(ok(body))
    assert page.uploads == [
        UploadInfo("a b", "u1", 1704164645, "STANDARD"),
        UploadInfo("a b", "u2", 1704164645),
    ]
    assert page.next_marker == ("a b", "u9")


def test_parts():
    """S3 names the last part on the last page, too."""
    part = "<Part><PartNumber>{0}</PartNumber><Size>5</Size><ETag>e{0}</ETag>{1}</Part>"
    crc = "<ChecksumCRC32>AAAAAA==</ChecksumCRC32><ChecksumOther>x</ChecksumOther>"
    body = "<ListPartsResult{}><NextPartNumberMarker>7</NextPartNumberMarker>{}{}</ListPartsResult>"
    listed = part.format(2, crc) + part.format(7, "")
    more = "<IsTruncated>true</IsTruncated>"
    request = requests.list_parts(UPLOAD, max_parts=2, marker="1")
    assert request.query == "max-parts=2&part-number-marker=1&uploadId=u"
    parts, marker = request.result(ok(body.format(NAMESPACE, more, listed)))
    assert parts == [StoredPart(2, 5, "e2", {"CRC32": "AAAAAA=="}), StoredPart(7, 5, "e7")]
    assert marker == "7"
    end = "<IsTruncated>false</IsTruncated>"
    assert request.result(ok(body.format(NAMESPACE, end, listed)))[1] is None
    with pytest.raises(ServerError, match="where this page began"):
        requests.list_parts(UPLOAD, marker="7").result(ok(body.format(NAMESPACE, more, listed)))


@pytest.mark.parametrize("body", ["", "no XML", "<Other/>", "<ListBucketResult>"], ids=repr)
def test_what_is_no_page_is_an_error(body):
    for request in (
        requests.list_objects("bucket"),
        requests.list_object_versions("bucket"),
        requests.list_multipart_uploads("bucket"),
        requests.list_parts(UPLOAD),
    ):
        with pytest.raises(ServerError, match="no List.*Result"):
            request.result(ok(body))


LISTINGS = [
    (requests.list_objects, "ListBucketResult", "NextContinuationToken", "continuation_token"),
    (requests.list_object_versions, "ListVersionsResult", "NextKeyMarker", "marker"),
    (requests.list_multipart_uploads, "ListMultipartUploadsResult", "NextKeyMarker", "marker"),
]


@pytest.mark.parametrize(("ask", "root", "element", "argument"), LISTINGS)
def test_a_listing_ends_when_the_store_says_so(ask, root, element, argument):
    def following(facts, asked=None):
        page = ask("bucket", **{argument: asked}).result(ok(f"<{root}>{facts}</{root}>"))
        return getattr(page, "next_marker", None) or getattr(page, "continuation_token", None)

    more, marker = "<IsTruncated>true</IsTruncated>", f"<{element}>m</{element}>"
    known = "m" if ask is requests.list_objects else ("m", "")
    assert following(more + marker) == known
    # Some leave out what is false.
    assert following(marker) == known
    assert following("") is None
    # Of a full page nobody knows, and what is a marker of another version of the operation tells no end.
    entry = "<CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>"
    most = "MaxUploads" if ask is requests.list_multipart_uploads else "MaxKeys"
    assert following(f"<{most}>2</{most}>{entry}") is None
    for facts in (f"<{most}>2</{most}>{entry}{entry}", 1000 * entry, f"<{most}>0</{most}>"):
        with pytest.raises(ServerError, match="whether the listing goes on"):
            following(facts)
    with pytest.raises(ServerError, match="does not say where"):
        following("<NextMarker>m</NextMarker>")
    assert following("<IsTruncated>False</IsTruncated>" + 1000 * entry) is None
    assert following("<IsTruncated>false</IsTruncated>" + marker) is None
    with pytest.raises(ServerError, match="does not say where"):
        following(more)
    with pytest.raises(ServerError, match="where this page began"):
        following(more + marker, asked=known)
    with pytest.raises(ServerError, match="IsTruncated"):
        following("<IsTruncated>perhaps</IsTruncated>")


def pages_with(entry):
    """Pages with one entry, of each listing, and what they answer."""
    return [
        (
            requests.list_objects("bucket"),
            f"<ListBucketResult><Contents>{entry}</Contents></ListBucketResult>",
        ),
        (
            requests.list_object_versions("bucket"),
            f"<ListVersionsResult><Version>{entry}</Version></ListVersionsResult>",
        ),
        (
            requests.list_multipart_uploads("bucket"),
            f"<ListMultipartUploadsResult><Upload>{entry}</Upload></ListMultipartUploadsResult>",
        ),
    ]


@pytest.mark.parametrize("wrong", ["-1", "1.5", "1e9", "", "x", "9" * 30, "9" * 5000, "²"])
def test_a_size_is_a_number(wrong):
    entry = f"<Size>{wrong}</Size><Key>k</Key><LastModified>2024-01-02T03:04:05Z</LastModified>"
    for request, page in pages_with(entry)[:2]:
        with pytest.raises(ServerError, match="Size"):
            request.result(ok(page))


@pytest.mark.parametrize("wrong", ["", "soon", "2024-13-45"])
def test_a_time_is_a_time(wrong):
    times = f"<LastModified>{wrong}</LastModified><Initiated>{wrong}</Initiated>"
    for request, page in pages_with(f"<Key>k</Key><Size>1</Size><UploadId>u</UploadId>{times}"):
        with pytest.raises(ServerError, match="time|LastModified|Initiated"):
            request.result(ok(page))


def test_a_length_that_is_told_twice_is_one():
    for told, size in (("4, 4", 4), ("4,4", 4)):
        assert requests.head_object("bucket", "key").result(ok(content_length=told)).size == size
    with pytest.raises(ServerError, match="Content-Length"):
        requests.head_object("bucket", "key").result(ok(content_length="4, 5"))


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), max_size=9))
def test_keys_that_xml_cannot_hold_come_quoted(keys):
    from urllib.parse import quote

    entries = "".join(
        f"<Contents><Key>{quote(key, safe='/')}</Key><Size>1</Size>"
        "<LastModified>2024-01-02T03:04:05Z</LastModified></Contents>"
        for key in keys
    )
    body = f"<ListBucketResult{NAMESPACE}><EncodingType>url</EncodingType>{entries}</ListBucketResult>"
    page = requests.list_objects("bucket").result(ok(body))
    assert [info.key for info in page.object_info] == keys
    assert page.continuation_token is None
    # Some stores do not know the quoting that is asked for, and do not say that they have done it.
    plain = requests.list_objects("bucket").result(ok(body.replace("<EncodingType>url</EncodingType>", "")))
    assert [info.key for info in plain.object_info] == [quote(key, safe="/") for key in keys]

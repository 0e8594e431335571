"""Operations as values: what each asks, compared with botocore's serializer."""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import parse_qsl, quote
from xml.etree import ElementTree as ET

import pytest
from botocore.serialize import create_serializer
from botocore.session import get_session
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core import requests
from s3torch.core.errors import ConfigurationError
from s3torch.core.models import BucketEndpoint, CompletedPart, MultipartUpload, PutOptions
from s3torch.core.ranges import ByteRange
from s3torch.core.transports import request_target

ENDPOINT = BucketEndpoint("https", "bucket.s3.example.com", "/", "us-east-1")
UPLOAD = MultipartUpload("bucket", "a/k +ü", "id/+=")
PART = CompletedPart(1, '"e1"', "AAAAAA==")
RANGE = ByteRange(5, 9)
OPTIONS = PutOptions(
    content_type="text/x-test", metadata={"a": "1"}, tags={"t": "x y&z"}, storage_class="STANDARD_IA"
)

texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)
# What may be in XML, and what a parser leaves as it is only where it is escaped.
in_xml = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\t\n\r<&>\"'"), min_size=1)


@pytest.fixture(scope="module")
def model():
    return get_session().get_service_model("s3")


def asked_of_botocore(model, operation, **parameters):
    """Method, path, query and headers that botocore sends, the path without the bucket."""
    shape = model.operation_model(operation)
    asked = create_serializer("rest-xml", include_validation=False).serialize_to_request(parameters, shape)
    path, _, query = asked["url_path"].partition("?")
    pairs = dict(parse_qsl(query, keep_blank_values=True))
    found = asked["query_string"]
    pairs |= {name: _text(value) for name, value in (found.items() if isinstance(found, dict) else found)}
    headers = {name.lower(): _text(value) for name, value in asked["headers"].items()}
    return asked["method"], "/" + path.split("/", 2)[-1].removeprefix("bucket"), pairs, headers


def _text(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def asked_by_us(request):
    """The same of a request, as it goes over the wire."""
    # Not urlsplit, which takes what follows "//" for a host.
    path, _, query = request_target(request, ENDPOINT).partition("?")
    pairs = dict(parse_qsl(query, keep_blank_values=True))
    assert list(pairs) == sorted(pairs), "signatures are over the sorted query"
    assert query == "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs.items())
    return request.method, path, pairs, {name.lower(): value for name, value in request.headers}


SOURCE = {"CopySource": "from/a%20b"}
PLACE = {"Bucket": "bucket", "Key": UPLOAD.key}
IN_UPLOAD = {**PLACE, "UploadId": UPLOAD.upload_id}
STORED = {
    "ContentType": "text/x-test",
    "Metadata": {"a": "1"},
    "Tagging": "t=x%20y%26z",
    "StorageClass": "STANDARD_IA",
}
CASES = [
    (
        requests.get_object("bucket", UPLOAD.key, byte_range=RANGE, if_match='"e"', version_id="v+"),
        {**PLACE, "Range": "bytes=5-8", "IfMatch": '"e"', "VersionId": "v+"},
    ),
    (requests.get_object("bucket", UPLOAD.key), {**PLACE, "ChecksumMode": "ENABLED"}),
    (
        requests.head_object("bucket", UPLOAD.key, version_id="v"),
        {**PLACE, "ChecksumMode": "ENABLED", "VersionId": "v"},
    ),
    (
        requests.head_first_part("bucket", UPLOAD.key, version_id="v"),
        {**PLACE, "PartNumber": 1, "VersionId": "v"},
    ),
    (
        requests.list_part_sizes("bucket", UPLOAD.key, version_id="v"),
        {**PLACE, "ObjectAttributes": ["ObjectParts"], "VersionId": "v"},
    ),
    (
        requests.put_object("bucket", UPLOAD.key, options=OPTIONS, checksum=("CRC64NVME", "AAAAAAAAAAA=")),
        {**PLACE, **STORED, "ChecksumCRC64NVME": "AAAAAAAAAAA="},
    ),
    (
        requests.put_object("bucket", UPLOAD.key, options=PutOptions(if_none_match="*")),
        {**PLACE, "IfNoneMatch": "*"},
    ),
    (requests.delete_object("bucket", UPLOAD.key, version_id="v1"), {**PLACE, "VersionId": "v1"}),
    (
        requests.copy_object("from", "a b", "bucket", UPLOAD.key, if_match='"e"'),
        {**PLACE, **SOURCE, "CopySourceIfMatch": '"e"'},
    ),
    (
        requests.copy_object("from", "a b", "bucket", UPLOAD.key, version_id="v+", options=OPTIONS),
        {
            **PLACE,
            **STORED,
            "CopySource": "from/a%20b?versionId=v%2B",
            "MetadataDirective": "REPLACE",
            "TaggingDirective": "REPLACE",
        },
    ),
    (requests.get_object_tagging("bucket", UPLOAD.key, version_id="v"), {**PLACE, "VersionId": "v"}),
    (
        requests.put_object_tagging("bucket", UPLOAD.key, {"a": "b"}, version_id="v"),
        {**PLACE, "VersionId": "v"},
    ),
    (requests.list_buckets(continuation_token="t+"), {"ContinuationToken": "t+"}),
    (
        requests.create_multipart_upload(
            "bucket", UPLOAD.key, options=OPTIONS, checksum_algorithm="CRC64NVME"
        ),
        {**PLACE, **STORED, "ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"},
    ),
    (
        requests.upload_part(UPLOAD, 3, checksum=("SHA256", "AAAA")),
        {**IN_UPLOAD, "PartNumber": 3, "ChecksumSHA256": "AAAA"},
    ),
    (
        requests.upload_part_copy(UPLOAD, 2, "from", "a b", byte_range=RANGE),
        {**IN_UPLOAD, **SOURCE, "PartNumber": 2, "CopySourceRange": "bytes=5-8"},
    ),
    (
        requests.complete_multipart_upload(
            UPLOAD, [PART], options=PutOptions(if_match='"o"'), checksum=("SHA256", "AAAA-1")
        ),
        {**IN_UPLOAD, "IfMatch": '"o"', "ChecksumSHA256": "AAAA-1", "ChecksumType": "COMPOSITE"},
    ),
    (requests.abort_multipart_upload(UPLOAD), IN_UPLOAD),
    (requests.delete_objects("bucket", [("k", None)]), {"Bucket": "bucket"}),
    (
        requests.list_objects("bucket", prefix="p q", delimiter="/", max_keys=7, continuation_token="t+"),
        {
            "Bucket": "bucket",
            "Prefix": "p q",
            "Delimiter": "/",
            "MaxKeys": 7,
            "ContinuationToken": "t+",
            "EncodingType": "url",
            "OptionalObjectAttributes": ["RestoreStatus"],
        },
    ),
    (
        requests.list_objects("bucket", start_after="a+b"),
        {
            "Bucket": "bucket",
            "Prefix": "",
            "MaxKeys": 1000,
            "StartAfter": "a+b",
            "EncodingType": "url",
            "OptionalObjectAttributes": ["RestoreStatus"],
        },
    ),
    (
        requests.list_object_versions("bucket", prefix="p", delimiter="/", marker=("k ü", "v")),
        {
            "Bucket": "bucket",
            "Prefix": "p",
            "Delimiter": "/",
            "MaxKeys": 1000,
            "KeyMarker": "k ü",
            "VersionIdMarker": "v",
            "EncodingType": "url",
        },
    ),
    (
        requests.list_multipart_uploads("bucket", prefix="p", max_uploads=9, marker=("k ü", "u")),
        {
            "Bucket": "bucket",
            "Prefix": "p",
            "MaxUploads": 9,
            "KeyMarker": "k ü",
            "UploadIdMarker": "u",
            "EncodingType": "url",
        },
    ),
    (
        requests.list_parts(UPLOAD, max_parts=9, marker="7"),
        {
            "Bucket": UPLOAD.bucket,
            "Key": UPLOAD.key,
            "UploadId": UPLOAD.upload_id,
            "MaxParts": 9,
            "PartNumberMarker": "7",
        },
    ),
]


@pytest.mark.parametrize(
    ("request_", "parameters"),
    CASES,
    ids=[f"{request.operation}-{number}" for number, (request, _) in enumerate(CASES)],
)
def test_it_is_what_botocore_asks(model, request_, parameters):
    method, path, query, headers = asked_of_botocore(model, request_.operation, **parameters)
    ours = asked_by_us(request_)
    assert ours[:3] == (method, path, query)
    # These two belong to the content, which botocore adds elsewhere.
    own = {name: value for name, value in ours[3].items() if not request_.content or name[:8] != "content-"}
    assert own == headers


def test_every_operation_is_compared_and_known(model):
    makers = set(requests.__all__) - {
        "Answer",
        "Request",
        "StoredPart",
        "announced_length",
        "body_of",
        "common_headers",
        "get_headers",
        "request_headers",
        "request_target",
        "same_etag",
    }
    # Two of them ask with a HEAD.
    assert len({request.operation for request, _ in CASES}) == len(makers) - 1
    assert {request.operation for request, _ in CASES} <= set(model.operation_names)


@given(key=texts, version=st.none() | texts)
def test_keys_and_versions_are_quoted_as_botocore_quotes_them(key, version):
    model = get_session().get_service_model("s3")
    told = {} if version is None else {"VersionId": version}
    # The serializer leaves the path to the endpoint's rules, so it is quoted here.
    _, _, query, _ = asked_of_botocore(model, "GetObject", Bucket="bucket", Key="k", **told)
    _, path, ours, _ = asked_by_us(requests.get_object("bucket", key, version_id=version))
    assert path == "/" + quote(key, safe="/~")
    assert ours == query


@given(source=texts, version=st.none() | texts)
def test_the_source_of_a_copy_is_quoted(source, version):
    headers = dict(requests.copy_object("from", source, "bucket", "key", version_id=version).headers)
    expected = quote(f"from/{source}", safe="/~")
    if version is not None:
        expected += f"?versionId={quote(version, safe='')}"
    assert headers["x-amz-copy-source"] == expected


def test_the_source_of_a_copy_may_be_behind_an_access_point():
    arn = "arn:aws:s3:us-west-2:123456789012:accesspoint/mine"
    headers = dict(requests.copy_object(arn, "a b", "bucket", "key").headers)
    assert headers["x-amz-copy-source"] == quote(f"{arn}/object/a b", safe="/~")


@given(st.lists(st.tuples(in_xml, st.none() | texts), max_size=20))
def test_a_list_of_keys_is_read_as_it_was_written(targets):
    request = requests.delete_objects("bucket", targets)
    root = ET.fromstring(request.content)
    namespace = "{http://s3.amazonaws.com/doc/2006-03-01/}"
    assert root.tag == f"{namespace}Delete"
    assert root.findtext(f"{namespace}Quiet") == "true"
    found = [
        (one.findtext(f"{namespace}Key"), one.findtext(f"{namespace}VersionId"))
        for one in root.findall(f"{namespace}Object")
    ]
    assert found == targets
    digest = base64.b64encode(hashlib.md5(request.content).digest()).decode()
    assert dict(request.headers)["Content-MD5"] == digest


def test_more_keys_than_one_request_deletes():
    requests.delete_objects("bucket", [("k", None)] * 1000)
    with pytest.raises(ConfigurationError, match="1000.*1001"):
        requests.delete_objects("bucket", [("k", None)] * 1001)


def test_the_parts_of_an_upload_are_listed_in_order():
    parts = [CompletedPart(1, '"<e&1>"', "AAAA"), CompletedPart(2, 'W/"e2"')]
    request = requests.complete_multipart_upload(
        UPLOAD, parts, options=PutOptions(), checksum=("CRC32C", "BBBB")
    )
    namespace = "{http://s3.amazonaws.com/doc/2006-03-01/}"
    found = [
        [(fact.tag.removeprefix(namespace), fact.text) for fact in part]
        for part in ET.fromstring(request.content)
    ]
    assert found == [
        [("PartNumber", "1"), ("ETag", '"<e&1>"'), ("ChecksumCRC32C", "AAAA")],
        [("PartNumber", "2"), ("ETag", '"e2"')],
    ]
    assert dict(request.headers) == {"x-amz-checksum-crc32c": "BBBB", "x-amz-checksum-type": "FULL_OBJECT"}


def test_only_objects_stream_and_only_ranges_are_ranges():
    assert [request.operation for request, _ in CASES if request.streams] == ["GetObject"] * 2
    assert [request.byte_range for request, _ in CASES if request.byte_range] == [RANGE]
    assert [request.if_match for request, _ in CASES if request.if_match] == ['"e"']


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        ({"prefix": "a/b"}, "must end in '/'"),
        ({"delimiter": "-"}, "delimiter"),
        ({"start_after": "a"}, "order"),
    ],
)
def test_what_a_directory_bucket_cannot_list(listing, said):
    bucket = "base--use1-az4--x-s3"
    with pytest.raises(ConfigurationError, match=said) as caught:
        requests.list_objects(bucket, **listing)
    assert (caught.value.operation, caught.value.bucket) == ("ListObjectsV2", bucket)
    requests.list_objects(bucket, prefix="a/", delimiter="/")

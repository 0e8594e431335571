"""Whatever a server answers: a result, or an error of ours, for every operation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from s3torch.core import requests
from s3torch.core.errors import S3Error, TruncatedError
from s3torch.core.models import MultipartUpload, PutOptions
from s3torch.core.ranges import ByteRange
from s3torch.core.requests import Answer

UPLOAD = MultipartUpload("bucket", "key", "u")
REQUESTS = [
    requests.abort_multipart_upload(UPLOAD),
    requests.complete_multipart_upload(UPLOAD, [], options=PutOptions()),
    requests.copy_object("from", "key", "bucket", "key"),
    requests.create_multipart_upload("bucket", "key", options=PutOptions()),
    requests.delete_object("bucket", "key"),
    requests.delete_objects("bucket", [("k", None)]),
    requests.get_object("bucket", "key"),
    requests.get_object("bucket", "key", byte_range=ByteRange(0, 9)),
    requests.get_object("bucket", "key", byte_range=ByteRange(5, 9)),
    requests.get_object_tagging("bucket", "key"),
    requests.head_first_part("bucket", "key"),
    requests.head_object("bucket", "key"),
    requests.list_part_sizes("bucket", "key"),
    requests.list_buckets(),
    requests.list_multipart_uploads("bucket"),
    requests.list_object_versions("bucket"),
    requests.list_objects("bucket"),
    requests.list_parts(UPLOAD),
    requests.put_object("bucket", "key", options=PutOptions()),
    requests.put_object_tagging("bucket", "key", {}),
    requests.upload_part(UPLOAD, 2),
    requests.upload_part_copy(UPLOAD, 2, "from", "key", byte_range=ByteRange(0, 9)),
]
ROOTS = st.sampled_from(
    [
        "CompleteMultipartUploadResult",
        "CopyObjectResult",
        "CopyPartResult",
        "DeleteResult",
        "Error",
        "GetObjectAttributesResponse",
        "InitiateMultipartUploadResult",
        "ListBucketResult",
        "ListMultipartUploadsResult",
        "ListPartsResult",
        "ListVersionsResult",
        "Tagging",
        "html",
    ]
)
ENTRIES = [
    "CommonPrefixes",
    "Contents",
    "DeleteMarker",
    "Error",
    "ObjectParts",
    "Part",
    "Tag",
    "TagSet",
    "Upload",
    "Version",
]
FACTS = [
    "Code",
    "ETag",
    "EncodingType",
    "Initiated",
    "IsRestoreInProgress",
    "IsTruncated",
    "Key",
    "LastModified",
    "NextContinuationToken",
    "NextKeyMarker",
    "NextPartNumberMarker",
    "PartNumber",
    "Prefix",
    "RestoreExpiryDate",
    "RestoreStatus",
    "Size",
    "UploadId",
    "VersionId",
]
TIMES = ["2024-01-02T03:04:05Z", "0001-01-01T00:00:00+23:59", "Tue, 02 Jan 2024 03:04:05 GMT"]
VALUES = st.one_of(
    st.sampled_from(["true", "false", "url", "1", "-1", "1e999", "%", "9" * 19, "9" * 5000, "²", *TIMES]),
    st.text("aé%+\t -0", max_size=5),
)
ELEMENTS = st.recursive(
    st.builds("<{0}>{1}</{0}>".format, st.sampled_from(FACTS), VALUES),
    lambda inner: st.builds(
        lambda name, children: f"<{name}>{''.join(children)}</{name}>",
        st.sampled_from(ENTRIES),
        st.lists(inner, max_size=5),
    ),
    max_leaves=12,
)
DOCUMENTS = st.builds(
    lambda name, children: f"<{name}>{''.join(children)}</{name}>".encode(),
    ROOTS,
    st.lists(ELEMENTS, max_size=5),
)
BODIES = st.one_of(
    st.binary(max_size=40),
    DOCUMENTS,
    st.builds(lambda document, stop: document[:stop], DOCUMENTS, st.integers(0, 300)),
    st.builds(
        "<?xml version='1.0' encoding='{}'?><{}/>".format,
        st.sampled_from(["foo", "utf-16", "utf-7", "shift_jis", "idna"]),
        ROOTS,
    ).map(str.encode),
    st.integers(0, 20_000).map(lambda depth: b"<ListBucketResult>" + b"<a>" * depth),
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "content-length",
            "content-range",
            "etag",
            "expires",
            "last-modified",
            "x-amz-checksum-crc32",
            "x-amz-checksum-type",
            "x-amz-meta-a",
            "x-amz-restore",
            "x-amz-tagging-count",
        ]
    ),
    st.one_of(
        VALUES,
        st.sampled_from(
            [
                "4, 4",
                "Mon, 01 Jan 99999 00:00:00 GMT",
                "bytes */9",
                "bytes 0-8/*",
                "bytes 0-8/9",
                'ongoing-request="false", expiry-date="x"',
            ]
        ),
    ),
)


@given(st.sampled_from(REQUESTS), st.sampled_from([200, 204, 206, 404, 416]), HEADERS, BODIES)
def test_it_is_a_result_or_an_error_of_ours(request_, status, headers, body):
    try:
        request_.result(Answer(status, headers, body, len(body)))
    except S3Error as error:
        assert isinstance(error, TruncatedError) or error.status == status  # noqa: PT017

"""What observers are told of the requests of an observed transport."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from s3torch.core import NotFoundError, requests
from s3torch.core.models import MultipartUpload, PutOptions
from s3torch.core.observers._observed import Observations, ObservedTransport
from s3torch.core.ranges import ByteRange
from s3torch.testing.transport_tests import TransportCalls

UPLOAD = MultipartUpload("b", "k", "an/id +")


class Answering:
    """A transport whose transfers have ended when they are returned."""

    closed = False

    def __init__(self):
        self.outcomes = {}

    def send(self, request, *, body=None, into=None):
        transfer = Future()
        outcome = self.outcomes.get(request.operation)
        if isinstance(outcome, Exception):
            transfer.set_exception(outcome)
        else:
            transfer.set_result(outcome)
        return transfer

    def close(self):
        self.closed = True


def test_what_requests_are_about(diary):
    bare = Answering()
    bare.outcomes = {"CopyObject": NotFoundError(bucket="from", key="key"), "ListObjectsV2": ["page"]}
    transport = TransportCalls(ObservedTransport(bare, Observations()))
    transport.upload_part_copy(UPLOAD, 3, "from", "key", byte_range=ByteRange(0, 9))
    assert transport.list_objects("b", prefix="p") == ["page"]
    with pytest.raises(NotFoundError):
        transport.copy_object("from", "key", "b", "k")
    transport.upload_part(UPLOAD, 4, memoryview(b"bytes")).result(0)
    transport.abort_multipart_upload(UPLOAD).result(0)
    transport.close()
    assert bare.closed
    about = [(each.operation, each.bucket, each.key, each.upload_id) for each, _ in diary.of("started")]
    assert about == [
        ("UploadPartCopy", "b", "k", "an/id +"),
        ("ListObjectsV2", "b", None, None),
        ("CopyObject", "b", "k", None),
        ("UploadPart", "b", "k", "an/id +"),
        ("AbortMultipartUpload", "b", "k", "an/id +"),
    ]
    errors = [type(end.error) for _, end in diary.of("ended")]
    assert errors == [type(None), type(None), NotFoundError, type(None), type(None)]
    assert [each.part_number for each, _ in diary.of("started")] == [3, None, None, 4, None]
    assert [each.size for each, _ in diary.of("started")] == [None, None, None, 5, None]


def test_a_list_of_keys_is_no_object_that_is_moved(diary):
    bare = Answering()
    bare.outcomes = {"CreateMultipartUpload": UPLOAD, "DeleteObjects": []}
    transport = ObservedTransport(bare, Observations())
    transport.send(requests.delete_objects("b", [("k", None)])).result(0)
    transport.send(requests.create_multipart_upload("b", "k", options=PutOptions())).result(0)
    assert diary.of("progressed") == []
    assert [(end.nbytes, end.upload_id) for _, end in diary.of("ended")] == [(0, None), (0, "an/id +")]

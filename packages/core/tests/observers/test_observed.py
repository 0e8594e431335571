"""Control planes that can more than they owe, while somebody listens."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import pytest
from botocore.session import get_session
from s3torch.core.control import BotoControl
from s3torch.core.observers._observations import Observations

from s3torch.core import NotFoundError
from s3torch.core.models import MultipartUpload
from s3torch.core.observers._observed import ObservedControl, operation_of


@runtime_checkable
class SupportsCopies(Protocol):
    def upload_part_copy(self, upload, number, src_bucket, src_key): ...


@runtime_checkable
class SupportsMagic(Protocol):
    def conjure(self): ...


class Plane:
    closed = False

    def upload_part_copy(self, upload, number, src_bucket, src_key):
        return number, src_bucket, src_key

    def copy_object(self, src_bucket, src_key, dst_bucket, dst_key):
        raise NotFoundError(bucket=src_bucket, key=src_key)

    def list_objects(self, bucket, *, prefix=""):
        return [prefix]

    def close(self):
        self.closed = True


def test_operations_have_the_names_of_s3():
    known = set(get_session().get_service_model("s3").operation_names)
    names = [name for name in vars(BotoControl) if not name.startswith("_") and name != "close"]
    assert len(names) >= 10
    assert [name for name in names if operation_of(name) not in known] == []


def test_abilities_stay_what_they_are(diary):
    plane = Plane()
    control = ObservedControl(plane, Observations())
    assert isinstance(control, SupportsCopies)
    assert not isinstance(control, SupportsMagic)
    upload = MultipartUpload("b", "k", "id")
    assert control.upload_part_copy(upload, 3, "from", "key") == (3, "from", "key")
    assert control.list_objects("b", prefix="p") == ["p"]
    with pytest.raises(NotFoundError):
        control.copy_object("from", "key", dst_bucket="b", dst_key="k")
    control.close()
    assert plane.closed
    about = [(each.operation, each.bucket, each.key, each.upload_id) for each, _ in diary.of("started")]
    assert about == [
        ("UploadPartCopy", "b", "k", "id"),
        ("ListObjectsV2", "b", None, None),
        ("CopyObject", "b", "k", None),
    ]
    assert [type(end.error) for _, end in diary.of("ended")] == [type(None), type(None), NotFoundError]
    assert diary.of("started", "UploadPartCopy")[0][0].part_number == 3

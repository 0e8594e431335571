"""Values: picklable, comparable, with the public attributes of the surface."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime

import pytest

from s3torch.core import (
    Credentials,
    DeleteFailure,
    HeadObjectResult,
    ListObjectResult,
    ObjectInfo,
    PutOptions,
    RestoreStatus,
    S3BucketKeyData,
)
from s3torch.core.errors import ConfigurationError
from s3torch.core.models import BucketEndpoint, CompletedPart, GetResult, MultipartUpload, PutResult

INFO = ObjectInfo("k", '"etag"', 5, 1_700_000_000, "STANDARD", RestoreStatus(False, 1_800_000_000))
HEAD = HeadObjectResult('"etag"', 5, 1_700_000_000, metadata={"a": "b"}, checksums={"CRC32": "x"})
VALUES = [
    INFO,
    HEAD,
    RestoreStatus(True),
    ListObjectResult([INFO], ["p/"], "token"),
    S3BucketKeyData("b", "k", INFO),
    Credentials("a", "s", "t", datetime(2030, 1, 1, tzinfo=UTC)),
    BucketEndpoint("https", "b.s3.amazonaws.com", "/", "us-east-1"),
    GetResult(HEAD, 5, b"12345"),
    PutOptions(storage_class="GLACIER", metadata={"a": "b"}, if_none_match="*"),
    PutResult('"etag"', "v1"),
    MultipartUpload("b", "k", "id"),
    CompletedPart(1, '"etag"', "crc"),
    DeleteFailure("k", "AccessDenied", "no"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_can_be_pickled(value):
    assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize(
    "value", [v for v in VALUES if not isinstance(v, ListObjectResult)], ids=lambda v: type(v).__name__
)
def test_values_can_be_hashed(value):
    assert hash(value) == hash(pickle.loads(pickle.dumps(value)))


@pytest.mark.parametrize(
    "value", [v for v in VALUES if not isinstance(v, tuple)], ids=lambda v: type(v).__name__
)
def test_values_are_frozen(value):
    name = next(iter(type(value).__dataclass_fields__))
    with pytest.raises(AttributeError):
        setattr(value, name, None)


def test_positional_arguments_come_in_the_order_of_the_surface():
    assert ObjectInfo("k", "e", 1, 2) == ObjectInfo(key="k", etag="e", size=1, last_modified=2)
    assert HeadObjectResult("e", 1, 2) == HeadObjectResult(etag="e", size=1, last_modified=2)
    assert (INFO.storage_class, INFO.restore_status.expiry) == ("STANDARD", 1_800_000_000)
    assert (RestoreStatus(True).in_progress, RestoreStatus(True).expiry) == (True, None)
    bucket, key, info = S3BucketKeyData("b", "k")
    assert (bucket, key, info) == ("b", "k", None)


def test_an_end_of_credentials_needs_a_time_zone():
    with pytest.raises(ConfigurationError, match="expires_at"):
        Credentials("a", "s", expires_at=datetime(2030, 1, 1))  # noqa: DTZ001

"""Errors: one class catches both, and the texts are those that programs compare."""

from __future__ import annotations

import copy
import pickle

import pytest

import s3torch.core
from s3torch.core import S3ClientConfig as CoreConfig
from s3torch.core import errors
from s3torchconnector import S3Checkpoint, S3ClientConfig, S3Exception
from s3torchconnector._error_texts import with_old_text
from s3torchconnector._s3client import MockS3Client, S3Client

MIB = 1024 * 1024


@pytest.fixture
def mock():
    with MockS3Client("us-east-1", "bucket") as client:
        yield client


@pytest.fixture(params=["memory", "seaweedfs"])
def client(request):
    """A client and the bucket that it reaches."""
    if request.param == "memory":
        with MockS3Client("us-east-1", "bucket") as client:
            yield client, "bucket"
        return
    folder = request.getfixturevalue("folder")
    with S3Client("us-east-1") as client:
        yield client, folder.removeprefix("s3://").partition("/")[0]


def test_texts_of_what_is_missing(client):
    client, bucket = client
    for call, text in (
        (lambda: client.get_object(bucket, "none").read(), "Service error: The key does not exist"),
        (lambda: client.head_object(bucket, "none"), "Service error: The object was not found"),
        (lambda: client.copy_object(bucket, "none", bucket, "b"), "Service error: The object was not found"),
        (lambda: list(client.list_objects("no-bucket")), "Service error: The bucket does not exist"),
        (lambda: client.get_object("no-bucket", "k").read(), "Service error: The bucket does not exist"),
    ):
        with pytest.raises(S3Exception) as caught:
            call()
        error = caught.value
        assert str(error) == text
        assert isinstance(error, errors.NotFoundError)
        assert isinstance(error, FileNotFoundError)
        assert error.status == 404
        assert "s3://" in error.__notes__[-1]
        assert error.operation is not None
    with pytest.raises(S3Exception, match="^Client error: Unknown response error: ") as caught:
        client.put_object("no-bucket", "k").close()
    assert caught.value.code == "NoSuchBucket"


def test_writing_without_permission(seaweedfs, folder, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(S3Exception, match="^Client error: Forbidden: ") as caught:
        S3Checkpoint(region=seaweedfs.region).writer(f"{folder}/a").close()
    assert isinstance(caught.value, PermissionError)
    assert caught.value.code == "SignatureDoesNotMatch"


def test_no_credentials(seaweedfs, folder, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(S3Exception) as caught:
        S3Checkpoint(region=seaweedfs.region).reader(f"{folder}/a").read()
    assert str(caught.value) == "Client error: No signing credentials available, see CRT debug logs"
    assert any("AWS_ACCESS_KEY_ID" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.ThrottledError("x", status=503), "Client error: Request throttled"),
        (errors.TransferCancelledError("x"), "Client error: Request canceled"),
        (errors.AccessDeniedError("x", operation="HeadObject"), "Client error: Forbidden: <no message>"),
        (errors.NotFoundError("x", code="NoSuchUpload"), "Client error: x [NoSuchUpload]"),
        (errors.ServerError("x", status=500), "Client error: x [500]"),
    ],
)
def test_texts_by_class(error, text):
    same = with_old_text(error)
    assert str(same) == text
    assert isinstance(same, type(error))
    assert with_old_text(same) is same
    assert not hasattr(error, "__notes__")


def test_the_expected_region_is_named():
    error = errors.error_from_response(operation="GetObject", bucket="b", status=301, region="eu-west-1")
    same = with_old_text(error)
    assert str(same) == "Client error: Wrong region (expecting eu-west-1)"
    assert same.expected_region == "eu-west-1"


@pytest.mark.promise(5)
@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error")])
def test_every_error_survives_processes(name):
    error = with_old_text(getattr(errors, name)("why", operation="GetObject", bucket="b", key="k", status=1))
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(same) is type(error)
        assert str(same) == str(error)
        assert same.__dict__ == error.__dict__
    # DataLoader makes a new one of the text alone.
    assert str(type(error)("Caught something")) == "Caught something"


@pytest.mark.parametrize("part_size", [5 * MIB - 1, 5 * 1024**3 + 1, 0, -1])
def test_a_wrong_part_size_shows_at_the_first_use(part_size):
    config = S3ClientConfig(part_size=part_size)
    client = S3Client("us-east-1", s3client_config=config)
    with pytest.raises(S3Exception) as caught:
        client.head_object("bucket", "key")
    assert str(caught.value) == "invalid configuration: part size must be at between 5MiB and 5GiB"


def test_configurations():
    config = S3ClientConfig(20.0, 16 * MIB, False, True, 3, "profile")
    assert isinstance(config, CoreConfig)
    assert (config.throughput_target_gbps, config.part_size, config.profile) == (20.0, 16 * MIB, "profile")
    assert hash(config) == hash(pickle.loads(pickle.dumps(config)))
    assert repr(config).startswith("S3ClientConfig(throughput_target_gbps=20.0, part_size=16777216")
    with pytest.raises(ValueError, match="max_attempts"):
        S3ClientConfig(max_attempts=0)
    assert config.wrapped_transport_name is None
    assert S3ClientConfig(transport="http").wrapped_transport_name == "http"


def test_arguments_of_clients(mock):
    with pytest.raises(TypeError):
        S3Client(None)
    assert mock.region == "us-east-1"
    assert mock.user_agent_prefix.startswith("s3torch/")


def test_errors_of_s3torch_are_caught_as_well():
    with pytest.raises(S3Exception):
        s3torch.core.parse_s3_uri("nonsense")


def test_copy_takes_an_encoded_source(mock):
    mock.add_object("a b%/ü", b"1")
    mock.copy_object("bucket", "a%20b%25/%C3%BC", "bucket", "c d")
    assert mock.get_object("bucket", "c d").read() == b"1"
    mock.remove_object("a b%/ü")
    mock.remove_object("a b%/ü")
    pages = list(mock.list_objects("bucket"))
    assert [info.key for page in pages for info in page.object_info] == ["c d"]

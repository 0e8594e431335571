"""Calls as programs make them: by keyword, with clients of their own, and with the texts that they read."""

from __future__ import annotations

import io

import pytest

from s3torch.core import errors
from s3torch.core.observers import TransferCounters, observe
from s3torchconnector import S3Checkpoint, S3ClientConfig, S3IterableDataset, S3MapDataset, S3Writer
from s3torchconnector._error_texts import with_old_text
from s3torchconnector._s3bucket_key_data import S3BucketKeyData
from s3torchconnector._s3client import MockS3Client, S3Client
from s3torchconnector.dcp import S3FileSystem
from s3torchconnector.s3reader import DCPOptimizedS3Reader, ItemRange, RangedS3Reader, SequentialS3Reader

REGION = "us-east-1"


@pytest.fixture
def mock():
    with MockS3Client(REGION, "bucket") as client:
        client.add_object("a%20b", b"percent")
        yield client


class Info:
    size = 100


def stream(start=None, end=None):
    return iter([bytes(range(100))[start or 0 : end]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: SequentialS3Reader(bucket="b", key="k", get_object_info=Info, get_stream=stream),
        lambda: RangedS3Reader("b", "k", Info, stream, buffer_size=0),
        lambda: DCPOptimizedS3Reader("b", "k", [ItemRange(0, 100)], Info, stream),
    ],
    ids=["sequential", "ranged", "planned"],
)
def test_arguments_of_readers_by_name(make):
    reader = make()
    assert reader.read(size=3) == b"\0\1\2"
    buffer = bytearray(2)
    assert reader.readinto(buf=buffer) == 2
    assert buffer == b"\3\4"


def test_the_argument_of_a_writer_by_name():
    with S3Writer(io.BytesIO()) as writer:
        assert writer.write(data=b"abc") == 3


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
def test_a_function_that_finds_the_objects_gets_the_client_of_the_drop_in(cls):
    seen = []

    def find(client):
        seen.append(client)
        return [S3BucketKeyData("bucket", "key")]

    dataset = cls(REGION, find)
    assert [reader.key for reader in dataset] == ["key"]
    assert isinstance(seen[0], S3Client)
    assert "md/dataset#" in seen[0].user_agent_prefix


def test_renaming_with_a_client_that_takes_encoded_sources(mock):
    fs = S3FileSystem(REGION, s3_client=mock)
    fs.rename("s3://bucket/a%20b", "s3://bucket/c%20d")
    assert mock.get_object("bucket", "c%20d").read() == b"percent"
    assert not fs.exists("s3://bucket/a%20b")


def test_what_s3_said_is_all_that_follows_forbidden():
    answer = {"operation": "GetObject", "bucket": "b", "key": "k", "status": 403, "code": "AccessDenied"}
    error = errors.error_from_response(message="Access Denied.", **answer)
    assert str(with_old_text(error)) == "Client error: Forbidden: Access Denied."
    assert str(with_old_text(errors.error_from_response(**answer))) == "Client error: Forbidden: <no message>"


def test_a_bucket_without_a_name(mock):
    with pytest.raises(ValueError, match="Bucket should be specified"):
        mock.get_object("", "key")


def test_a_part_size_that_is_no_number():
    with pytest.raises(TypeError, match="part_size must be an int, got '8'"):
        S3ClientConfig(part_size="8")


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
def test_the_error_for_an_unknown_argument_names_the_class(cls):
    with pytest.raises(TypeError, match=rf"{cls.__name__}.*unexpected keyword argument 'prefech'"):
        cls.from_prefix("s3://bucket/", region=REGION, prefech=3)


def test_checkpoints_save_and_load_under_the_old_name(folder):
    checkpoint = S3Checkpoint(region=REGION)
    checkpoint.save({"epoch": 3}, f"{folder}/a.pt")
    assert checkpoint.load(f"{folder}/a.pt") == {"epoch": 3}


@pytest.mark.parametrize("transport", ["crt", "http"])
def test_observers_see_what_old_classes_move_with_any_transport(folder, transport):
    config = S3ClientConfig(transport=transport)
    with observe(TransferCounters()) as counters:
        checkpoint = S3Checkpoint(REGION, None, config)
        checkpoint.save({"epoch": 3}, f"{folder}/a.pt")
        dataset = S3MapDataset.from_prefix(f"{folder}/", region=REGION, s3client_config=config)
        assert [reader.read(2) for reader in dataset] == [b"PK"]
    counted = counters.snapshot()
    assert counted.of("PutObject").requests == 1
    assert counted.of("GetObject").requests == 1

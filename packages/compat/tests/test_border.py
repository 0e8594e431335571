"""The border to functions of users: readers over them, and constructors with the four arguments."""

from __future__ import annotations

import io
import pickle
from functools import partial

import pytest

from s3torch.core import S3ReaderConstructor as CoreReaderConstructor
from s3torch.core import SequentialS3Reader as CoreSequentialReader
from s3torch.core import parse_s3_uri
from s3torch.testing.faults import Fault
from s3torch.testing.reader_tests import ReaderTests
from s3torchconnector import S3ClientConfig, S3IterableDataset, S3MapDataset, S3ReaderConstructor
from s3torchconnector._s3client import MockS3Client, S3Client
from s3torchconnector.dcp import S3FileSystem
from s3torchconnector.s3reader import (
    GetStreamCallable,
    RangedS3Reader,
    S3ReaderConstructorProtocol,
    SequentialS3Reader,
)
from s3torchconnector.s3reader._source import SourceStream

MIB = 1024 * 1024
REGION = "us-east-1"


class Streams:
    """Functions of a user in place of a client."""

    def __init__(self, data, piece):
        self.data = data
        self.piece = piece
        self.size = len(data)

    def info(self):
        return self

    def stream(self, start=None, end=None):
        wanted = self.data[start:end]
        yield b""
        for begin in range(0, len(wanted), self.piece):
            yield wanted[begin : begin + self.piece]


class TestSequentialOverFunctions(ReaderTests):
    def open_reader(self, data):
        streams = Streams(data, 5)
        return SequentialS3Reader("bucket", "key", streams.info, streams.stream)


class TestRangedOverFunctions(ReaderTests):
    def open_reader(self, data):
        streams = Streams(data, 1)
        return RangedS3Reader("bucket", "key", streams.info, streams.stream, 20)


@pytest.fixture
def client():
    with MockS3Client(REGION, "bucket") as client:
        yield client


@pytest.mark.parametrize("cls", [SequentialS3Reader, RangedS3Reader])
def test_a_bucket_is_needed(cls):
    streams = Streams(b"data", 1)
    with pytest.raises(ValueError, match="Bucket should be specified"):
        cls("", "key", get_object_info=streams.info, get_stream=streams.stream)


def test_constructors_get_four_arguments(client):
    client.add_object("k", b"data")
    made = []

    def constructor(**arguments):
        made.append(sorted(arguments))
        assert isinstance(arguments["get_stream"], GetStreamCallable)
        assert arguments["get_object_info"]().size == 4
        return S3ReaderConstructor.default()(**arguments)

    reader = client.get_object("bucket", "k", reader_constructor=constructor)
    assert isinstance(reader, SequentialS3Reader)
    assert reader.read() == b"data"
    assert made == [["bucket", "get_object_info", "get_stream", "key"]]
    assert S3ReaderConstructor.get_reader_type_string(constructor) == "unknown"


def test_a_stream_gives_a_chunk_for_each_part(client):
    data = bytes(range(256)) * 4096 * 20
    client.add_object("k", data)
    part = client.s3client_config.part_size
    streams = []

    def constructor(bucket, key, get_object_info, get_stream):
        streams.append(get_stream)
        return S3ReaderConstructor.default()(bucket, key, get_object_info, get_stream)

    client.get_object("bucket", "k", reader_constructor=constructor)
    stream = streams[0]()
    chunks = list(stream)
    assert b"".join(chunks) == data
    assert [len(chunk) for chunk in chunks] == [part, part, len(data) - 2 * part]
    assert (stream.bucket, stream.key, stream.tell()) == ("bucket", "k", len(data))
    assert b"".join(streams[0](5, part + 7)) == data[5 : part + 7]
    assert list(streams[0](7, 7)) == []


@pytest.mark.parametrize("transport", ["crt", "http"])
def test_a_stream_goes_on_after_an_error_where_it_ended(folder, seaweedfs, fault_proxy, transport):
    proxy = fault_proxy(seaweedfs)
    part = 5 * MIB
    data = (bytes(range(251)) * (3 * part // 251 + 1))[: 3 * part]
    config = S3ClientConfig(transport=transport, part_size=part, max_attempts=1)
    with S3Client(seaweedfs.region, endpoint=proxy.endpoint, s3client_config=config) as client:
        bucket, key = parse_s3_uri(f"{folder}/k")
        with client.put_object(bucket, key) as writer:
            writer.write(data)
        proxy.add(Fault.error(403, "AccessDenied"), skip=1, times=1, method="GET")
        stream = SourceStream(client.open_ranges(bucket, key))(0, 3 * part - 7)
        found = b""
        errors = 0
        while True:
            try:
                found += next(stream)
            except PermissionError:
                errors += 1
            except StopIteration:
                break
            assert stream.tell() == len(found)
        assert (errors, found) == (1, data[:-7])
        assert list(stream) == []


class Own(io.BytesIO):
    """A reader of a user, which is told bytes by a stream."""

    def __init__(self, bucket, key, get_object_info, get_stream):
        super().__init__(b"".join(get_stream()))
        self.bucket, self.key, self.size = bucket, key, get_object_info().size


@pytest.mark.parametrize(
    "constructor",
    [
        S3ReaderConstructor.sequential(),
        S3ReaderConstructor.sequential(keep_behind=0),
        S3ReaderConstructor.range_based(2),
        S3ReaderConstructor.planned([(0, 2)]),
        CoreReaderConstructor.range_based(2),
        CoreSequentialReader,
        partial(Own),
        Own,
        None,
    ],
)
@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
@pytest.mark.parametrize("options", [{}, {"hedge_after": 5.0}, {"cache_dir": "cache"}])
def test_datasets_take_constructors_of_both_kinds(folder, constructor, cls, options, tmp_path):
    if "cache_dir" in options:
        options = {"cache_dir": tmp_path}
    with S3FileSystem(REGION).create_stream(f"{folder}/k", "wb") as writer:
        writer.write(b"data")
    uris = [f"{folder}/k"]
    dataset = cls.from_objects(uris, region=REGION, reader_constructor=constructor, **options)
    for one in (dataset, pickle.loads(pickle.dumps(dataset))):
        assert [reader.read() for reader in one] == [b"data"]


def test_a_file_system_takes_constructors_of_both_kinds(client):
    client.add_object("k", b"data")
    for constructor, kind in [
        (None, SequentialS3Reader),
        (S3ReaderConstructor.range_based(0), RangedS3Reader),
        (CoreSequentialReader, CoreSequentialReader),
        (Own, Own),
    ]:
        fs = S3FileSystem(REGION, s3_client=client, reader_constructor=constructor)
        with fs.create_stream("s3://bucket/k", "rb") as reader:
            assert isinstance(reader, kind)
            assert reader.read() == b"data"


def test_constructors_are_of_the_protocol():
    for constructor in (S3ReaderConstructor.default(), S3ReaderConstructor.range_based(5), Own):
        assert isinstance(constructor, S3ReaderConstructorProtocol)
    name = S3ReaderConstructor.get_reader_type_string
    assert name(S3ReaderConstructor.range_based(5)) == "range_based"
    assert name(S3ReaderConstructor.default()) == name(SequentialS3Reader) == name(None) == "sequential"
    stream = pickle.loads(pickle.dumps(S3ReaderConstructor.range_based(5)))
    assert stream("b", "k", Streams(b"data", 1).info, Streams(b"data", 1).stream).read(2) == b"da"

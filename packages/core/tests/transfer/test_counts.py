"""How many requests each operation sends, counted on the wire."""

from __future__ import annotations

import io

import pytest

from s3torch.core import S3Checkpoint, S3ClientConfig, S3ReaderConstructor
from s3torch.core.ranges import MIB

PART = 5 * MIB
SIZES = [0, 1, PART, 2 * PART + 1]


@pytest.fixture(params=["sequential", "ranged"])
def constructor(request):
    return None if request.param == "sequential" else S3ReaderConstructor.range_based()


def test_nothing_is_sent_before_there_is_a_reason(wire):
    client = wire.client()
    config = S3ClientConfig(transport=wire.transport)
    S3Checkpoint("us-east-1", wire.proxy.endpoint, config).reader(f"s3://{wire.bucket}/k").close()
    client.get_object(wire.bucket, "k").close()
    client.list_objects(wire.bucket)
    writer = client.put_object(wire.bucket, "k")
    writer.write(b"x" * 100)
    writer.abort()
    assert wire.methods == []


@pytest.mark.parametrize("size", [0, 5, PART])
def test_an_upload_of_up_to_a_part_is_one_request(wire, size):
    with wire.client().put_object(wire.bucket, "k") as writer:
        writer.write(wire.content(size))
    assert wire.methods == ["PUT"]
    assert wire.get("k") == wire.content(size)


@pytest.mark.parametrize(("size", "parts"), [(PART + 1, 2), (2 * PART, 2)])
def test_an_upload_of_n_parts_is_n_and_two_requests(wire, size, parts):
    with wire.client().put_object(wire.bucket, "k") as writer:
        for start in range(0, size, MIB):
            writer.write(wire.content(size)[start : start + MIB])
    assert wire.methods == ["POST", *["PUT"] * parts, "POST"]
    assert wire.get("k") == wire.content(size)


def test_parts_grow_as_s3_wants_them_to(wire, monkeypatch):
    # As after 900 parts; tests/test_ranges.py has how fast.
    monkeypatch.setattr("s3torch.core.transfer._upload.upload_part_size", lambda number, base: number * base)
    data = wire.content(3 * PART + 1000)
    with wire.client().put_object(wire.bucket, "k") as writer:
        writer.write(data)
    sent = {request.query["partNumber"]: request.request_bytes for request in wire.proxy.requests("PUT")}
    assert sent == {"1": PART, "2": 2 * PART, "3": 1000}
    assert wire.get("k") == data


@pytest.mark.parametrize("size", [0, 5, PART])
def test_an_exception_before_anything_was_sent_sends_nothing(wire, size):
    with pytest.raises(KeyError), wire.client().put_object(wire.bucket, "k") as writer:
        writer.write(wire.content(size))
        raise KeyError
    assert wire.methods == []


def test_an_exception_after_parts_were_sent_aborts(wire):
    wire.put("k", b"old")
    with pytest.raises(KeyError), wire.client().put_object(wire.bucket, "k") as writer:
        writer.write(wire.content(2 * PART + 1))
        raise KeyError
    methods = wire.methods
    assert methods[0] == "POST"
    assert methods[-1] == "DELETE"
    assert set(methods[1:-1]) <= {"PUT"}
    assert len(methods) <= 4
    assert wire.get("k") == b"old"
    assert wire.uploads() == []


@pytest.mark.promise(2)
@pytest.mark.parametrize("algorithm", ["CRC64NVME", "CRC32C", "CRC32", "SHA256"])
def test_every_upload_carries_a_checksum(wire, algorithm):
    client = wire.client(checksum_algorithm=algorithm)
    for size in (5, PART + 1):
        with client.put_object(wire.bucket, "k") as writer:
            writer.write(wire.content(size))
    sent = [request for request in wire.proxy.requests("PUT") if request.request_bytes]
    assert len(sent) == 3
    assert all(f"x-amz-checksum-{algorithm.lower()}" in request.headers for request in sent)
    head = wire.direct.head_object(Bucket=wire.bucket, Key="k", ChecksumMode="ENABLED")
    assert head[f"Checksum{algorithm}"]


def test_checksums_can_be_off(wire):
    client = wire.client(checksum_algorithm="off")
    for size in (5, PART + 1):
        with client.put_object(wire.bucket, "k") as writer:
            writer.write(wire.content(size))
    names = [name for request in wire.proxy.requests() for name in request.headers]
    assert not [name for name in names if name.startswith("x-amz-checksum")]
    assert wire.get("k") == wire.content(PART + 1)


@pytest.mark.parametrize("size", SIZES)
def test_a_whole_read_is_a_request_for_each_part(wire, size, constructor):
    reader = wire.client().get_object(*wire.stock(size), reader_constructor=constructor)
    assert reader.read() == wire.content(size)
    ends_early = wire.transport == "http"
    assert sorted(wire.methods) == wire.asked(max(1, -(-size // PART)), whole=ends_early or not size)
    assert (reader.size, reader.seek(0, io.SEEK_END), reader.read()) == (size, size, b"")
    assert wire.methods == []


@pytest.mark.parametrize("size", SIZES)
def test_a_size_from_a_listing_is_not_asked_for_again(wire, size, constructor):
    bucket, key = wire.stock(size)
    client = wire.client()
    (page,) = client.list_objects(bucket, key)
    (info,) = page.object_info
    assert wire.methods == ["GET"]
    reader = client.get_object(bucket, key, object_info=info, reader_constructor=constructor)
    assert (reader.size, reader.etag) == (size, info.etag)
    assert reader.read() == wire.content(size)
    assert sorted(wire.methods) == wire.asked(-(-size // PART), whole=size <= PART)


@pytest.mark.parametrize("size", [0, 1, PART])
def test_the_end_of_an_untouched_reader_is_one_head(wire, size, constructor):
    reader = wire.client().get_object(*wire.stock(size), reader_constructor=constructor)
    assert reader.seek(0, io.SEEK_END) == size
    assert wire.methods == ["HEAD"]
    reader.seek(0)
    assert reader.read() == wire.content(size)
    assert wire.methods == ["GET"] * -(-size // PART)


def test_the_facts_of_an_object_cost_no_request_after_a_read(wire, constructor):
    for size in (0, 7):
        etag = wire.put("k", wire.content(size))["ETag"]
        reader = wire.client().get_object(wire.bucket, "k", reader_constructor=constructor)
        reader.read()
        assert (reader.etag, reader.size) == (etag, size)
        assert reader.last_modified > 1_700_000_000
        # The refusal of a range of an empty object tells none; the CRT asks for a checksum, too.
        assert wire.methods == (["GET"] if wire.transport == "http" else ["GET", "HEAD"])


def test_sparse_reads(wire):
    data = wire.content(2 * PART + 1)
    bucket, key = wire.stock(len(data))
    client = wire.client()
    reader = client.get_object(
        bucket, key, reader_constructor=S3ReaderConstructor.range_based(buffer_size=1000)
    )
    reader.seek(PART)
    assert reader.read(10) == data[PART : PART + 10]
    assert wire.methods == ["GET"]
    assert reader.read(990) == data[PART + 10 : PART + 1000]
    assert wire.methods == []
    reader.seek(5)
    assert reader.read(10) == data[5:15]
    assert wire.methods == ["GET"]
    unbuffered = client.get_object(bucket, key, reader_constructor=S3ReaderConstructor.range_based(0))
    unbuffered.seek(5)
    assert unbuffered.read(PART) == data[5 : PART + 5]
    assert wire.methods == ["GET"]
    buffer = bytearray(2 * PART)
    unbuffered.seek(1)
    assert unbuffered.readinto(buffer) == 2 * PART
    assert buffer == data[1:]
    assert wire.methods == ["GET"] * 2


def test_questions_are_one_request_each(wire):
    wire.put("k")
    client = wire.client()
    assert client.head_object(wire.bucket, "k").size == 4
    assert client.exists(wire.bucket, "k")
    assert not client.exists(wire.bucket, "missing")
    assert wire.methods == ["HEAD"] * 3
    client.copy_object(wire.bucket, "k", wire.bucket, "copy of ü%20+k")
    assert wire.methods == ["PUT"]
    assert wire.get("copy of ü%20+k") == b"data"
    client.delete_object(wire.bucket, "k")
    client.delete_object(wire.bucket, "k")
    assert wire.methods == ["DELETE"] * 2


def test_many_keys_are_deleted_in_batches(wire):
    client = wire.client()
    assert client.delete_objects(wire.bucket, []) == []
    assert wire.methods == []
    assert client.delete_objects(wire.bucket, (f"k{number}" for number in range(1001))) == []
    assert wire.methods == ["POST"] * 2


def test_all_ranges_of_a_reader_are_of_one_version(wire, constructor):
    reader = wire.client().get_object(*wire.stock(2 * PART + 1), reader_constructor=constructor)
    reader.read()
    first, *others = wire.proxy.requests("GET")
    assert "if-match" not in first.headers
    assert [request.headers.get("if-match") for request in others] == [reader.etag] * 2


def test_requests_say_who_sends_them(wire):
    client = wire.client(requester_pays=True)
    with client.put_object(wire.bucket, "k") as writer:
        writer.write(b"x")
    client.get_object(wire.bucket, "k").read()
    client.head_object(wire.bucket, "k")
    list(client.list_objects(wire.bucket))
    requests = wire.proxy.requests()
    assert len(requests) == (4 if wire.transport == "http" else 5)  # With a HEAD for the checksum.
    for request in requests:
        assert client.user_agent_prefix in request.headers["user-agent"]
        assert request.headers["x-amz-request-payer"] == "requester"

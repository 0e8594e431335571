"""When the wire or the server misbehaves: never a short or a wrong read, never a partial object."""

from __future__ import annotations

import time

import pytest

from s3torch.core import S3ReaderConstructor
from s3torch.core.errors import (
    AccessDeniedError,
    ChecksumMismatchError,
    NotFoundError,
    ObjectChangedError,
    PreconditionFailedError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    ServerError,
    ThrottledError,
    TruncatedError,
    WrongRegionError,
)
from s3torch.core.ranges import MIB
from s3torch.testing.faults import Fault

PART = 5 * MIB
SIZE = 2 * PART + 1000
DATA = (bytes(range(251)) * (SIZE // 251 + 1))[:SIZE]

CUT = {
    "truncated": Fault.truncate(1000),
    "reset": Fault.reset(1000),
    "reset-at-once": Fault.reset(),
    "dropped": Fault.drop(),
}


@pytest.fixture(params=["sequential", "ranged"])
def constructor(request):
    return None if request.param == "sequential" else S3ReaderConstructor.range_based(MIB)


def read_small(wire, **settings):
    return wire.client(**settings).get_object(wire.bucket, "k").read()


@pytest.mark.parametrize("cut", CUT)
def test_a_broken_answer_is_asked_for_again(wire, cut):
    wire.put("k", DATA[:100_000])
    rule = wire.proxy.add(CUT[cut], method="GET", times=1)
    assert read_small(wire) == DATA[:100_000]
    assert rule.hits == 1
    assert wire.methods.count("GET") == 2


@pytest.mark.promise(2)
@pytest.mark.parametrize("cut", CUT)
def test_an_answer_that_is_always_broken_is_an_error_and_never_short(wire, cut, constructor):
    wire.put("k", DATA[:100_000])
    wire.proxy.add(CUT[cut], method="GET")
    reader = wire.client(max_attempts=1).get_object(wire.bucket, "k", reader_constructor=constructor)
    for call in (reader.read, lambda: reader.read(50_000), lambda: reader.readinto(bytearray(70_000))):
        with pytest.raises((TruncatedError, S3ConnectionError)) as caught:
            call()
        assert reader.tell() == 0
        error = caught.value
        assert (error.operation, error.bucket, error.key) == ("GetObject", wire.bucket, "k")
    wire.proxy.heal()
    assert reader.read() == DATA[:100_000]


def test_a_part_that_breaks_in_a_large_object_is_asked_for_again(wire, constructor):
    rule = wire.proxy.add(Fault.truncate(3_000_000), method="GET", skip=1, times=1)
    assert wire.client().get_object(*wire.stock(SIZE), reader_constructor=constructor).read() == DATA
    assert rule.hits == 1


def test_a_part_that_fails_in_the_middle_does_not_end_the_object(wire, constructor):
    wire.proxy.add(
        Fault.error(403, "AccessDenied"),
        match=lambda request: request.headers.get("range", "").startswith(f"bytes={PART}-"),
    )
    reader = wire.client(max_attempts=1).get_object(*wire.stock(SIZE), reader_constructor=constructor)
    for _ in range(2):
        with pytest.raises(AccessDeniedError):
            reader.read()
    assert reader.read(PART) == DATA[:PART]
    with pytest.raises(AccessDeniedError):
        reader.read(10)
    wire.proxy.heal()
    assert reader.read() == DATA[PART:]


@pytest.mark.parametrize("fault", [Fault.slow_down(), Fault.internal_error()], ids=["503", "500"])
def test_a_server_that_is_busy_is_asked_again(wire, fault):
    wire.put("k", DATA[:1000])
    rule = wire.proxy.add(fault, method="GET", times=2)
    assert read_small(wire, max_attempts=3) == DATA[:1000]
    assert rule.hits == 2


@pytest.mark.parametrize(
    ("fault", "cls", "code", "status"),
    [
        (Fault.slow_down(), ThrottledError, "SlowDown", 503),
        (Fault.internal_error(), ServerError, "InternalError", 500),
    ],
    ids=["503", "500"],
)
def test_a_server_that_stays_busy_is_an_error_after_all_attempts(wire, fault, cls, code, status):
    rule = wire.proxy.add(fault, method="GET")
    with pytest.raises(cls) as caught:
        read_small(wire, max_attempts=2)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert rule.hits == 2


@pytest.mark.parametrize(
    ("status", "code", "cls"),
    [
        (400, "ExpiredToken", AccessDeniedError),
        (403, "AccessDenied", AccessDeniedError),
        (403, "InvalidObjectState", AccessDeniedError),
        (404, "NoSuchKey", NotFoundError),
        (412, "PreconditionFailed", PreconditionFailedError),
        (400, "FromTheFuture", S3Error),
    ],
)
def test_other_errors_are_not_tried_again(wire, status, code, cls):
    rule = wire.proxy.add(Fault.error(status, code), method="GET")
    with pytest.raises(cls) as caught:
        read_small(wire)
    error = caught.value
    assert (error.code, error.status, error.operation) == (code, status, "GetObject")
    assert f"s3://{wire.bucket}/k" in str(error)
    assert rule.hits == 1


@pytest.mark.parametrize(
    ("status", "code"), [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")]
)
def test_the_wrong_region_names_the_right_one(wire, status, code):
    fault = Fault.error(status, code) | Fault.header("x-amz-bucket-region", "eu-west-3")
    wire.proxy.add(fault)
    client = wire.client()
    calls = {
        "GetObject": client.get_object(wire.bucket, "k").read,
        "PutObject": client.put_object(wire.bucket, "k").close,
        "ListObjectsV2": lambda: list(client.list_objects(wire.bucket)),
        "HeadObject": lambda: client.head_object(wire.bucket, "k"),
    }
    for operation, call in calls.items():
        with pytest.raises(WrongRegionError, match="eu-west-3") as caught:
            call()
        assert caught.value.expected_region == "eu-west-3"
        assert caught.value.operation == operation


@pytest.mark.promise(2)
def test_an_object_that_is_replaced_between_two_ranges_is_an_error(wire, constructor):
    wire.put("k", DATA)
    reader = wire.client().get_object(wire.bucket, "k", reader_constructor=constructor)
    assert reader.read(10) == DATA[:10]
    wire.put("k", b"!" * len(DATA))
    reader.seek(PART)
    for _ in range(2):
        with pytest.raises(ObjectChangedError, match="open it again"):
            reader.read()
    assert wire.client().get_object(wire.bucket, "k").read(5) == b"!!!!!"


@pytest.mark.parametrize("new", [b"", b"short", b"other data", b"more data than before"], ids=len)
def test_an_object_that_is_replaced_after_the_listing_is_an_error(wire, constructor, new):
    wire.put("k", b"first data")
    client = wire.client()
    ((info,),) = (page.object_info for page in client.list_objects(wire.bucket))
    wire.put("k", new)
    reader = client.get_object(wire.bucket, "k", object_info=info, reader_constructor=constructor)
    for call in (reader.read, lambda: reader.read(10)):
        with pytest.raises(ObjectChangedError):
            call()


@pytest.mark.promise(2)
def test_a_server_that_ignores_conditions_is_caught_by_the_etag(wire, constructor):
    wire.proxy.add(Fault.header("ETag", '"other"'), method="GET", skip=1)
    reader = wire.client().get_object(*wire.stock(SIZE), reader_constructor=constructor)
    with pytest.raises(ObjectChangedError, match="other"):
        reader.read()


def test_an_answer_for_another_range_is_an_error(wire, constructor):
    wrong = Fault.header("Content-Range", f"bytes 0-{PART - 1}/{len(DATA)}")
    reader = wire.client(max_attempts=1).get_object(*wire.stock(SIZE), reader_constructor=constructor)
    assert reader.read(PART) == DATA[:PART]
    wire.proxy.add(wrong, method="GET")
    with pytest.raises(S3Error):
        reader.read()
    assert reader.tell() == PART


@pytest.mark.promise(2)
@pytest.mark.parametrize("size", [1, PART])
def test_a_flipped_bit_of_a_whole_object_is_an_error(wire, constructor, size):
    wire.put("k", DATA[:size], ChecksumAlgorithm="CRC32C")
    client = wire.client()
    ((info,),) = (page.object_info for page in client.list_objects(wire.bucket))
    rule = wire.proxy.add(Fault.flip(size // 2), method="GET")
    reader = client.get_object(wire.bucket, "k", object_info=info, reader_constructor=constructor)
    with pytest.raises(ChecksumMismatchError) as caught:
        reader.read()
    assert (caught.value.bucket, caught.value.key) == (wire.bucket, "k")
    assert rule.hits >= 1
    wire.proxy.heal()
    assert reader.read() == DATA[:size]


def test_a_bit_that_flipped_on_the_way_is_right_the_next_time(wire, constructor):
    wire.put("k", DATA[:PART], ChecksumAlgorithm="CRC64NVME")
    client = wire.client()
    info = client.head_object(wire.bucket, "k")
    rule = wire.proxy.add(Fault.flip(1000), method="GET", times=1)
    reader = client.get_object(wire.bucket, "k", object_info=info, reader_constructor=constructor)
    buffer = bytearray(PART)
    assert reader.readinto(buffer) == PART
    assert buffer == DATA[:PART]
    assert rule.hits == 1


@pytest.mark.parametrize(
    ("value", "offset", "is_wrong"),
    [("chdGpg==", 0, False), ("AAAAAA==", 0, True), ("AAAAAA==-3", 0, False), ("AAAAAA==", 500, False)],
    ids=["right", "wrong", "of-parts", "of-another-range"],
)
def test_a_range_that_is_the_whole_object_is_checked_if_the_server_can(wire, value, offset, is_wrong):
    wire.put("k", DATA[:1000])
    wire.proxy.add(Fault.header("x-amz-checksum-crc32", value), method="GET")
    reader = wire.client().get_object(
        wire.bucket, "k", reader_constructor=S3ReaderConstructor.range_based(PART)
    )
    reader.seek(offset)
    if is_wrong:
        with pytest.raises(ChecksumMismatchError, match="chdGpg=="):
            reader.read()
    else:
        assert reader.read() == DATA[offset:1000]
    # Apart from the question where the parts end.
    reads = [request for request in wire.proxy.requests("GET") if "attributes" not in request.query]
    modes = {"x-amz-checksum-mode" in request.headers for request in reads}
    assert modes == {offset == 0}


@pytest.mark.parametrize("cut", [0, PART // 2, PART - 1], ids=["at-the-start", "inside", "before-the-end"])
@pytest.mark.parametrize("part", range(3))
def test_an_answer_that_is_cut_in_any_part_is_asked_for_again(wire, part, cut):
    size = min(PART, SIZE - part * PART)
    rule = wire.proxy.add(
        Fault.truncate(min(cut, size - 1)),
        match=lambda request: request.headers.get("range", "bytes=0-").startswith(f"bytes={part * PART}-"),
        times=1,
    )
    assert wire.client().get_object(*wire.stock(SIZE)).read() == DATA
    assert rule.hits == 1


def test_a_server_that_is_busy_for_two_seconds_recovers(wire):
    wire.put("k", DATA[:1000])
    until = time.monotonic() + 2
    wire.proxy.add(Fault.slow_down(), match=lambda _: time.monotonic() < until)
    client = wire.client(max_attempts=10)
    assert client.get_object(wire.bucket, "k").read() == DATA[:1000]
    with client.put_object(wire.bucket, "new") as writer:
        writer.write(DATA[:1000])
    assert wire.get("new") == DATA[:1000]


@pytest.mark.parametrize("after", [None, 1000], ids=["before-the-answer", "in-the-body"])
def test_a_server_that_hangs_is_a_timeout(wire, after):
    wire.put("k", DATA[:100_000])
    wire.proxy.add(Fault.stall(30, after), method="GET")
    began = time.monotonic()
    with pytest.raises(S3TimeoutError) as caught:
        read_small(wire, max_attempts=2, read_timeout=0.5)
    assert (caught.value.key, caught.value.attempts) == ("k", 2)
    assert time.monotonic() - began < 25  # The server hangs for 30.


@pytest.mark.promise(3)
def test_closing_a_reader_does_not_wait_for_the_server(wire):
    wire.proxy.add(Fault.stall(20, 1000), method="GET", skip=1)
    reader = wire.client().get_object(*wire.stock(SIZE))
    for _ in range(4):
        reader.read(1000)
    began = time.monotonic()
    reader.close()
    assert time.monotonic() - began < 15  # The server hangs for 20.


@pytest.mark.parametrize("spell", ["W/{}", "{}", "'", ""], ids=["weak", "as it is", "unquoted", "none"])
@pytest.mark.parametrize("known", [False, True], ids=["opened", "listed"])
def test_an_object_is_the_same_however_its_etag_is_written(wire, spell, known):
    size = 11 * MIB
    data = wire.content(size)
    etag = wire.put("k", data)["ETag"]
    client = wire.client()
    info = next(client.list_objects(wire.bucket)).object_info[0] if known else None
    told = etag.strip('"') if spell == "'" else spell.format(etag) or None
    wire.proxy.add(Fault.header("ETag", told))
    for how in (None, S3ReaderConstructor.range_based(buffer_size=0)):
        reader = client.get_object(wire.bucket, "k", object_info=info, reader_constructor=how)
        assert reader.read(10) == data[:10]
        reader.seek(-10, 2)
        assert reader.read() == data[-10:]
        reader.seek(0)
        assert reader.read() == data
    # Where only some of the answers come through a proxy that weakens them.
    wire.proxy.heal()
    rule = wire.proxy.add(Fault.header("ETag", told), method="GET", skip=1, times=1)
    assert wire.client().get_object(wire.bucket, "k").read() == data
    assert rule.hits == 1


@pytest.mark.parametrize("size", [0, 1, 11 * MIB])
def test_a_size_that_a_head_does_not_tell_is_asked_for_otherwise(wire, size):
    data = wire.content(size)
    wire.put("k", data, ContentType="text/x-test")
    rule = wire.proxy.add(Fault.header("Content-Length", None), method="HEAD")
    client = wire.client()
    head = client.head_object(wire.bucket, "k")
    assert (head.size, head.content_type) == (size, "text/x-test" if size else None)
    assert wire.methods == ["HEAD", "GET"]
    reader = client.get_object(wire.bucket, "k")
    assert reader.seek(0, 2) == size
    reader.seek(0)
    assert reader.read() == data
    assert client.exists(wire.bucket, "k")
    # And the one for the checksum of a large object, whose answer is none.
    assert rule.hits == (3 if size <= MIB else 4)
    with pytest.raises(NotFoundError):
        client.head_object(wire.bucket, "nothing")

"""Objects that come in ranges are verified as a whole, with at most one request beside the data."""

from __future__ import annotations

from itertools import count, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core import ChecksumMismatchError, S3Client, S3ClientConfig, S3Error, S3ReaderConstructor
from s3torch.core.ranges import MIB
from s3torch.core.transfer import _checksums
from s3torch.core.transfer._checksums import COMBINED, checksum, combine_crcs, compute_crc
from s3torch.core.transfer._verification import Spans
from s3torch.testing import Fault
from s3torch.testing.scripted import ScriptedAnswer, ScriptedServer

PART = 5 * MIB
ALGORITHMS = [(name, "FULL_OBJECT") for name in COMBINED] + [("CRC32", "COMPOSITE"), ("CRC32C", "COMPOSITE")]


@given(st.integers(1, 60), st.randoms(), st.sampled_from(COMBINED), st.integers(1, 20))
def test_ranges_in_any_order_make_the_checksum_of_the_whole(size, random, algorithm, step):
    data = memoryview(random.randbytes(size))
    spans = Spans(lambda first, second, count: combine_crcs(algorithm, first, second, count))
    while spans.size < size:
        start = random.randrange(size)
        for begin, end in list(spans.missing(start, min(start + step, size))):
            spans.add(begin, end, compute_crc(algorithm, data[begin:end]))
    assert list(spans) == [(0, size, compute_crc(algorithm, data))]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20))), st.integers(1, 9))
def test_what_is_missing_is_told(ranges, cut):
    spans = Spans(lambda first, second, _: first + second, lambda position: position % cut == 0)
    there = set()
    for start, length in ranges:
        missing = list(spans.missing(start, start + length))
        assert [at for begin, end in missing for at in range(begin, end)] == sorted(
            set(range(start, start + length)) - there
        )
        for begin, end in missing:
            edges = sorted({begin, end, *(at for at in range(begin, end) if at % cut == 0)})
            for low, high in pairwise(edges):
                spans.add(low, high, list(range(low, high)))
        there |= set(range(start, start + length))
    assert [at for _, _, value in spans for at in value] == sorted(there)
    assert all(begin // cut == (end - 1) // cut for begin, end, _ in spans)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_without_awscrt_crc32_is_combined_here(first, second):
    known = [combine_crcs("CRC32", *map(crc32, (first, second)), len(second))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_checksums, "_crcs", lambda: None)
        assert (
            [combine_crcs("CRC32", *map(crc32, (first, second)), len(second))]
            == known
            == [crc32(first + second)]
        )


def crc32(data):
    return compute_crc("CRC32", memoryview(data))


def store(wire, algorithm, kind, data, *part_sizes):
    """Stores an object in parts of these sizes, the last again and again, with a checksum of this kind."""
    place = {"Bucket": wire.bucket, "Key": "k"}
    upload = wire.direct.create_multipart_upload(**place, ChecksumAlgorithm=algorithm, ChecksumType=kind)
    place["UploadId"] = upload["UploadId"]
    parts, sizes, start = [], [*part_sizes], 0
    for number in count(1):
        if start == len(data):
            break
        body = data[start : start + sizes[0]]
        start += len(body)
        sizes = sizes[1:] or sizes
        told = {f"Checksum{algorithm}": checksum(algorithm, memoryview(body))[1]}
        etag = wire.direct.upload_part(**place, PartNumber=number, Body=body, **told)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag, **told})
    wire.direct.complete_multipart_upload(**place, MultipartUpload={"Parts": parts}, ChecksumType=kind)


@pytest.fixture(scope="module")
def data():
    return Random(1).randbytes(16 * MIB - 5)


@pytest.mark.promise(2)
@pytest.mark.parametrize(("algorithm", "kind"), ALGORITHMS)
@pytest.mark.parametrize("part_size", [5 * MIB, 6 * MIB, 9 * MIB])
def test_objects_of_many_parts(wire, data, algorithm, kind, part_size):
    store(wire, algorithm, kind, data, part_size)
    client = wire.client()
    info = client.head_object(wire.bucket, "k")
    wire.proxy.clear()
    for facts in ({}, {"object_info": info}):
        for flipped in (0, 2):
            assert client.get_object(wire.bucket, "k", **facts).read() == data
            known = not facts and wire.transport == "http"
            assert sorted(wire.methods) == ["GET"] * 4 + ["HEAD"] * (not known)
            rule = wire.proxy.add(Fault.flip(1000), method="GET", skip=flipped, times=1)
            assert client.get_object(wire.bucket, "k", **facts).read() == data
            assert rule.hits == 1
            # Once more all parts; of a checksum of checksums also where they end.
            gets = 8 + (kind == "COMPOSITE")
            assert sorted(wire.methods) == ["GET"] * gets + ["HEAD"] * (not known)
            wire.proxy.heal()


# Some that no number of parts tells, and some that seem to be equal.
UNEQUAL = [(5 * MIB, 5 * MIB + 1, 6 * MIB), (5 * MIB, 6 * MIB), (7 * MIB, 5 * MIB)]


@pytest.mark.promise(2)
@pytest.mark.parametrize("part_sizes", [*UNEQUAL, (5 * MIB,), (8 * MIB,), (40 * MIB,)])
@pytest.mark.parametrize("algorithm", ["CRC32", "SHA256"])
def test_checksums_of_unequal_parts_and_those_that_cannot_be_combined(wire, data, algorithm, part_sizes):
    if part_sizes[0] > len(data):
        wire.put("k", data, ChecksumAlgorithm=algorithm)
    else:
        store(wire, algorithm, "COMPOSITE", data, *part_sizes)
    client = wire.client()
    info = client.head_object(wire.bucket, "k")
    for facts in ({}, {"object_info": info}):
        for flipped in (0, 2):
            wire.proxy.clear()
            assert client.get_object(wire.bucket, "k", **facts).read() == data
            # Where the parts end is asked for once, and it may be that they are read twice to use that.
            questions = [r for r in wire.proxy.requests() if r.method == "HEAD" or "attributes" in r.query]
            assert len(questions) <= 2
            rule = wire.proxy.add(Fault.flip(1000), method="GET", match=is_range, skip=flipped, times=1)
            assert client.get_object(wire.bucket, "k", **facts).read() == data
            assert rule.hits == 1
            wire.proxy.heal()
            rule = wire.proxy.add(Fault.flip(1000), method="GET", match=is_range)
            with pytest.raises(ChecksumMismatchError):
                client.get_object(wire.bucket, "k", **facts).read()
            wire.proxy.heal()


def is_range(request):
    return "attributes" not in request.query


@pytest.mark.promise(2)
@pytest.mark.parametrize(("algorithm", "kind"), [("CRC64NVME", "FULL_OBJECT"), ("CRC32", "COMPOSITE")])
def test_a_wrong_object_is_an_error_after_the_second_attempt_and_from_then_on(wire, data, algorithm, kind):
    store(wire, algorithm, kind, data, PART)
    wire.proxy.clear()
    rule = wire.proxy.add(Fault.flip(1000), method="GET", match=is_range)
    reader = wire.client().get_object(wire.bucket, "k")
    with pytest.raises(
        ChecksumMismatchError, match=f"{algorithm} of the bytes is .*, but .* was stored"
    ) as caught:
        reader.read()
    assert (caught.value.bucket, caught.value.key) == (wire.bucket, "k")
    assert rule.hits == 8
    wire.proxy.heal()
    for read in (reader.read, lambda: reader.read(5), lambda: reader.readinto(bytearray(5)), reader.prefetch):
        with pytest.raises(ChecksumMismatchError):
            read()


@pytest.mark.promise(2)
@pytest.mark.parametrize("size", [10_000, PART, 3 * MIB + 7])
def test_a_stream_raises_at_its_end_and_from_then_on(wire, data, size):
    wire.put("k", data, ChecksumAlgorithm="CRC64NVME")
    rule = wire.proxy.add(Fault.flip(1000), method="GET", skip=1, times=1)
    reader = wire.client().get_object(wire.bucket, "k")
    found = []
    with pytest.raises(ChecksumMismatchError):
        found.extend(iter(lambda: reader.read(size), b""))
    assert rule.hits == 1
    assert len(data) - 2 * PART <= sum(map(len, found)) < len(data)
    for position in (reader.tell(), 0, PART):
        reader.seek(position)
        with pytest.raises(ChecksumMismatchError):
            reader.read(5)


def test_whoever_reads_a_little_asks_for_no_checksum(wire, data):
    wire.put("k", data, ChecksumAlgorithm="CRC64NVME")
    client = wire.client()
    for constructor in (None, S3ReaderConstructor.range_based(), S3ReaderConstructor.range_based(0)):
        reader = client.get_object(wire.bucket, "k", reader_constructor=constructor)
        wire.proxy.clear()
        assert reader.read(4) == data[:4]
        reader.seek(11 * MIB)
        assert reader.read(4) == data[11 * MIB : 11 * MIB + 4]
        assert wire.proxy.bytes_sent <= 3 * PART
        assert "HEAD" not in wire.methods


def test_an_object_without_a_checksum_that_can_be_verified(wire, data):
    # The bytes of a SHA-256 have to come in order.
    wire.put("k", data, ChecksumAlgorithm="SHA256")
    reader = wire.client().get_object(wire.bucket, "k")
    reader.seek(11 * MIB)
    end = reader.read()
    reader.seek(0)
    assert reader.read(11 * MIB) + end == data
    # A store that answers no such question.
    wire.put("k", data, ChecksumAlgorithm="CRC32")
    ((listed,),) = (page.object_info for page in wire.client().list_objects(wire.bucket, "k"))
    for status, code in ((403, "AccessDenied"), (405, "MethodNotAllowed"), (501, "NotImplemented")):
        rule = wire.proxy.add(Fault.error(status, code), method="HEAD")
        reader = wire.client().get_object(wire.bucket, "k", object_info=listed)
        assert b"".join(iter(lambda reader=reader: reader.read(MIB), b"")) == data
        assert rule.hits == 1
        wire.proxy.heal()


def test_a_checksum_that_cannot_be_asked_for_is_an_error(wire, data):
    wire.put("k", data, ChecksumAlgorithm="CRC32")
    wire.proxy.add(Fault.internal_error(), method="HEAD")
    client = wire.client(max_attempts=1)
    ((listed,),) = (page.object_info for page in client.list_objects(wire.bucket, "k"))
    with pytest.raises(S3Error, match="HeadObject"):
        client.get_object(wire.bucket, "k", object_info=listed).read()


def test_verification_can_be_off(wire, data):
    wire.put("k", data, ChecksumAlgorithm="CRC64NVME")
    wire.put("small", data[:1000], ChecksumAlgorithm="CRC64NVME")
    client = wire.client(verify="off")
    for key, parts in (("k", 4), ("small", 1)):
        wire.proxy.clear()
        wire.proxy.add(Fault.flip(100), method="GET")
        assert client.get_object(wire.bucket, key).read() != data
        assert not [name for r in wire.proxy.requests() for name in r.headers if "checksum" in name]
        assert wire.methods == ["GET"] * parts


@pytest.mark.promise(2)
@pytest.mark.parametrize(
    ("told", "is_right"),
    [
        ("", True),
        ("AAAAAA==-0", True),
        ("AAAAAA==-" + "9" * 5000, True),
        ("AAAAAA==-x", True),
        ("AAAAAA==", False),
        ("AAAAAA==-1", False),
        ("O0HJ5g==", True),
        ("garbage", False),
    ],
    ids=lambda value: str(value)[:12],
)
@pytest.mark.parametrize("transport", ["crt", "http"])
def test_odd_checksums(transport, told, is_right):
    """What tells nothing verifies nothing; of what is no checksum of these bytes nobody knows why."""
    headers = {"ETag": '"e"', "x-amz-checksum-crc32": told}
    with ScriptedServer() as scripted:
        scripted.will(*[ScriptedAnswer(body=b"x" * 1000, headers=headers)] * 6)
        config = S3ClientConfig(
            endpoint=scripted.endpoint, unsigned=True, transport=transport, max_attempts=1
        )
        with S3Client("us-east-1", s3client_config=config) as client:
            reader = client.get_object("bucket", "key")
            if is_right:
                assert reader.read() == b"x" * 1000
            else:
                with pytest.raises(ChecksumMismatchError):
                    reader.read()


@pytest.mark.parametrize("transport", ["crt", "http"])
def test_a_store_that_tells_no_length_and_knows_no_ranges(transport):
    chunked = {"Content-Length": None, "Transfer-Encoding": "chunked", "ETag": '"e"'}
    answer = ScriptedAnswer(body=b"5\r\nhello\r\n0\r\n\r\n", headers=chunked)
    with ScriptedServer() as scripted:
        scripted.will(*[answer] * 4)
        config = S3ClientConfig(endpoint=scripted.endpoint, unsigned=True, transport=transport)
        with S3Client("us-east-1", s3client_config=config) as client:
            assert client.get_object("bucket", "key").read() == b"hello"

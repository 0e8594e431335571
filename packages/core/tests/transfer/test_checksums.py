"""Checksums: what S3 expects, however an object is cut into parts."""

from __future__ import annotations

import base64
import hashlib
import sys
import zlib
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3torch.core._config import CHECKSUM_ALGORITHMS
from s3torch.core.errors import ChecksumMismatchError, ConfigurationError
from s3torch.core.ranges import MIB
from s3torch.core.transfer import _checksums
from s3torch.core.transfer._checksums import (
    COMBINED,
    PartedChecksum,
    PieceChecksums,
    checksum,
    compute_crc,
    piece_algorithm,
    usable_algorithm,
    verify,
)

every_algorithm = pytest.mark.parametrize("algorithm", CHECKSUM_ALGORITHMS)


@every_algorithm
@given(parts=st.lists(st.binary(max_size=50), min_size=1, max_size=6))
def test_parts_give_the_checksum_of_the_whole(algorithm, parts):
    parted = PartedChecksum(algorithm)
    for part in parts:
        assert parted.add(memoryview(part)) == checksum(algorithm, memoryview(part))
    if algorithm == "SHA256":
        digests = b"".join(hashlib.sha256(part).digest() for part in parts)
        expected = base64.b64encode(hashlib.sha256(digests).digest()).decode() + f"-{len(parts)}"
        assert parted.value == (algorithm, expected)
    else:
        assert parted.value == checksum(algorithm, memoryview(b"".join(parts)))


def test_known_values():
    # The check values of the catalogues of CRCs.
    data = memoryview(b"123456789")
    assert checksum("CRC32", data) == (
        "CRC32",
        base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode(),
    )
    assert base64.b64decode(checksum("CRC32C", data)[1]).hex() == "e3069283"
    assert base64.b64decode(checksum("CRC64NVME", data)[1]).hex() == "ae8b14860a799888"
    assert base64.b64decode(checksum("SHA256", data)[1]) == hashlib.sha256(data).digest()
    assert checksum(None, data) is None


@every_algorithm
def test_other_bytes_are_refused(algorithm):
    data = memoryview(b"what was stored")
    stored = dict([checksum(algorithm, data)])
    verify(data, stored, bucket="b", key="k")
    verify(data, {}, bucket="b", key="k")
    with pytest.raises(ChecksumMismatchError, match=algorithm) as caught:
        verify(memoryview(b"what was storeb"), stored, bucket="b", key="k")
    assert (caught.value.bucket, caught.value.key) == ("b", "k")


@pytest.fixture(params=["isal.isal_zlib", "zlib_ng.zlib_ng", None])
def fastest(request, monkeypatch):
    """The libraries that there are, down to the one that comes with Python or awscrt."""
    for name in ("isal.isal_zlib", "zlib_ng.zlib_ng"):
        if name != request.param:
            monkeypatch.setitem(sys.modules, name, None)
    if request.param is not None:
        pytest.importorskip(request.param)
    _checksums._crc32.cache_clear()
    yield
    _checksums._crc32.cache_clear()


@pytest.mark.parametrize("size", [0, 9, 5000, MIB])
def test_crc32_is_the_same_with_every_library(fastest, size):
    data = memoryview((b"123456789" * (size // 9 + 1))[:size])
    for view in (data, memoryview(bytearray(data)), data[1:]):
        expected = base64.b64encode(zlib.crc32(view).to_bytes(4, "big")).decode()
        assert checksum("CRC32", view) == ("CRC32", expected)


@pytest.fixture
def without_awscrt(monkeypatch):
    monkeypatch.setattr(_checksums, "_crcs", lambda: None)
    monkeypatch.setattr(_checksums, "_is_installed", lambda: False)
    _checksums._crc32.cache_clear()
    yield
    _checksums._crc32.cache_clear()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.binary(max_size=300), min_size=1, max_size=6))
def test_without_awscrt_parts_give_the_crc32_of_the_whole(parts, without_awscrt):
    parted = PartedChecksum("CRC32")
    for part in parts:
        parted.add(memoryview(part))
    whole = zlib.crc32(b"".join(parts)).to_bytes(4, "big")
    assert parted.value == ("CRC32", base64.b64encode(whole).decode())


def test_without_awscrt_only_the_default_is_replaced(without_awscrt):
    chosen = [usable_algorithm(name) for name in (None, "CRC64NVME", "CRC32", "SHA256")]
    assert chosen == [None, "CRC32", "CRC32", "SHA256"]
    with pytest.raises(ConfigurationError, match=r"CRC32C is computed by awscrt.*pip install awscrt"):
        usable_algorithm("CRC32C")
    with pytest.raises(ConfigurationError, match="CRC64NVME"):
        checksum("CRC64NVME", memoryview(b"x"))
    # What cannot be computed is passed over.
    stored = {"CRC64NVME": "?", "CRC32": checksum("CRC32", memoryview(b"data"))[1]}
    verify(memoryview(b"data"), stored, bucket="b", key="k")
    with pytest.raises(ChecksumMismatchError, match="CRC32 "):
        verify(memoryview(b"dato"), stored, bucket="b", key="k")


WITHOUT_AWSCRT = """
    import logging, sys
    sys.modules["awscrt"] = None
    logging.basicConfig(level=logging.DEBUG)
    from s3torch.core import S3Client, S3ClientConfig

    endpoint, bucket = sys.argv[1:]
    config = S3ClientConfig(transport="http", part_size=5 * 2**20)
    client = S3Client("us-east-1", endpoint=endpoint, s3client_config=config)
    for size in (10, 11 * 2**20, 10):
        data = bytes(range(250)) * (size // 250) + bytes(size % 250)
        with client.put_object(bucket, "k") as writer:
            writer.write(data)
        assert writer.checksum[0] == "CRC32"
        assert client.get_object(bucket, "k").read() == data
    assert not [name for name in sys.modules if name.startswith("awscrt.")]
"""


def test_without_awscrt_the_http_transport_writes_and_reads(seaweedfs, fault_proxy, python):
    proxy = fault_proxy(seaweedfs)
    bucket = seaweedfs.create_bucket()
    keys = {"AWS_ACCESS_KEY_ID": seaweedfs.access_key, "AWS_SECRET_ACCESS_KEY": seaweedfs.secret_key}
    done = python(WITHOUT_AWSCRT, proxy.endpoint, bucket, environment=keys)
    assert done.stderr.count("awscrt is not installed, so uploads carry CRC32") == 1
    sent = {name for request in proxy.requests("PUT") for name in request.headers}
    assert "x-amz-checksum-crc32" in sent


@pytest.mark.parametrize("algorithm", COMBINED)
@given(
    parts=st.lists(st.binary(max_size=40), max_size=6),
    begins=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), min_size=1, max_size=5),
)
def test_pieces_and_parts_are_summed_together(algorithm, parts, begins):
    whole = b"".join(parts)
    pieces = PieceChecksums(algorithm)
    borders = {0, len(whole)}
    begins = sorted(begins, key=lambda one: one[0])
    ends = [at for at, _ in begins[1:]] + [len(whole)]
    for (at, size), end in zip(begins, ends, strict=True):
        pieces.begin(at, size)
        borders |= {position for position in range(at, end, size) if position < len(whole)}
    for part in parts:
        assert pieces.add(memoryview(part)) == compute_crc(algorithm, memoryview(part))
    pieces.finish()
    edges = sorted(borders)
    assert pieces.complete == [
        (start, stop, compute_crc(algorithm, memoryview(whole[start:stop])))
        for start, stop in pairwise(edges)
    ]


def test_the_algorithm_of_pieces(without_awscrt):
    assert piece_algorithm("CRC64NVME") == piece_algorithm() == "CRC32"

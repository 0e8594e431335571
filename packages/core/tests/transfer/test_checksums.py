"""Checksums: what S3 expects, however an object is cut into parts."""

from __future__ import annotations

import base64
import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core.config import CHECKSUM_ALGORITHMS
from s3torch.core.errors import ChecksumMismatchError
from s3torch.core.transfer._checksums import PartedChecksum, checksum, verify

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

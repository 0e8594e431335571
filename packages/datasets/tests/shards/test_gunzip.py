"""Compressed files in one member or several, whole and truncated."""

from __future__ import annotations

import gzip
import io
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.datasets.shards._tar_archive import GzipStream


def read_all(data, size=1 << 20):
    stream, found = GzipStream(io.BytesIO(data)), []
    while piece := stream.read(size):
        assert len(piece) <= size
        found.append(piece)
    return b"".join(found)


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=4), st.integers(1, 500), st.integers(0, 600))
def test_members_follow_each_other(members, size, padding):
    assert read_all(b"".join(map(gzip.compress, members)) + bytes(padding), size) == b"".join(members)


@given(st.binary(max_size=500), st.data())
def test_a_truncated_member_is_an_error(content, data):
    whole = gzip.compress(content)
    with pytest.raises(EOFError):
        read_all(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_what_came_before_a_truncation_is_given_out():
    stream = GzipStream(io.BytesIO(gzip.compress(bytes(range(256)) * 4096)[:-100]))
    assert len(stream.read(1 << 20)) > 1000


def test_damage_is_an_error():
    whole = bytearray(gzip.compress(b"some text, some text"))
    whole[-5] ^= 1
    for data in (bytes(whole), b"never compressed", gzip.compress(b"x") + b"never compressed"):
        with pytest.raises(zlib.error):
            read_all(data)

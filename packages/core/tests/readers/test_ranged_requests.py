"""What a ranged reader asks for, and what its buffer saves."""

from __future__ import annotations

import io

import pytest

from s3torch.core import RangedS3Reader
from s3torch.core.errors import ConfigurationError

DATA = bytes(range(200)) + b"12345"  # 21 parts of 10 bytes, the last one half.


def test_a_small_read_fills_the_buffer_and_the_next_is_free(ledger, opened):
    source = ledger(DATA)
    reader = opened(RangedS3Reader, source, buffer_size=10)
    reader.seek(50)
    assert [reader.read(2) for _ in range(5)] == [DATA[i : i + 2] for i in range(50, 60, 2)]
    assert source.requests == [(50, 60)]
    assert reader.read(1) == DATA[60:61]
    assert source.requests == [(50, 60), (60, 70)]
    reader.seek(49)
    reader.read(1)
    assert source.requests[2:] == [(49, 59)]


def test_a_read_across_the_end_of_the_buffer_uses_what_is_there(ledger, opened):
    source = ledger(DATA)
    reader = opened(RangedS3Reader, source, buffer_size=10)
    reader.read(1)
    reader.seek(6)
    assert reader.read(8) == DATA[6:14]
    assert source.requests == [(0, 10), (10, 20)]


def test_without_buffer_each_read_is_a_request(ledger, opened):
    source = ledger(DATA)
    reader = opened(RangedS3Reader, source, buffer_size=0)
    for position in (0, 50, 51):
        reader.seek(position)
        reader.read(5)
    assert source.requests == [(0, 5), (50, 55), (51, 56)]


def test_the_buffer_ends_with_the_object(ledger, opened):
    source = ledger(DATA, known=True)
    reader = opened(RangedS3Reader, source, buffer_size=10)
    reader.seek(203)
    assert reader.read(1) == b"4"
    assert source.requests == [(203, 205)]


@pytest.mark.parametrize("buffer_size", [-1, -100])
def test_a_negative_buffer_is_refused(buffer_size, ledger, opened):
    with pytest.raises(ConfigurationError, match="buffer_size"):
        opened(RangedS3Reader, ledger(DATA), buffer_size=buffer_size)


@pytest.mark.parametrize("known", [True, False])
def test_prefetch_fills_the_buffer_of_a_ranged_reader(known, ledger, opened):
    source = ledger(DATA, known=known)
    reader = opened(RangedS3Reader, source, buffer_size=8)
    reader.seek(20)
    reader.prefetch()
    reader.prefetch()
    assert (source.requests, source.waited) == ([(20, 28)], [])
    reader.seek(22)
    assert (reader.read(3), reader.read(2)) == (DATA[22:25], DATA[25:27])
    reader.prefetch()
    assert (source.requests, source.shared.used) == ([(20, 28)], 0)
    assert reader.read(20) == DATA[27:47]
    # What was started for another place is dropped.
    reader.seek(100)
    reader.prefetch()
    reader.seek(60)
    assert reader.read(3) == DATA[60:63]
    assert source.cancelled == [(100, 108)]
    reader.seek(0, io.SEEK_END)
    count = len(source.requests)
    reader.prefetch()
    assert len(source.requests) == count
    reader.seek(150)
    reader.prefetch()
    reader.close()
    assert source.cancelled == [(100, 108), (150, 158)]
    assert source.shared.used == 0


def test_a_prefetch_that_fails_is_asked_for_again(ledger, opened):
    source = ledger(DATA)
    reader = opened(RangedS3Reader, source, buffer_size=8)
    source.fail(0, ConnectionError())
    reader.prefetch()
    with pytest.raises(ConnectionError):
        reader.read(3)
    assert reader.read(3) == DATA[:3]
    unbuffered = opened(RangedS3Reader, source, buffer_size=0)
    unbuffered.prefetch()
    assert len(source.requests) == 2

"""How bytes are cut into requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core.errors import ConfigurationError
from s3torch.core.ranges import (
    GIB,
    MAX_OBJECT_SIZE,
    MAX_PART_SIZE,
    MAX_PARTS,
    MIB,
    MIN_PART_SIZE,
    TIB,
    ByteRange,
    planned_part_size,
    split_range,
    upload_part_size,
)

sizes = st.integers(0, 10 * MIB)


def test_the_limits_are_those_of_s3():
    limits = (MIN_PART_SIZE, MAX_PART_SIZE, MAX_PARTS, MAX_OBJECT_SIZE)
    assert limits == (5 * MIB, 5 * GIB, 10_000, 5 * TIB)


@given(start=st.integers(0, 10_000), length=st.integers(0, 10_000), size=st.integers(1, 999))
def test_the_parts_of_a_range_cover_it_once(start, length, size):
    parts = list(split_range(start, start + length, size))
    covered = [byte for part in parts for byte in range(part.start, part.stop)]
    assert covered == list(range(start, start + length))
    assert all(len(part) == size for part in parts[:-1])
    assert all(0 < len(part) <= size for part in parts)
    assert len(parts) == -(-length // size)


def test_a_range_that_ends_before_it_begins_has_no_parts():
    assert list(split_range(10, 5, 2)) == []


@given(start=sizes, length=st.integers(1, 10 * MIB))
def test_the_header_is_inclusive(start, length):
    first, last = ByteRange(start, start + length).header.removeprefix("bytes=").split("-")
    assert int(last) - int(first) + 1 == len(ByteRange(start, start + length)) == length


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (5, 5), (6, 5), (-1, 5), (-2, -1)])
def test_empty_and_negative_ranges_are_refused(start, stop):
    with pytest.raises(ConfigurationError, match=f"got {start}, {stop}"):
        ByteRange(start, stop)


def test_a_range_is_a_value():
    assert ByteRange(1, 2) == ByteRange(1, 2)
    assert len({ByteRange(1, 2), ByteRange(1, 2)}) == 1


@given(base=st.integers(MIN_PART_SIZE, MAX_PART_SIZE))
def test_any_part_size_reaches_the_largest_object(base):
    parts = [upload_part_size(number, base) for number in range(1, MAX_PARTS + 1)]
    assert sum(parts) >= MAX_OBJECT_SIZE
    assert parts == sorted(parts)
    assert parts[0] == base
    assert all(MIN_PART_SIZE <= part <= MAX_PART_SIZE for part in parts)


@given(st.integers(0, MAX_OBJECT_SIZE), st.integers(MIN_PART_SIZE, MAX_PART_SIZE))
def test_equal_parts_of_a_known_size_suffice(size, base):
    part = planned_part_size(size, base)
    assert part * MAX_PARTS >= size
    assert part == base or part < size / MAX_PARTS + MIB


def test_all_but_huge_objects_have_parts_of_the_size_that_was_asked_for():
    assert {upload_part_size(number, 8 * MIB) for number in range(1, 901)} == {8 * MIB}
    assert upload_part_size(901, 8 * MIB) == 16 * MIB

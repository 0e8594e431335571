"""The look-ahead keeps the order, is bounded, and cleans up what nobody took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core.errors import ConfigurationError
from s3torch.datasets._opening import (
    DEFAULT_PREFETCH,
    Ahead,
    check_prefetch,
    choose_ahead,
    look_ahead,
)


class NeverStarted:
    """A reader that cannot start on its own."""

    def close(self):
        pass


@given(st.integers(0, 40), st.integers(0, 10))
def test_readers_come_in_order_and_at_most_depth_are_ahead(readers_of, count, depth):
    readers, log = readers_of(count)
    for position, reader in enumerate(look_ahead(readers, Ahead(depth))):
        assert reader is readers[position]
        ahead = min(position + depth + 1, count)
        assert log == ([] if depth == 0 else list(range(ahead)))
    assert not any(reader.closed for reader in readers)


@given(st.integers(1, 40), st.integers(1, 10), st.data())
def test_dropping_the_iterator_closes_what_was_started_and_not_taken(readers_of, count, depth, data):
    readers, log = readers_of(count)
    taken = data.draw(st.integers(1, count))
    iterator = look_ahead(readers, Ahead(depth))
    for _ in range(taken):
        next(iterator)
    del iterator
    assert [reader.closed for reader in readers] == [
        reader.number >= taken and reader.number in log for reader in readers
    ]


def test_an_error_of_the_listing_closes_what_was_started(readers_of):
    readers, _ = readers_of(3)

    def listing():
        yield from readers
        raise OSError("the listing broke")

    with pytest.raises(OSError, match="the listing broke"):
        list(look_ahead(listing(), Ahead(5)))
    assert all(reader.closed for reader in readers)


def test_readers_without_prefetch_wait_for_their_first_read():
    readers = [NeverStarted(), NeverStarted()]
    assert list(look_ahead(readers, Ahead(2))) == readers


@pytest.mark.parametrize("value", [-1, 1.5, "4", True])
def test_a_wrong_depth_is_refused(value):
    with pytest.raises(ConfigurationError, match="prefetch must be an integer from 0 on"):
        check_prefetch(value)


def test_none_is_the_default():
    assert check_prefetch(None) == DEFAULT_PREFETCH
    assert check_prefetch(0) == 0


@given(st.integers(0, 40), st.integers(1, 20))
def test_a_gentle_start_is_twice_what_was_taken(readers_of, count, depth):
    readers, log = readers_of(count)
    for taken, _ in enumerate(look_ahead(readers, Ahead(depth), gently=True)):
        assert len(log) <= min(taken + depth + 1, 3 * (taken + 1), count)


@given(st.integers(3, 40), st.integers(1, 20))
def test_bytes_bound_what_is_ahead(readers_of, count, limit):
    readers, log = readers_of(count)
    for taken, _ in enumerate(look_ahead(readers, Ahead(100, limit), weigh=lambda _: 1)):
        assert len(log) - taken <= max(3, limit + 1)


def test_the_default_follows_the_memory():
    gib = 1024**3
    assert choose_ahead(None, memory_limit=gib) == Ahead(DEFAULT_PREFETCH, gib // 4)
    assert choose_ahead(5, memory_limit=gib // 8) == Ahead(5, gib // 32)
    # Some read-ahead is always worth it, and at some point more is not.
    assert choose_ahead(None, memory_limit=gib // 1024).size == 16 * 1024**2
    assert choose_ahead(None, memory_limit=64 * gib).size == gib // 4

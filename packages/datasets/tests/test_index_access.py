"""Which indices are foreseen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.datasets._map_style import IndexAccess
from s3torch.datasets._opening import Ahead, look_ahead


def test_three_indices_in_a_row_are_read_ahead_and_a_jump_drops_it(readers_of):
    readers, log = readers_of(20)
    access = IndexAccess()

    def ask(index):
        return access.reader(index, lambda: look_ahead(readers[index:], Ahead(4)))

    assert [ask(index) for index in (7, 8, 2, 3)] == [None] * 4
    assert log == []
    assert [ask(index) for index in (4, 5)] == readers[4:6]
    assert log == [4, 5, 6, 7, 8, 9]
    assert ask(0) is None
    assert [reader.closed for reader in readers[4:10]] == [False, False, True, True, True, True]


@pytest.mark.promise(7)
def test_an_error_of_the_read_ahead_does_not_look_like_the_end():
    access = IndexAccess()

    def broken():
        yield object()
        raise OSError("no connection")

    assert [access.reader(index, broken) for index in (0, 1)] == [None, None]
    assert access.reader(2, broken) is not None
    with pytest.raises(OSError, match="no connection"):
        access.reader(3, broken)
    assert access.reader(4, broken) is None


batches = st.lists(st.lists(st.integers(0, 19), max_size=6), max_size=6)


@given(batches, st.data())
def test_whatever_is_told_and_asked_every_reader_is_the_right_one(readers_of, told, data):
    readers, _ = readers_of(20)
    access = IndexAccess()
    for batch in told:
        access.expect(batch, lambda batch=batch: look_ahead([readers[at] for at in batch], Ahead(3)))
        asked = batch if data.draw(st.booleans()) else data.draw(st.lists(st.integers(0, 19), max_size=6))
        for index in asked:
            found = access.reader(index, lambda index=index: look_ahead(readers[index:], Ahead(3)))
            assert found is None or found is readers[index]


def test_a_batch_that_is_told_is_started_together(readers_of):
    readers, log = readers_of(20)
    access = IndexAccess()
    batch = [7, 3, 9]
    access.expect(batch, lambda: look_ahead([readers[index] for index in batch], Ahead(8)))
    assert access.reader(7, lambda: None) is readers[7]
    assert log == batch
    assert [access.reader(index, lambda: None) for index in (3, 9)] == [readers[3], readers[9]]


def test_who_asks_for_something_else_is_not_believed_again(readers_of):
    readers, log = readers_of(20)
    access = IndexAccess()
    for _ in range(3):
        access.expect([4, 5], lambda: look_ahead(readers[4:6], Ahead(8)))
        assert access.reader(15, lambda: None) is None
        assert access.reader(11, lambda: None) is None
    access.expect([4, 5], lambda: look_ahead(readers[4:6], Ahead(8)))
    assert access.reader(4, lambda: None) is None
    assert log == []

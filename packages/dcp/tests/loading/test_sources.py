"""Slices of files, and files that are read several at a time."""

from __future__ import annotations

import io
import threading
import time
from contextlib import closing, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core import TruncatedError
from s3torch.dcp.loading import FileSlice, Window, load_chunks
from s3torch.dcp.plan import StoredChunk

DATA = bytes(range(256))


class File(io.BytesIO):
    bucket, key = "bucket", "key"


@given(
    st.integers(0, 256),
    st.integers(0, 256),
    st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.integers(-1, 300)),
            st.tuples(st.just("readinto"), st.integers(0, 300)),
            st.tuples(st.just("seek"), st.integers(0, 300), st.just(io.SEEK_SET)),
            st.tuples(st.just("seek"), st.integers(0, 50), st.just(io.SEEK_CUR)),
            st.tuples(st.just("seek"), st.integers(-5, 50), st.just(io.SEEK_END)),
        )
    ),
)
def test_a_slice_is_a_file(one, other, steps):
    start, stop = sorted((one, other))
    model = io.BytesIO(DATA[start:stop])
    piece = FileSlice(File(DATA), start, stop)
    assert (piece.readable(), piece.seekable(), piece.writable()) == (True, True, False)
    for name, *arguments in steps:
        if name == "readinto":
            left, right = bytearray(arguments[0]), bytearray(arguments[0])
            assert piece.readinto(left) == model.readinto(right)
            assert left == right
        elif name == "seek" and arguments[1] == io.SEEK_END and stop - start + arguments[0] < 0:
            with pytest.raises(ValueError, match="negative seek value"):
                piece.seek(*arguments)
        else:
            assert getattr(piece, name)(*arguments) == getattr(model, name)(*arguments)
        assert piece.tell() == model.tell()


def test_a_slice_beyond_the_end_of_the_file_is_no_short_read():
    piece = FileSlice(File(DATA), 200, 300)
    with pytest.raises(TruncatedError, match=r"s3://bucket/key: the file has no byte 256"):
        piece.read()
    assert isinstance(piece.error, TruncatedError)


def test_a_window_bounds_what_is_in_it():
    window = Window(10)
    assert window.acquire(6)
    assert window.acquire(4)
    entered = threading.Event()
    waiting = threading.Thread(target=lambda: window.acquire(100) and entered.set())
    waiting.start()
    window.release(6)
    assert not entered.wait(0.05)
    window.release(4)
    assert entered.wait(10)
    waiting.join()


def test_a_closed_window_lets_nobody_wait():
    window = Window(1)
    assert window.acquire(5)
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(window.acquire(5)))
    waiting.start()
    window.close()
    waiting.join(10)
    assert answers == [False]


def files_of(count, per_file, opened):
    @contextmanager
    def opening(n):
        opened.append(n)
        yield n
        opened.remove(n)

    chunks = [StoredChunk(at, at + 10, (), ()) for at in range(0, 10 * per_file, 10)]
    return [(opening(n), chunks) for n in range(count)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_all_chunks_come_once(threads, count):
    opened = []
    files = files_of(count, 5, opened)
    window = Window(20)
    loaded = load_chunks(files, lambda n, chunk: (n, chunk.start), threads=threads, window=window)
    values = sorted(value for _, value in loaded)
    assert values == [(n, at) for n in range(count) for at in range(0, 50, 10)]
    assert opened == []


def test_threads_wait_for_a_slow_taker():
    decoded = []
    files = files_of(4, 10, [])
    window = Window(30)
    loaded = load_chunks(files, lambda n, chunk: decoded.append(n), threads=4, window=window)
    with closing(loaded):
        next(loaded)
        time.sleep(0.05)
        assert len(decoded) <= 3
        next(loaded)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_error_ends_everything(threads):
    def decode(n, chunk):
        if (n, chunk.start) == (2, 20):
            raise ArithmeticError("broken")

    opened = []
    files = files_of(8, 100, opened)
    with pytest.raises(ArithmeticError, match="broken"):
        list(load_chunks(files, decode, threads=threads, window=Window(1000)))


def test_a_taker_that_stops_leaves_no_thread_behind():
    before = threading.active_count()
    files = files_of(8, 100, [])
    loaded = load_chunks(files, lambda n, chunk: None, threads=4, window=Window(50))
    with closing(loaded):
        next(loaded)
    assert threading.active_count() == before

"""The conformance suite of readers: a reader has to behave as ``io.BytesIO`` over the same bytes does.

The author of a reader subclasses ``ReaderTests`` in a test module and overrides ``open_reader``; ``pytest``
does the rest::

    import pytest

    pytest.register_assert_rewrite("s3torch.testing")

    from s3torch.testing.reader_tests import ReaderTests


    class TestMyReader(ReaderTests):
        def open_reader(self, data):
            key = store(data)
            return client.get_object("bucket", key, reader_constructor=MyReader)

It is called many times within one test, so it should be quick; a part of a few bytes finds more than one of
megabytes. What the suite asks of a reader:

* **A file.** It is an ``io.BufferedIOBase``, readable, seekable and not writable, with a bucket, a key and a
  size. Pillow, ``io.TextIOWrapper``, ``io.BufferedReader`` and torch take it as any other binary file.
* **The bytes.** Any sequence of calls returns what ``io.BytesIO`` returns, and leaves the position where that
  leaves it. There is one difference: a seek behind the end stays at the end. While the size of the object is
  not known yet, this may show only at the next read.
* **Buffers.** ``readinto`` fills any writable contiguous buffer, counts in bytes, and touches nothing behind
  what it has read.
* **Arguments.** What a file would refuse is refused with the same exception, and the reader stays usable.
* **The end.** After ``close``, which may be called again, everything raises ``ValueError``. A ``with`` block
  closes the reader, also when it raises.
* **Processes.** An unread reader can be pickled, with its position; one that has begun to read cannot.

Two promises need a look behind the reader, and tests of your own, for which ``FaultProxy`` is made: nothing
is sent before the first read or question for the size, and after a failed read, which leaves the position
where it was, reading goes on from the exact byte or keeps raising.
"""

# ruff: noqa: S101 - In tests, assert is how they tell.

from __future__ import annotations

import array
import contextlib
import ctypes
import io
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core import S3Reader

__all__ = ["ReaderTests"]

# The suite is made to be subclassed, and what a subclass keeps between examples is its own business.
_settings = settings(
    max_examples=40, suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow]
)

_DATA = bytes(range(256)) * 2
_LINES = b"first\n\nthird line\r\nfourth\xc3\xbc\n" * 5 + b"no end"

_contents = st.one_of(
    st.binary(max_size=300), st.lists(st.sampled_from([b"a", b"\n", b"long "])).map(b"".join)
)
_counts = st.integers(-1, 330)
_offsets = st.integers(-330, 660)
_calls = st.one_of(
    st.tuples(st.just("read"), st.one_of(st.none(), _counts)),
    st.tuples(st.just("readinto"), st.integers(0, 330)),
    st.tuples(st.just("readinto1"), st.integers(0, 330)),
    st.tuples(st.just("readline"), _counts),
    st.tuples(st.just("readlines"), st.integers(0, 100)),
    st.tuples(st.just("peek"), st.integers(0, 20)),
    st.tuples(st.just("read1"), _counts),
    st.tuples(st.just("seek"), _offsets, st.integers(0, 2)),
    st.tuples(st.just("tell")),
)


class ReaderTests:
    """What every reader has to do. Subclass it and override ``open_reader``."""

    def open_reader(self, data: bytes) -> S3Reader:
        """To be overridden: opens an unread reader of an object with these bytes."""
        raise NotImplementedError

    @_settings
    @given(data=_contents, calls=st.lists(_calls, max_size=20))
    def test_any_program_of_calls_reads_what_a_bytesio_reads(
        self, data: bytes, calls: list[tuple[Any, ...]]
    ) -> None:
        """Runs the same calls on both and compares results and positions."""
        model = io.BytesIO(data)
        with self.open_reader(data) as reader:
            for name, *arguments in calls:
                getattr(_Step(reader, model, len(data)), name)(*arguments)
                assert reader.tell() == model.tell()
            assert reader.read() == model.read()
            assert reader.size == len(data)

    @_settings
    @given(data=_contents, offset=st.integers(0, 660), count=st.one_of(st.none(), _counts))
    def test_the_first_read_may_be_anywhere(self, data: bytes, offset: int, count: int | None) -> None:
        """Seeks in an untouched reader, also behind the end."""
        with self.open_reader(data) as reader:
            reader.seek(offset)
            expected = data[offset:] if count is None or count < 0 else data[offset : offset + count]
            assert reader.read(count) == expected
            if count != 0:
                assert reader.tell() == min(offset, len(data)) + len(expected)

    @_settings
    @given(tail=st.integers(0, 100), step=st.integers(1, 200))
    def test_the_tail_first_and_then_forward(self, tail: int, step: int) -> None:
        """Reads as torch reads a checkpoint: the directory at the end, then the members."""
        with self.open_reader(_DATA) as reader:
            assert reader.read(4) == _DATA[:4]
            assert reader.seek(0, io.SEEK_END) == len(_DATA)
            assert reader.seek(-tail, io.SEEK_END) == len(_DATA) - tail
            assert reader.read() == _DATA[len(_DATA) - tail :]
            assert reader.seek(0) == 0
            buffer, found = bytearray(step), b""
            while count := reader.readinto(buffer):
                found += buffer[:count]
            assert found == _DATA

    @pytest.mark.parametrize("data", [b"", b"x", _DATA], ids=["empty", "one-byte", "many"])
    def test_all_of_it_at_once(self, data: bytes) -> None:
        """Reads everything, and then the end."""
        with self.open_reader(data) as reader:
            assert type(content := reader.read()) is bytes
            assert content == data
            assert (reader.tell(), reader.read(), reader.read(5)) == (len(data), b"", b"")
            assert reader.readinto(bytearray(5)) == 0
            assert reader.size == len(data)

    def test_the_size_of_an_untouched_reader(self) -> None:
        """Asks for the end before any byte."""
        with self.open_reader(_DATA) as reader:
            assert reader.seek(0, io.SEEK_END) == len(_DATA)
            assert reader.seek(100, io.SEEK_END) == len(_DATA)
            assert reader.read() == b""
            assert reader.seek(len(_DATA) + 5) == len(_DATA)

    @pytest.mark.parametrize("count", [0, 7])
    def test_the_size_does_not_move_the_position(self, count: int) -> None:
        """Asks for the size before and after the first byte."""
        with self.open_reader(_DATA) as reader:
            reader.read(count)
            assert (reader.size, reader.tell()) == (len(_DATA), count)
            assert reader.read() == _DATA[count:]

    def test_it_is_a_binary_file(self) -> None:
        """Answers the questions that libraries ask a file."""
        with self.open_reader(_DATA) as reader:
            assert isinstance(reader, io.BufferedIOBase)
            assert (reader.readable(), reader.seekable(), reader.writable()) == (True, True, False)
            assert not reader.isatty()
            assert reader.bucket
            assert reader.key

    @pytest.mark.parametrize("call", ["fileno", "write", "truncate", "detach"])
    def test_what_it_cannot_do(self, call: str) -> None:
        """Refuses what only other files can."""
        with self.open_reader(_DATA) as reader, pytest.raises(io.UnsupportedOperation):
            getattr(reader, call)(*([b"x"] if call == "write" else []))

    def test_lines(self) -> None:
        """Iterates over lines."""
        expected = io.BytesIO(_LINES).readlines()
        assert list(self.open_reader(_LINES)) == expected
        assert self.open_reader(_LINES).readlines() == expected

    @pytest.mark.parametrize("newline", [None, "", "\n", "\r\n"])
    def test_as_text(self, newline: str | None) -> None:
        """Lies under a ``TextIOWrapper``."""

        def text(file: Any) -> list[str]:
            with io.TextIOWrapper(file, encoding="utf-8", newline=newline) as wrapper:
                lines = wrapper.readlines()
                wrapper.seek(0)
                return [*lines, wrapper.read()]

        assert text(self.open_reader(_LINES)) == text(io.BytesIO(_LINES))

    @pytest.mark.parametrize("size", [1, 7, 64, 8192])
    def test_below_a_buffer(self, size: int) -> None:
        """Lies under a ``BufferedReader``."""
        with io.BufferedReader(self.open_reader(_DATA), size) as buffered:
            assert buffered.read(3) == _DATA[:3]
            assert buffered.seek(200) == 200
            assert buffered.read(100) == _DATA[200:300]
            assert buffered.seek(-5, io.SEEK_END) == len(_DATA) - 5
            assert buffered.read() == _DATA[-5:]

    @pytest.mark.parametrize(
        "make",
        [
            bytearray,
            lambda size: memoryview(bytearray(size)),
            lambda size: array.array("d", bytes(size)),
            lambda size: memoryview(bytearray(size)).cast("f"),
            lambda size: memoryview(bytearray(size)).cast("B", (2, size // 2)),
            lambda size: (ctypes.c_double * (size // 8))(),
        ],
        ids=["bytearray", "memoryview", "array", "floats", "two-dimensional", "ctypes"],
    )
    @pytest.mark.parametrize("size", [64, 512, 1024])
    def test_any_writable_buffer_is_filled_in_bytes(self, make: Callable[[int], Any], size: int) -> None:
        """Counts bytes and not elements."""
        buffer = make(size)
        with self.open_reader(_DATA) as reader:
            count = min(size, len(_DATA))
            assert reader.readinto(buffer) == count
            assert bytes(memoryview(buffer))[:count] == _DATA[:count]
            assert reader.readinto(bytearray()) == 0

    @pytest.mark.parametrize(
        "buffer", [b"12345", memoryview(b"12345"), "12345", None, 5], ids=lambda value: type(value).__name__
    )
    def test_a_buffer_has_to_be_writable(self, buffer: Any) -> None:
        """Refuses other things and stays usable."""
        with self.open_reader(_DATA) as reader:
            expected = f"argument must be a writable bytes-like object, not {type(buffer).__name__}"
            with pytest.raises(TypeError, match=expected):
                reader.readinto(buffer)
            assert reader.read(3) == _DATA[:3]

    def test_a_buffer_has_to_be_contiguous(self) -> None:
        """Refuses a buffer with holes."""
        with self.open_reader(_DATA) as reader, pytest.raises(TypeError):
            reader.readinto(memoryview(bytearray(10))[::2])

    @pytest.mark.parametrize("size", ["1", 1.5, b"1", [1]], ids=repr)
    def test_sizes_are_integers(self, size: Any) -> None:
        """Refuses other sizes and stays usable."""
        with self.open_reader(_DATA) as reader:
            with pytest.raises(TypeError, match=r"^argument should be integer or None, not"):
                reader.read(size)
            assert reader.read(3) == _DATA[:3]

    @pytest.mark.parametrize("arguments", [(1.5,), ("1",), (None,), (0, 1.5), (0, "1")], ids=repr)
    def test_offsets_are_integers(self, arguments: tuple[Any, ...]) -> None:
        """Refuses other offsets."""
        with self.open_reader(_DATA) as reader:
            with pytest.raises(TypeError, match=r"^integer argument expected, got"):
                reader.seek(*arguments)
            assert reader.tell() == 0

    @pytest.mark.parametrize("whence", [-1, 3, 100])
    def test_other_origins_of_a_seek(self, whence: int) -> None:
        """Refuses what is not one of the three."""
        expected = "^Seek must be passed SEEK_CUR, SEEK_SET, or SEEK_END$"
        with self.open_reader(_DATA) as reader, pytest.raises(ValueError, match=expected):
            reader.seek(0, whence)

    def test_a_position_is_not_negative(self) -> None:
        """Refuses to go before the beginning."""
        with self.open_reader(_DATA) as reader:
            reader.read(7)
            for offset, whence, target in [(-3, 0, -3), (-10, 1, -3), (-600, 2, len(_DATA) - 600)]:
                with pytest.raises(ValueError, match=f"^negative seek value {target}$"):
                    reader.seek(offset, whence)
            assert reader.tell() == 7

    @pytest.mark.parametrize("is_read", [False, True])
    def test_closed_means_closed(self, is_read: bool) -> None:  # noqa: FBT001
        """Refuses everything after ``close``, which may be called again."""
        reader = self.open_reader(_DATA)
        if is_read:
            reader.read(10)
        assert not reader.closed
        reader.close()
        reader.close()
        assert reader.closed
        calls: list[Callable[[], Any]] = [
            reader.read,
            lambda: reader.read(0),
            lambda: reader.readinto(bytearray(1)),
            lambda: reader.seek(0),
            reader.tell,
            reader.readline,
            reader.readlines,
            reader.read1,
            lambda: reader.readinto1(bytearray(1)),
            lambda: reader.size,
            lambda: next(reader),
            reader.__enter__,
        ]
        for call in calls:
            with pytest.raises(ValueError, match="closed file"):
                call()

    def test_an_exception_closes_it(self) -> None:
        """Leaves no ``with`` block open."""
        with contextlib.suppress(KeyError), self.open_reader(_DATA) as reader:
            raise KeyError
        assert reader.closed

    def test_an_unread_reader_can_be_pickled(self) -> None:
        """Travels to another process, as long as nothing was read."""
        reader = self.open_reader(_DATA)
        reader.seek(5)
        with pickle.loads(pickle.dumps(reader)) as again:  # noqa: S301
            assert again.read(10) == _DATA[5:15]
        assert reader.read(3) == _DATA[5:8]
        with pytest.raises(TypeError):
            pickle.dumps(reader)


class _Step:
    """One call on a reader and on the model of it."""

    def __init__(self, reader: S3Reader, model: io.BytesIO, size: int) -> None:
        self._reader = reader
        self._model = model
        self._size = size

    def read(self, count: int | None) -> None:
        assert self._reader.read(count) == self._model.read(count)

    def readinto(self, count: int) -> None:
        mine, theirs = bytearray(b"." * count), bytearray(b"." * count)
        assert self._reader.readinto(mine) == self._model.readinto(theirs)
        assert mine == theirs

    def readinto1(self, count: int) -> None:
        mine = bytearray(count)
        got = self._reader.readinto1(mine)
        assert got or not count or self._model.tell() == self._size
        assert mine[:got] == self._model.read(got)

    def readline(self, count: int) -> None:
        assert self._reader.readline(count) == self._model.readline(count)

    def readlines(self, count: int) -> None:
        # Of the base class: BytesIO alone stops when the hint is reached, all others when it is exceeded.
        assert self._reader.readlines(count) == io.IOBase.readlines(self._model, count)

    def read1(self, count: int) -> None:
        got = self._reader.read1(count)
        assert got or not count or self._model.tell() == self._size
        assert count < 0 or len(got) <= count
        assert got == self._model.read(len(got))

    def peek(self, count: int) -> None:
        if not hasattr(self._reader, "peek"):
            return
        position = self._model.tell()
        got = self._reader.peek(count)
        assert got or position == self._size
        assert got == self._model.read(len(got))
        self._model.seek(position)

    def seek(self, offset: int, whence: int) -> None:
        origin = (0, self._model.tell(), self._size)[whence]
        target = origin + offset
        if target < 0:
            with pytest.raises(ValueError, match=r"^negative seek value"):
                self._reader.seek(offset, whence)
            return
        found = self._reader.seek(offset, whence)
        self._model.seek(min(target, self._size))
        if target > self._size and found == target:
            # The size was not known yet; the next read puts the position right.
            assert self._reader.read(1) == b""
        else:
            assert found == self._model.tell()

    def tell(self) -> None:
        assert self._reader.tell() == self._model.tell()

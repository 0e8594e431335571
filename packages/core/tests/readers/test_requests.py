"""What readers ask for, when, and how much memory they take."""

from __future__ import annotations

import gc
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3torch.core import RangedS3Reader, SequentialS3Reader
from s3torch.core._process import reaper
from s3torch.core.errors import ConfigurationError

DATA = bytes(range(200)) + b"12345"  # 21 parts of 10 bytes, the last one half.
PARTS = [(start, start + 10) for start in range(0, 205, 10)]
both = pytest.mark.parametrize("cls", [SequentialS3Reader, RangedS3Reader])


@both
@pytest.mark.parametrize("known", [True, False])
def test_a_whole_read_asks_for_each_part_once(cls, known, ledger, opened):
    source = ledger(DATA, known=known)
    assert opened(cls, source).read() == DATA
    assert [start for start, _ in source.requests] == [start for start, _ in PARTS]
    assert source.heads == 0


@both
def test_a_whole_read_of_known_size_has_all_parts_in_flight(cls, ledger, opened):
    source = ledger(DATA, known=True)
    source.fail(0, OSError("the first one"))
    with pytest.raises(OSError, match="the first one"):
        opened(cls, source).read()
    assert len(source.requests) >= 16
    assert source.waited == [(0, 10)]


@both
@pytest.mark.parametrize("known", [True, False])
def test_nothing_is_asked_for_before_it_is_needed(cls, known, ledger, opened):
    source = ledger(DATA, known=known)
    reader = opened(cls, source)
    reader.seek(50)
    reader.seek(-10, io.SEEK_CUR)
    assert (reader.tell(), reader.read(0), reader.readinto(bytearray())) == (40, b"", 0)
    reader.close()
    assert (source.requests, source.heads) == ([], 0)


@both
def test_the_end_of_an_untouched_reader_is_one_head(cls, ledger, opened):
    source = ledger(DATA)
    reader = opened(cls, source)
    assert [reader.seek(0, io.SEEK_END) for _ in range(3)] == [205] * 3
    assert (reader.size, reader.etag) == (205, '"etag"')
    assert (source.requests, source.heads) == ([], 1)


@both
def test_the_end_after_any_read_costs_nothing(cls, ledger, opened):
    source = ledger(DATA)
    reader = opened(cls, source)
    reader.read(1)
    count = len(source.requests)
    assert reader.seek(0, io.SEEK_END) == reader.size == 205
    assert (len(source.requests), source.heads) == (count, 0)


@both
@pytest.mark.parametrize("data", [b"", b"small", DATA], ids=["empty", "one-part", "many-parts"])
def test_at_a_known_end_nothing_is_asked_for(cls, data, ledger, opened):
    source = ledger(data, known=True)
    reader = opened(cls, source)
    for position in (len(data), len(data) + 7):
        reader.seek(position)
        assert (reader.read(), reader.read(5), reader.readinto(bytearray(5)), reader.peek()) == (
            b"",
            b"",
            0,
            b"",
        )
    assert (source.requests, source.heads) == ([], 0)


@both
def test_a_read_behind_an_unknown_end(cls, ledger, opened):
    source = ledger(b"short")
    reader = opened(cls, source)
    reader.seek(8)
    assert (reader.read(5), reader.tell()) == (b"", 5)
    assert len(source.requests) + source.heads <= 2


@pytest.mark.parametrize("step", [1, 3, 10, 25])
def test_reading_forward_asks_for_each_part_once(step, ledger, opened):
    source = ledger(DATA)
    reader = opened(SequentialS3Reader, source)
    assert b"".join(iter(lambda: reader.read(step), b"")) == DATA
    assert sorted(source.requests) == sorted(set(source.requests))
    assert [start for start, _ in sorted(source.requests)] == [start for start, _ in PARTS]


def test_going_back_costs_nothing(ledger, opened):
    source = ledger(DATA)
    reader = opened(SequentialS3Reader, source)
    while reader.read(7):
        pass
    count = len(source.requests)
    for position in (0, 199, 100, 3):
        reader.seek(position)
        assert reader.read(20) == DATA[position : position + 20]
    assert len(source.requests) == count


def test_a_few_bytes_of_a_large_object_do_not_download_it(ledger, opened):
    source = ledger(bytes(10_000), known=True)
    reader = opened(SequentialS3Reader, source)
    reader.read(4)
    assert len(source.requests) <= 3
    assert source.shared.used <= 30


@pytest.mark.parametrize("known", [True, False])
def test_a_few_bytes_of_a_large_object_are_one_part(known, ledger, opened):
    source = ledger(DATA, known=known)
    reader = opened(SequentialS3Reader, source)
    assert (reader.read(2), reader.read(2)) == (DATA[:2], DATA[2:4])
    assert source.requests == [(0, 10)]


def test_the_window_grows_while_reading_and_falls_back_on_a_jump(ledger, opened):
    source = ledger(bytes(10_000), known=True)
    reader = opened(SequentialS3Reader, source)
    ahead = []
    for _ in range(8):
        reader.read(10)
        ahead.append(max(stop for _, stop in source.requests) - reader.tell())
    assert ahead == sorted(ahead)
    assert ahead[-1] >= 160
    reader.seek(5000)
    source.requests.clear()
    reader.read(10)
    assert len(source.requests) <= 2


def test_a_read_of_the_tail_does_not_disturb_the_window(ledger, opened):
    source = ledger(bytes(10_000), known=True)
    reader = opened(SequentialS3Reader, source)
    for _ in range(6):
        reader.read(10)
    reader.seek(-5, io.SEEK_END)
    reader.read()
    reader.seek(60)
    ahead = max(stop for _, stop in source.requests if stop < 9000)
    reader.read(10)
    reader.read(10)
    assert max(stop for _, stop in source.requests if stop < 9000) >= ahead


def test_a_short_last_part_is_asked_for_once(ledger, opened):
    """As torch looks for the directory of a file: more than it needs, then again what it has found."""
    source = ledger(DATA, known=True)
    reader = opened(SequentialS3Reader, source)
    reader.seek(193)
    assert reader.readinto(bytearray(12)) == 12
    reader.seek(202)
    assert reader.read() == DATA[202:]
    assert sorted(source.requests) == [(190, 200), (200, 205)]


def test_what_lies_far_behind_is_let_go(ledger, opened):
    # Parts of 8 MiB would need 64 MiB; the reader keeps 32 MiB behind the position.
    size = 8 * 2**20
    source = ledger(memoryview(bytearray(8 * size)), part_size=size, known=True)
    reader = opened(SequentialS3Reader, source)
    while reader.read(size // 2):
        pass
    assert source.shared.used <= 6 * size
    reader.close()
    assert source.shared.used == 0


@pytest.mark.promise(3)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=st.integers(0, 300),
    reads=st.lists(st.tuples(st.integers(0, 205), st.integers(0, 60)), max_size=15),
    known=st.booleans(),
)
def test_read_ahead_keeps_to_the_budget(limit, reads, known, ledger, opened):
    source = ledger(DATA, known=known, limit=limit)
    reader = opened(SequentialS3Reader, source)
    for position, count in reads:
        held = source.shared.used
        reader.seek(position)
        assert reader.read(count) == DATA[position : position + count]
        # Beyond the limit only what the caller waited for.
        touched = count // 10 + 2
        assert source.shared.used <= max(limit, held + 10 * touched)
    reader.close()
    assert source.shared.used == 0


@pytest.mark.promise(2)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(failing=st.sets(st.integers(0, 40), max_size=15), sizes=st.lists(st.integers(1, 70), min_size=1))
@pytest.mark.parametrize("cls", [SequentialS3Reader, RangedS3Reader])
@pytest.mark.parametrize("known", [True, False])
def test_after_a_failure_reading_goes_on_from_the_exact_byte(cls, known, failing, sizes, ledger, opened):
    options = {"buffer_size": 15} if cls is RangedS3Reader else {}
    source = ledger(DATA, known=known)
    for number in failing:
        source.fail(number, ConnectionError(f"request {number}"))
    reader = opened(cls, source, **options)
    found = b""
    for turn in range(1000):
        position = reader.tell()
        try:
            piece = reader.read(sizes[turn % len(sizes)])
        except ConnectionError:
            assert reader.tell() == position == len(found)
            continue
        if not piece:
            break
        found += piece
    assert found == DATA
    reader.close()
    assert source.shared.used == 0


@both
def test_an_error_that_stays_is_raised_by_every_read(cls, ledger, opened):
    source = ledger(DATA)
    reader = opened(cls, source)
    assert reader.read(10) == DATA[:10]
    for number in range(100):
        source.fail(number, ConnectionError("down"))
    reader.seek(100)
    calls = [reader.read, lambda: reader.read(5), lambda: reader.readinto(bytearray(50)), reader.read]
    for call in calls:
        with pytest.raises(ConnectionError, match="down"):
            call()
        assert reader.tell() == 100


def test_a_failed_refill_leaves_no_bytes_of_another_place(ledger, opened):
    source = ledger(DATA)
    reader = opened(RangedS3Reader, source, buffer_size=10)
    assert reader.read(3) == DATA[:3]
    source.fail(1, ConnectionError())
    reader.seek(100)
    with pytest.raises(ConnectionError):
        reader.read(3)
    assert reader.read(3) == DATA[100:103]
    reader.seek(2)
    assert reader.read(3) == DATA[2:5]


def test_prefetch_asks_and_returns_at_once(ledger, opened):
    source = ledger(DATA)
    reader = opened(SequentialS3Reader, source)
    reader.prefetch()
    reader.prefetch()
    assert (source.requests, source.waited) == ([(0, 10)], [])
    assert reader.read(10) == DATA[:10]
    reader.seek(0, io.SEEK_END)
    count = len(source.requests)
    reader.prefetch()
    assert len(source.requests) == count
    reader.close()
    with pytest.raises(ValueError, match="closed file"):
        reader.prefetch()


@pytest.mark.promise(3)
@pytest.mark.parametrize("how", ["close", "drop", "exception"])
def test_the_end_of_a_reader_cancels_what_is_in_flight(how, ledger, opened):
    source = ledger(bytes(1000), known=True)
    reader = opened(SequentialS3Reader, source)
    for _ in range(4):
        reader.read(10)
    in_flight = set(source.requests) - set(source.waited)
    assert in_flight
    if how == "close":
        reader.close()
    elif how == "exception":
        with pytest.raises(KeyError), reader:
            raise KeyError
    else:
        del reader
        gc.collect()
        assert reaper.get().drain(20)
    assert set(source.cancelled) == in_flight
    assert source.shared.used == 0


@both
def test_an_error_cancels_the_parts_behind_it(cls, ledger, opened):
    source = ledger(DATA, known=True)
    source.fail(2, ConnectionError("third"))
    with pytest.raises(ConnectionError, match="third"):
        opened(cls, source).read()
    assert set(source.requests) == set(source.waited) | set(source.cancelled)


def test_going_back_in_what_was_read_whole_costs_nothing(ledger, opened):
    source = ledger(DATA)
    reader = opened(SequentialS3Reader, source)
    assert reader.read() == DATA
    count = len(source.requests)
    reader.seek(0)
    assert (reader.read(), reader.seek(33), reader.read(20)) == (DATA, 33, DATA[33:53])
    assert len(source.requests) == count
    reader.close()
    assert source.shared.used == 0


def test_what_is_kept_behind_can_be_chosen(ledger, opened):
    source = ledger(DATA, known=True)
    reader = opened(SequentialS3Reader, source, keep_behind=0)
    while reader.read(5):
        assert source.shared.used <= 10 * (16 + 2)
    assert source.shared.used <= 10
    reader.seek(0)
    assert reader.read(3) == DATA[:3]
    assert source.requests.count((0, 10)) == 2
    with pytest.raises(ConfigurationError, match="keep_behind"):
        opened(SequentialS3Reader, source, keep_behind=-1)

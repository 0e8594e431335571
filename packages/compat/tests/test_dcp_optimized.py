"""The reader that is told its ranges: what is allowed, what is refused, and what is sent."""

from __future__ import annotations

import copy
import io
import pickle
from itertools import pairwise

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from s3torch.core import SequentialS3Reader, TruncatedError
from s3torch.dcp import CheckpointError
from s3torchconnector import S3ReaderConstructor
from s3torchconnector.dcp import S3StorageReader, S3StorageWriter
from s3torchconnector.s3reader import (
    DCPOptimizedConstructor,
    DCPOptimizedS3Reader,
    DCPS3ReaderConstructorProtocol,
    ItemRange,
    RangeGroup,
)
from s3torchconnector.s3reader.dcp_optimized import DEFAULT_MAX_GAP_SIZE, _group_ranges

DATA = bytes(range(256)) * 4
STRICT = "^DCPOptimizedS3Reader only supports sequentially accessing provided ranges: "


class Source:
    """Streams of ``DATA`` in pieces, and a list of what was asked for."""

    def __init__(self, piece=7, data=DATA):
        self.piece = piece
        self.data = data
        self.requests = []
        self.closed = 0

    def __call__(self, start=None, end=None):
        self.requests.append((start, end))
        return self._stream(start, end)

    def _stream(self, start, end):
        try:
            for at in range(start, min(end, len(self.data)), self.piece):
                yield self.data[at : min(at + self.piece, end)]
        finally:
            self.closed += 1


def no_info():
    pytest.fail("the reader must not ask for the size")


def make(*pairs, source=None, **options):
    ranges = [ItemRange(*pair) for pair in pairs]
    return DCPOptimizedS3Reader("bucket", "key", ranges, no_info, source or Source(), **options)


def read_at(reader, start, size):
    reader.seek(start)
    return reader.read(size)


def test_items_in_order():
    source = Source()
    with make((0, 10), (10, 30), (50, 60), source=source) as reader:
        assert (reader.bucket, reader.key) == ("bucket", "key")
        assert (reader.readable(), reader.seekable(), reader.writable()) == (True, True, False)
        assert reader.read(10) == DATA[:10]
        assert reader.read(20) == DATA[10:30]
        assert read_at(reader, 50, 10) == DATA[50:60]
        assert reader.tell() == 60
    assert source.requests == [(0, 60)]
    assert source.closed == 1


def test_nothing_is_sent_before_the_first_read():
    source = Source()
    reader = make((0, 10), source=source)
    reader.seek(5)
    assert (reader.read(0), reader.readinto(bytearray())) == (b"", 0)
    assert source.requests == []


@pytest.mark.parametrize(
    ("gap", "requests"),
    [
        (DEFAULT_MAX_GAP_SIZE, [(0, 90)]),
        (float("inf"), [(0, 90)]),
        (10, [(0, 30), (80, 90)]),
        (9.9, [(0, 10), (20, 30), (80, 90)]),
        (0, [(0, 10), (20, 30), (80, 90)]),
    ],
)
def test_requests(gap, requests):
    source = Source()
    reader = make((0, 10), (20, 30), (80, 90), source=source, max_gap_size=gap)
    for start in (0, 20, 80):
        assert read_at(reader, start, 10) == DATA[start : start + 10]
    assert source.requests == requests


def test_seeking_is_free_inside_an_item():
    source = Source()
    reader = make((100, 200), source=source)
    assert read_at(reader, 190, 10) == DATA[190:200]
    assert read_at(reader, 100, 4) == DATA[100:104]
    assert reader.seek(50, io.SEEK_CUR) == 154
    buffer = bytearray(9)
    assert reader.readinto(buffer) == 9
    assert buffer == DATA[154:163]
    assert source.requests == [(100, 200)]


def test_seek_does_not_clamp_and_a_refused_one_changes_nothing():
    reader = make((0, 10))
    assert reader.seek(5000) == 5000
    for arguments, error, text in [
        ((-3,), ValueError, "negative seek value -3"),
        ((-5001, io.SEEK_CUR), ValueError, "negative seek value -1"),
        ((0, io.SEEK_END), ValueError, "whence must be SEEK_CUR or SEEK_SET"),
        ((1.5,), TypeError, "integer argument expected, got"),
        ((0, "1"), TypeError, "integer argument expected, got"),
    ]:
        with pytest.raises(error, match=text):
            reader.seek(*arguments)
    assert reader.tell() == 5000


def test_what_is_not_the_current_or_the_next_item_is_refused_and_changes_nothing():
    source = Source()
    reader = make((0, 10), (20, 30), (40, 50), source=source)
    for start, size in [(20, 10), (10, 1), (0, 11), (9, 2)]:
        with pytest.raises(ValueError, match=STRICT):
            read_at(reader, start, size)
    assert source.requests == []
    assert read_at(reader, 0, 10) == DATA[:10]
    for start, size in [(40, 10), (15, 10), (5, 20), (25, 10), (60, 1)]:
        with pytest.raises(ValueError, match=STRICT):
            read_at(reader, start, size)
    assert read_at(reader, 2, 3) == DATA[2:5]
    assert read_at(reader, 25, 5) == DATA[25:30]
    with pytest.raises(ValueError, match=STRICT):
        read_at(reader, 0, 10)
    assert read_at(reader, 40, 10) == DATA[40:50]
    with pytest.raises(ValueError, match=STRICT):
        reader.read(1)
    assert source.requests == [(0, 50)]


def test_readinto_counts_bytes_and_refuses_what_is_not_writable():
    import array

    reader = make((0, 16))
    target = array.array("I", [0, 0])
    assert reader.readinto(target) == 8
    assert target.tobytes() == DATA[:8]
    for wrong in (b"1234", memoryview(b"1234")):
        with pytest.raises(TypeError, match="argument must be a writable bytes-like object, not"):
            reader.readinto(wrong)
    with pytest.raises(ValueError, match=STRICT):
        reader.readinto(bytearray(17))


@pytest.mark.parametrize(
    ("size", "error", "text"),
    [
        (None, ValueError, "Size cannot be None"),
        (-1, ValueError, "Size cannot be negative"),
        ("1", TypeError, "^argument should be integer or None, not"),
        (1.5, TypeError, "^argument should be integer or None, not"),
    ],
)
def test_bad_sizes(size, error, text):
    with pytest.raises(error, match=text):
        make((0, 10)).read(size)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"bucket": ""}, ValueError, "Bucket should be specified"),
        ({"key": ""}, ValueError, "Key should be specified"),
        (
            {"item_ranges": []},
            ValueError,
            r"item_ranges must be a non-empty List\[ItemRange\] object",
        ),
        (
            {"item_ranges": [ItemRange(4, 4)]},
            ValueError,
            r"No non-empty ranges to read \(all ranges were length 0\)",
        ),
        ({"item_ranges": [ItemRange(4, 3)]}, ValueError, "Invalid range: 4-3"),
        (
            {"item_ranges": [ItemRange(4, 6), ItemRange(0, 2)]},
            ValueError,
            "Unsorted ranges: 4-6 and 0-2",
        ),
        (
            {"item_ranges": [ItemRange(0, 6), ItemRange(5, 7)]},
            ValueError,
            "Overlapping ranges: 0-6 and 5-7",
        ),
        ({"max_gap_size": -1}, ValueError, "max_gap_size must be non-negative"),
        ({"max_gap_size": float("nan")}, ValueError, "max_gap_size must be non-negative"),
        ({"max_gap_size": "1"}, TypeError, "max_gap_size must be int or float, got str"),
    ],
)
def test_bad_arguments(arguments, error, text):
    good = {"bucket": "b", "key": "k", "item_ranges": [ItemRange(0, 1)]}
    with pytest.raises(error, match=f"^{text}$"):
        DCPOptimizedS3Reader(**good | arguments, get_object_info=no_info, get_stream=Source())


def test_a_stream_that_ends_early_is_no_end_of_the_file():
    source = Source(data=DATA[:25])
    reader = make((0, 10), (20, 30), source=source)
    assert reader.read(10) == DATA[:10]
    for _ in range(2):
        with pytest.raises(TruncatedError, match="S3 stream exhausted at position 25") as caught:
            read_at(reader, 20, 10)
        assert isinstance(caught.value, ValueError)
    source.data = DATA
    assert reader.read(10) == DATA[20:30]
    assert source.requests == [(0, 30), (20, 30), (20, 30)]


def test_after_an_error_a_read_begins_again_at_the_right_byte():
    class Failing(Source):
        fail = True

        def _stream(self, start, end):
            for n, piece in enumerate(super()._stream(start, end)):
                if self.fail and n == 4:
                    raise ConnectionError("gone")
                yield piece

    source = Failing()
    reader = make((0, 10), (20, 60), (70, 80), source=source)
    assert reader.read(10) == DATA[:10]
    with pytest.raises(ConnectionError, match="gone"):
        read_at(reader, 20, 40)
    source.fail = False
    assert read_at(reader, 30, 10) == DATA[30:40]
    assert read_at(reader, 70, 10) == DATA[70:80]
    assert source.requests == [(0, 80), (20, 80)]


def test_closed_means_closed():
    source = Source()
    reader = make((0, 100), (100, 200), source=source)
    reader.read(10)
    reader.close()
    reader.close()
    assert reader.closed
    assert source.closed == 1
    for use in (lambda: reader.read(1), lambda: reader.readinto(bytearray(1)), reader.tell):
        with pytest.raises(ValueError, match=r"I/O operation on closed file\."):
            use()
    with pytest.raises(ValueError, match=r"I/O operation on closed file\."):
        reader.seek(0)


def test_an_unread_reader_can_be_pickled():
    reader = DCPOptimizedS3Reader("b", "k", [ItemRange(0, 9)], no_info, Source())
    assert pickle.loads(pickle.dumps(reader)).read(9) == DATA[:9]


@given(st.data())
def test_any_order_inside_the_items_reads_the_right_bytes(data):
    lengths = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=8)
    position, ranges = 0, []
    for length, gap in data.draw(lengths):
        ranges.append(ItemRange(position + gap, position + gap + length))
        position += gap + length
    filled = [item for item in ranges if item.start < item.end]
    if not filled:
        return
    source = Source(piece=data.draw(st.integers(1, 50)))
    reader = DCPOptimizedS3Reader(
        "b", "k", ranges, no_info, source, max_gap_size=data.draw(st.integers(0, 40))
    )
    for item in filled:
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(item.start, item.end - 1))
            stop = data.draw(st.integers(start + 1, item.end))
            if data.draw(st.booleans()):
                assert read_at(reader, start, stop - start) == DATA[start:stop]
            else:
                buffer = bytearray(stop - start)
                reader.seek(start)
                assert reader.readinto(buffer) == stop - start
                assert buffer == DATA[start:stop]
            assert reader.tell() == stop
    assert all(start < end for start, end in source.requests)


def plan_of(*places):
    """Makes read items and where they are stored, of pairs of file and range."""
    items, storage = [], {}
    for n, (path, start, stop) in enumerate(places):
        index = MetadataIndex(f"t{n}")
        storage[index] = _StorageInfo(path, start, stop - start)
        items.append(ReadItem(LoadItemType.TENSOR, index, (), index, (), ()))
    return items, storage


def complete(constructor, key):
    return constructor(bucket="bucket", key=key, get_object_info=no_info, get_stream=Source())


@pytest.mark.parametrize("base", ["s3://bucket/some/folder", "s3://bucket/some/folder/"])
def test_the_constructor_knows_the_ranges_by_file(base):
    constructor = S3ReaderConstructor.dcp_optimized(max_gap_size=5)
    assert isinstance(constructor, DCPOptimizedConstructor)
    assert isinstance(constructor, DCPS3ReaderConstructorProtocol)
    assert S3ReaderConstructor.get_reader_type_string(constructor) == "dcp_optimized"
    items, storage = plan_of(("x/0.distcp", 30, 40), ("1.distcp", 5, 9), ("x/0.distcp", 0, 10))
    constructor.set_item_ranges_by_file([*items, items[0]], storage, base)
    reader = complete(constructor, "some/folder/x/0.distcp")
    assert reader.read(10) == DATA[:10]
    assert read_at(reader, 30, 10) == DATA[30:40]
    assert read_at(complete(constructor, "some/folder/1.distcp"), 5, 4) == DATA[5:9]
    assert isinstance(complete(constructor, "some/folder/.metadata"), SequentialS3Reader)
    with pytest.raises(ValueError, match="^No ranges found for s3://bucket/some/folder/2.distcp"):
        complete(constructor, "some/folder/2.distcp")
    copied = pickle.loads(pickle.dumps(copy.deepcopy(constructor)))
    assert read_at(complete(copied, "some/folder/1.distcp"), 5, 4) == DATA[5:9]


def test_new_ranges_replace_the_old_ones():
    constructor = DCPOptimizedConstructor()
    constructor.set_item_ranges_by_file(*plan_of(("0.distcp", 0, 4)), "s3://bucket")
    constructor.set_item_ranges_by_file(*plan_of(("1.distcp", 0, 4)), "s3://bucket")
    assert complete(constructor, "1.distcp").read(4) == DATA[:4]
    with pytest.raises(ValueError, match="^No ranges found for s3://bucket/0.distcp"):
        complete(constructor, "0.distcp")
    constructor.set_item_ranges_by_file([], {}, "s3://bucket")
    with pytest.raises(ValueError, match="^No ranges found for s3://bucket/1.distcp"):
        complete(constructor, "1.distcp")


def test_items_need_a_place():
    items, _ = plan_of(("0.distcp", 0, 4))
    with pytest.raises(ValueError, match="storage_data must not be empty"):
        DCPOptimizedConstructor().set_item_ranges_by_file(items, {}, "s3://bucket")


def test_a_negative_gap_is_refused():
    with pytest.raises(ValueError, match="^max_gap_size must be non-negative$"):
        S3ReaderConstructor.dcp_optimized(max_gap_size=-1)


def ranges_of(*pairs):
    return [ItemRange(*pair) for pair in pairs]


@pytest.mark.parametrize(
    ("gap", "groups"),
    [
        (0, [(0, 20), (25, 30), (40, 50)]),
        (4, [(0, 20), (25, 30), (40, 50)]),
        (5, [(0, 30), (40, 50)]),
        (9.5, [(0, 30), (40, 50)]),
        (10, [(0, 50)]),
        (float("inf"), [(0, 50)]),
    ],
)
def test_neighbours_share_a_request_up_to_the_gap(gap, groups):
    ranges = ranges_of((0, 10), (10, 20), (25, 30), (40, 50))
    assert [(group.start, group.end) for group in _group_ranges(ranges, gap)] == groups


def test_ranges_without_bytes_are_dropped():
    ranges = ranges_of((7, 7), (0, 5), (5, 5), (6, 8))
    assert _group_ranges(ranges, 1) == [RangeGroup(0, 8, ranges_of((0, 5), (6, 8)))]
    assert _group_ranges(ranges_of((3, 3)), 1) == []


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ([(5, 4)], "Invalid range: 5-4"),
        ([(-1, 4)], "Invalid range: -1-4"),
        ([(0, 2), (9, 8)], "Invalid range: 9-8"),
        ([(5, 9), (0, 2)], "Unsorted ranges: 5-9 and 0-2"),
        ([(0, 5), (4, 9)], "Overlapping ranges: 0-5 and 4-9"),
        ([(0, 5), (0, 5)], "Overlapping ranges: 0-5 and 0-5"),
    ],
)
def test_ranges_must_be_in_order(pairs, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        _group_ranges(ranges_of(*pairs), 0)


def apart(lengths_and_gaps):
    """Makes sorted ranges of their lengths and of the gaps before them."""
    position, ranges = 0, []
    for length, gap in lengths_and_gaps:
        ranges.append(ItemRange(position + gap, position + gap + length))
        position += gap + length
    return ranges


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50))).map(apart),
    st.integers(0, 60) | st.floats(0, 60),
)
def test_groups_keep_all_items_and_split_only_at_large_gaps(ranges, gap):
    groups = _group_ranges(ranges, gap)
    kept = [item for group in groups for item in group.item_ranges]
    assert kept == [item for item in ranges if item.start < item.end]
    for group in groups:
        items = group.item_ranges
        assert (group.start, group.end) == (items[0].start, items[-1].end)
        pairs = pairwise(items)
        assert all(after.start - before.end <= gap for before, after in pairs)
    pairs = pairwise(groups)
    assert all(after.start - before.end > gap for before, after in pairs)


def ranges_by_file(*places):
    constructor = DCPOptimizedConstructor()
    constructor.set_item_ranges_by_file(*plan_of(*places), "s3://bucket")
    return constructor._item_ranges_by_file["s3://bucket/f"]


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 20)), min_size=1))
def test_merged_items_are_sorted_and_apart(places):
    items = [("f", start, start + length) for start, length in places]
    merged = ranges_by_file(*items)
    assert all(any(one.contains(start, stop) for one in merged) for _, start, stop in items)
    assert {one.start for one in merged} <= {start for _, start, _ in items}
    assert {one.end for one in merged} <= {stop for *_, stop in items}
    pairs = pairwise(merged)
    assert all(before.end <= after.start for before, after in pairs)
    _group_ranges(merged, 0)


def test_items_that_touch_stay_apart():
    assert ranges_by_file(("f", 5, 9), ("f", 0, 5)) == ranges_of((0, 5), (5, 9))
    assert ranges_by_file(("f", 5, 9), ("f", 0, 6)) == ranges_of((0, 9))


def test_an_item_that_is_stored_nowhere():
    items, storage = plan_of(("f", 0, 4), ("f", 4, 8))
    del storage[items[0].storage_index]
    with pytest.raises(CheckpointError, match="does not tell where .*'t0'"):
        DCPOptimizedConstructor().set_item_ranges_by_file(items, storage, "s3://bucket")


class Strict(DCPOptimizedConstructor):
    """Makes readers of its own, so that all bytes are read through these."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __call__(self, bucket, key, get_object_info, get_stream):
        reader = super().__call__(bucket, key, get_object_info, get_stream)
        self.made.append(reader)
        return reader


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_load_through_strict_readers(folder, threads):
    state = {"a": torch.randn(100, 70), "b": torch.randn(80), "c": torch.arange(6).view(2, 3).t(), "o": 7}
    dcp.save(state, storage_writer=S3StorageWriter("us-east-1", folder, thread_count=threads))
    constructor = Strict()
    loaded = {name: torch.zeros_like(value) for name, value in state.items() if name != "o"} | {"o": 0}
    dcp.load(loaded, storage_reader=S3StorageReader("us-east-1", folder, reader_constructor=constructor))
    assert loaded.pop("o") == 7
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)
    strict = [reader for reader in constructor.made if isinstance(reader, DCPOptimizedS3Reader)]
    assert len(strict) == threads
    assert all(reader.closed for reader in strict)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_a_load_does_not_need_its_readers(folder, monkeypatch):
    dcp.save({"a": torch.ones(9)}, storage_writer=S3StorageWriter("us-east-1", folder))
    constructor = S3ReaderConstructor.dcp_optimized()
    monkeypatch.setattr(DCPOptimizedS3Reader, "__init__", no_info)
    loaded = {"a": torch.zeros(9)}
    dcp.load(loaded, storage_reader=S3StorageReader("us-east-1", folder, reader_constructor=constructor))
    assert torch.equal(loaded["a"], torch.ones(9))

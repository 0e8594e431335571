"""From plans to ranges and files."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    ReadItem,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from s3torch.dcp import CheckpointError, ItemRange, RangeGroup
from s3torch.dcp.plan import (
    StoredChunk,
    chunks_by_file,
    group_ranges,
    merge_chunks,
    plan_files,
    unstored,
)


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
    assert [(group.start, group.end) for group in group_ranges(ranges, gap)] == groups


def test_ranges_without_bytes_are_dropped():
    ranges = ranges_of((7, 7), (0, 5), (5, 5), (6, 8))
    assert group_ranges(ranges, 1) == [RangeGroup(0, 8, ranges_of((0, 5), (6, 8)))]
    assert group_ranges(ranges_of((3, 3)), 1) == []


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
        group_ranges(ranges_of(*pairs), 0)


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
    groups = group_ranges(ranges, gap)
    kept = [item for group in groups for item in group.item_ranges]
    assert kept == [item for item in ranges if item.start < item.end]
    for group in groups:
        items = group.item_ranges
        assert (group.start, group.end) == (items[0].start, items[-1].end)
        pairs = pairwise(items)
        assert all(after.start - before.end <= gap for before, after in pairs)
    pairs = pairwise(groups)
    assert all(after.start - before.end > gap for before, after in pairs)


def chunk_of(start, stop):
    return StoredChunk(start, stop, (), ())


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 20))))
def test_merged_chunks_are_sorted_and_apart(places):
    chunks = [chunk_of(start, start + length) for start, length in places]
    spans = merge_chunks(chunks)
    assert sorted((c for span in spans for c in span.chunks), key=str) == sorted(chunks, key=str)
    for span in spans:
        assert span.start == min(chunk.start for chunk in span.chunks)
        assert span.stop == max(chunk.stop for chunk in span.chunks)
    pairs = pairwise(spans)
    assert all(before.stop <= after.start for before, after in pairs)
    group_ranges([span.item_range for span in spans], 0)


def test_chunks_that_touch_stay_apart():
    assert len(merge_chunks([chunk_of(5, 9), chunk_of(0, 5)])) == 2
    assert len(merge_chunks([chunk_of(5, 9), chunk_of(0, 6)])) == 1


def read_item(name, *, kind=LoadItemType.TENSOR, offset=0):
    nothing = torch.Size([])
    index = MetadataIndex(name)
    return ReadItem(kind, index, nothing, index, torch.Size([offset]), nothing)


def test_items_on_one_stored_chunk_are_read_once():
    storage = {
        MetadataIndex("a"): _StorageInfo("x.distcp", 10, 5),
        MetadataIndex("b"): _StorageInfo("x.distcp", 0, 10, ["stream.zstd/1"]),
        MetadataIndex("c"): _StorageInfo("y.distcp", 0, 3),
    }
    items = [read_item("a"), read_item("b"), read_item("a", offset=2), read_item("c")]
    assert chunks_by_file(items, storage) == {
        "x.distcp": [
            StoredChunk(10, 15, (), (items[0], items[2])),
            StoredChunk(0, 10, ("stream.zstd/1",), (items[1],)),
        ],
        "y.distcp": [StoredChunk(0, 3, (), (items[3],))],
    }


def test_places_from_older_torch_have_no_descriptors():
    place = SimpleNamespace(relative_path="x", offset=0, length=4)
    (chunk,) = chunks_by_file([read_item("a")], {MetadataIndex("a"): place})["x"]
    assert chunk.descriptors == ()


def test_an_item_that_is_stored_nowhere():
    with pytest.raises(CheckpointError, match="does not tell where .*'missing'"):
        chunks_by_file([read_item("missing")], {})


def tensor_item(name, *shape):
    size = torch.Size(shape)
    chunk = ChunkStorageMetadata(torch.Size([0] * len(shape)), size)
    data = TensorWriteData(chunk, TensorProperties(), size)
    return WriteItem(MetadataIndex(name, chunk.offsets), WriteItemType.TENSOR, tensor_data=data)


def object_item(name):
    return WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO)


def names(files):
    return {file.name: [item.index.fqn for item in file.items] for file in files}


def test_one_file_has_objects_first():
    items = [tensor_item("t", 2), object_item("o"), tensor_item("u", 9), object_item("p")]
    assert names(plan_files(items, "__3_", files=1)) == {"__3_0.distcp": ["o", "p", "t", "u"]}


def test_one_file_per_item():
    items = [tensor_item("t", 2), object_item("o")]
    files = plan_files(items, "a/__0_", files=4, single_file_per_rank=False)
    assert names(files) == {"a/__0_0.distcp": ["t"], "a/__0_1.distcp": ["o"]}


def test_there_are_no_empty_files():
    assert plan_files([], "__0_", files=1) == plan_files([], "__0_", files=4) == []
    items = [tensor_item("a", 5), tensor_item("b", 7), tensor_item("c", 6)]
    files = plan_files(items, "__0_", files=4)
    assert [file.name for file in files] == ["__0_0.distcp", "__0_1.distcp", "__0_2.distcp"]


@given(st.lists(st.integers(0, 1000)), st.integers(0, 20), st.integers(1, 8), st.booleans())
def test_files_share_all_items_evenly(lengths, objects, count, single):
    items = [tensor_item(f"t{n}", length) for n, length in enumerate(lengths)]
    items += [object_item(f"o{n}") for n in range(objects)]
    files = plan_files(items, "", files=count, single_file_per_rank=single)
    written = [item.index.fqn for file in files for item in file.items]
    assert sorted(written) == sorted(item.index.fqn for item in items)
    assert all(file.items for file in files)
    if single and lengths:
        assert len(files) <= count
        sizes = [sum(i.tensor_data.size.numel() for i in f.items if i.tensor_data) for f in files]
        assert max(sizes) <= sum(lengths) / count + max(lengths)


def test_what_was_promised_and_not_stored():
    def tensor(*offsets):
        chunks = [ChunkStorageMetadata(torch.Size([at]), torch.Size([4])) for at in offsets]
        return TensorStorageMetadata(TensorProperties(), torch.Size([8]), chunks)

    promised = {"t": tensor(0, 4), "o": BytesStorageMetadata(), "p": BytesStorageMetadata()}
    everything = [
        MetadataIndex("t", [0], 0),
        MetadataIndex("t", [4], 1),
        MetadataIndex("o"),
        MetadataIndex("p"),
    ]
    assert unstored(promised, everything) == []
    assert unstored(promised, everything[:1] + everything[2:3]) == ["t at (4,)", "p"]

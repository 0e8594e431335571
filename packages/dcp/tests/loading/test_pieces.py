"""From plans to stored chunks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from s3torch.dcp import CheckpointError
from s3torch.dcp.loading._pieces import InFlight, StoredChunk, chunks_by_file


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


def test_what_is_in_flight_is_bounded_and_finished_in_order():
    finished, done = [], set()
    work = InFlight(10)

    def add(number, size):
        work.add(size, lambda: number in done, lambda: finished.append(number))

    for number in (1, 2):
        add(number, 5)
    assert finished == []
    add(3, 4)
    assert finished == [1]
    done |= {2, 3}
    add(4, 1)
    assert finished == [1, 2, 3]
    add(5, 100)
    assert finished == [1, 2, 3, 4, 5]
    add(6, 3)
    work.finish()
    assert finished[5:] == [6]

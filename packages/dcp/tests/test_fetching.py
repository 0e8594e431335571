"""Which requests fetch the pieces of a load, and that all bytes get where they are wanted."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from s3torch.core import TruncatedError
from s3torch.core.memory import MemoryBudget
from s3torch.core.ranges import MIB
from s3torch.dcp.archives import HEAD_SIZE, noted_layout, parse_archive
from s3torch.dcp.fetching import fetch, plan_parts

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled, unavailable or uninitialized",
    "ignore:Detected an existing checkpoint",
)

DATA = bytes(n * 7 % 251 for n in range(5000))


@dataclass(eq=False)
class Wanted:
    start: int
    stop: int
    held: int = 0
    data: bytearray = field(init=False)

    def __post_init__(self):
        self.data = bytearray(self.stop - self.start)

    def open(self):
        return memoryview(self.data)


class File:
    """Answers at once."""

    bucket, key, part_size = "bucket", "key", 100

    def __init__(self):
        self.asked = []

    def budget(self):
        return MemoryBudget(10**9)

    def start(self, start, stop, into):
        self.asked.append((start, stop))
        found = DATA[start:stop]
        into[: len(found)] = found

        class Done:
            def wait(self):
                return into[: len(found)]

            def cancel(self):
                pass

            def add_done_callback(self, fn):
                fn()

        return Done()


@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 900)), max_size=12),
    st.sampled_from([None, 0, 50, float("inf")]),
)
def test_every_piece_gets_its_bytes(places, gap):
    pieces = [Wanted(start, start + size) for start, size in places]
    file = File()
    parts = plan_parts(pieces, part_size=100, max_gap=gap)
    with closing(fetch([(file, parts)])) as arrived:
        assert sorted(map(id, arrived)) == sorted(map(id, pieces))
    for piece in pieces:
        assert piece.data == DATA[piece.start : piece.stop]
    assert all(stop - start <= 100 for start, stop in file.asked)
    ends = [0, *(stop for _, stop in file.asked)]
    assert all(start >= end for (start, _), end in zip(file.asked, ends, strict=False)), "fetched twice"


@pytest.mark.parametrize(
    ("places", "gap", "expected"),
    [
        ([(0, 10), (20, 30)], 10, [(0, 30)]),
        ([(0, 10), (20, 30)], 9, [(0, 10), (20, 30)]),
        ([(0, 250)], 0, [(0, 100), (100, 200), (200, 250)]),
        # What is left of the first goes with the second.
        ([(0, 210), (215, 225)], 10, [(0, 100), (100, 200), (200, 225)]),
        # A gap before a large piece is not fetched.
        ([(0, 100), (110, 210)], 10, [(0, 100), (110, 210)]),
        ([(0, 10), (0, 10), (5, 8)], 0, [(0, 10)]),
    ],
)
def test_requests(places, gap, expected):
    parts = plan_parts([Wanted(*place) for place in places], part_size=100, max_gap=gap)
    assert [(part.start, part.stop) for part in parts] == expected


def test_a_file_that_ends_too_early():
    parts = plan_parts([Wanted(4950, 5050)], part_size=100, max_gap=None)
    with closing(fetch([(File(), parts)])) as arrived, pytest.raises(TruncatedError, match="4950 to 5050"):
        list(arrived)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.int64])
def test_the_head_of_an_archive_tells_where_the_tensor_is(tmp_path, dtype):
    tensor = torch.arange(3000).reshape(3, 1000).to(dtype)
    torch.save(tensor, tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    layout = parse_archive(memoryview(data[:HEAD_SIZE]), len(data))
    assert (layout.dtype, layout.sizes) == (dtype, (3, 1000))
    content = bytearray(data[layout.start : layout.stop])
    assert torch.equal(torch.frombuffer(content, dtype=dtype).view(3, 1000), tensor)
    assert noted_layout(layout.note(), len(data)) == layout
    assert noted_layout(layout.note(), layout.stop - 1) is None
    assert parse_archive(memoryview(data[:HEAD_SIZE]), layout.stop - 1) is None


def test_other_archives_are_left_to_torch(tmp_path):
    for value in (torch.ones(4, 5).t(), {"a": torch.ones(3)}, 17, torch.ones(9)[2:]):
        torch.save(value, tmp_path / "a")
        data = (tmp_path / "a").read_bytes()
        assert parse_archive(memoryview(data), len(data)) is None
    assert parse_archive(memoryview(b"PK\x03\x04 nothing else"), 100) is None
    assert parse_archive(memoryview(b""), 0) is None
    for note in ({"start": 0}, {"start": 0, "dtype": "load", "sizes": ()}, 7, None):
        assert noted_layout(note, 100) is None


@pytest.mark.parametrize("noted", [True, False])
def test_a_slice_reads_only_its_bytes(seaweed_place, seaweedfs, fault_proxy, tmp_path, noted):
    state = {"a": torch.randn(1024, 2048), "b": torch.randn(1024, 512)}
    if noted:
        dcp.save(state, storage_writer=seaweed_place.writer())
    else:
        dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path))
        seaweed_place.upload(tmp_path, "checkpoint")
    metadata = seaweed_place.reader().read_metadata()
    half = {name: torch.zeros(512, value.shape[1]) for name, value in state.items()}
    # As in a job of more ranks: half of the rows of each tensor.
    items = [
        ReadItem(
            LoadItemType.TENSOR,
            MetadataIndex(name),
            torch.Size([0, 0]),
            MetadataIndex(name, [0, 0]),
            torch.Size([512, 0]),
            value.size(),
        )
        for name, value in half.items()
    ]

    class Half(DefaultLoadPlanner):
        def resolve_tensor(self, read_item):
            return half[read_item.dest_index.fqn]

    proxy = fault_proxy(seaweedfs)
    place = replace(seaweed_place, config=replace(seaweed_place.config, endpoint=proxy.endpoint))
    reader, planner = place.reader(), Half()
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    reader.read_data(reader.prepare_local_plan(LoadPlan(items)), planner).wait()
    assert all(torch.equal(half[name], state[name][512:]) for name in state)
    ranges = [request.headers["range"] for request in proxy.requests("GET", key=".distcp")]
    pairs = [text.removeprefix("bytes=").split("-") for text in ranges]
    needed = sum(value.nbytes for value in half.values())
    assert needed <= sum(int(stop) - int(start) + 1 for start, stop in pairs) <= 1.01 * needed
    assert half["a"].nbytes == 4 * MIB

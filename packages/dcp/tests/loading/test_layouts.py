"""What is fetched of stored tensors, and where they are in their archives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from s3torch.core.ranges import MIB
from s3torch.dcp._tensors import HEAD_SIZE, noted_layout, parse_archive

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled, unavailable or uninitialized",
    "ignore:Detected an existing checkpoint",
)


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

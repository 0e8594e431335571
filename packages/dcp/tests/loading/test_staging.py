"""Loads into tensors of an accelerator: through staging buffers that are lent until their copy has ended."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from s3torch.core.ranges import MIB
from s3torch.dcp._tensors import PIECE
from s3torch.dcp.loading._engine import PlannedLoad
from s3torch.dcp.loading._pieces import ToDevice, chunks_by_file
from s3torch.dcp.saving._values import FromDevice

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")


class Device:
    """Takes the bytes of tensors, except those of 16 bits, as late as it may."""

    def __init__(self):
        self.started = []
        self.taken = []

    def serves(self, tensor):
        return tensor.dtype != torch.int16

    def take(self, size):
        self.taken.append(size)
        return torch.empty(size, dtype=torch.uint8)

    def start(self, source, target):
        self.started.append((source, target))

    def finish(self):
        for source, target in self.started:
            target.copy_(source)
            source.fill_(0xFF)


class Planner(DefaultLoadPlanner):
    """Takes note of what is committed."""

    def __init__(self):
        super().__init__()
        self.committed = []

    def commit_tensor(self, read_item, tensor):
        self.committed.append(read_item.dest_index.fqn)
        super().commit_tensor(read_item, tensor)


def load(place, state, device):
    reader = place.reader()
    metadata = reader.read_metadata()
    planner = Planner()
    planner.set_up_planner(state, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    loading = PlannedLoad(reader._open_file, planner, reader._value, max_gap=None, threads=1, device=device)
    loading.run(chunks_by_file(plan.items, metadata.storage_data))
    return planner


@pytest.mark.parametrize("threads", [1, 3])
def test_all_bytes_arrive_in_pieces(place, threads):
    state = {
        "large": torch.arange(5 * MIB, dtype=torch.int32).view(5, MIB),
        "exact": torch.randn(PIECE // 4),
        "small": torch.randn(3, 4).bfloat16(),
        "flags": torch.tensor([True, False, True]),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "here": torch.arange(9, dtype=torch.int16),
        "other": torch.randn(6, 7),
        "turned": torch.randn(8, 9),
    }
    dcp.save(state, storage_writer=place.writer(thread_count=threads))
    blank = {name: torch.zeros_like(value) for name, value in state.items()}
    blank["other"] = torch.zeros(6, 7, dtype=torch.float64)
    blank["turned"] = torch.zeros(9, 8).t()
    device = Device()
    planner = load(place, blank, device)
    for name, value in state.items():
        assert torch.equal(blank[name], value.to(blank[name].dtype)), name
    assert sorted(planner.committed) == sorted(state.keys() - {"empty"})  # Torch plans nothing for it.
    assert max(device.taken) == PIECE
    # What has another form, or is on the host, takes another way.
    staged = sum(state[name].nbytes for name in ("large", "exact", "small", "flags", "scalar"))
    assert sum(device.taken) == staged


class PromptDevice(Device):
    """Copies at once, and counts the memory that is held."""

    def __init__(self):
        super().__init__()
        self.memories = []
        self.most = 0

    def take(self, size):
        memory = super().take(size)
        self.memories = [one for one in self.memories if one() is not None] + [weakref.ref(memory)]
        self.most = max(self.most, len(self.memories))
        return memory

    def start(self, source, target):
        target.copy_(source)


def test_memory_is_free_when_its_copy_has_ended(place):
    state = {str(number): torch.full((PIECE // 4,), float(number)) for number in range(20)}
    dcp.save(state, storage_writer=place.writer())
    blank = {name: torch.zeros_like(value) for name, value in state.items()}
    device = PromptDevice()
    gc.disable()
    try:
        load(place, blank, device)
    finally:
        gc.enable()
    assert all(torch.equal(blank[name], value) for name, value in state.items())
    assert device.most <= 96 * MIB // PIECE + 1


def test_without_an_accelerator_nothing_is_copied():
    for tensor in (torch.ones(3), torch.ones(3, device="meta")):
        assert not ToDevice().serves(tensor)
        assert not FromDevice().serves(tensor)
    ToDevice().finish()

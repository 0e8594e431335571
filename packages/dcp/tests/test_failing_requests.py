"""Every request of a save fails in turn: afterwards there is the old checkpoint or the new one, whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from s3torch.core.ranges import MIB
from s3torch.dcp import S3HuggingFaceStorageWriter, load_sharded
from s3torch.dcp.manage import list_checkpoints
from s3torch.testing.faults import Fault

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled, unavailable or uninitialized",
    "ignore:Detected an existing checkpoint",
    "ignore:the new checkpoint in",
)

# Two parts.
LARGE = 5 * MIB + 1000
WHOLE = {"save_distributed": True, "enable_consolidation": True}


REFUSED = Fault.error(403, "AccessDenied")
LOST = Fault.drop(side="response")


def state_of(number):
    return {f"t{n}": torch.full((40, n + 1), number) for n in range(5)}


class Layout:
    """Saves and loads in torch's layout."""

    def state(self, number):
        return state_of(number) | {"large": torch.full((LARGE,), number, dtype=torch.int8)}

    def writer(self, place, path, files):
        return place.writer(path, thread_count=files)

    def load(self, place, path):
        state = self.state(-1)
        dcp.load(state, storage_reader=place.reader(path))
        return state


class HuggingFace(Layout):
    """Saves and loads in the layout of Hugging Face."""

    def __init__(self, **options):
        self.options = options

    def state(self, number):
        return state_of(number)

    def writer(self, place, path, files):
        numbers = {name: 1 + n % files for n, name in enumerate(state_of(0))}
        return S3HuggingFaceStorageWriter(
            "us-east-1", place.uri(path), place.config, numbers, thread_count=2, **self.options
        )

    def load(self, place, path):
        return load_sharded(place.uri(path), client=place.client())


def loaded_number(layout, place, path):
    """Which of the checkpoints is there; ``None`` where there is none."""
    # The parts alone, of which whole files are to be made, do not count.
    if "" not in {one.name for one in list_checkpoints(place.uri(path), client=place.client())}:
        return None
    state = layout.load(place, path)
    assert state.keys() == layout.state(0).keys()
    numbers = {int(number) for tensor in state.values() for number in tensor.unique()}
    assert len(numbers) == 1, f"a mixture of checkpoints: {numbers}"
    return numbers.pop()


@pytest.mark.promise(1)
@pytest.mark.parametrize(
    ("layout", "fault", "fresh"),
    [
        (Layout(), REFUSED, True),
        (Layout(), REFUSED, False),
        (Layout(), LOST, False),
        (HuggingFace(), REFUSED, False),
        (HuggingFace(**WHOLE), LOST, True),
        (HuggingFace(**WHOLE), REFUSED, False),
    ],
)
def test_a_failure_of_any_request_leaves_the_old_or_the_new_checkpoint(
    seaweed_place, seaweedfs, fault_proxy, layout, fault, fresh
):
    proxy = fault_proxy(seaweedfs)
    config = replace(seaweed_place.config, endpoint=proxy.endpoint, max_attempts=1, part_size=5 * MIB)
    place = replace(seaweed_place, config=config)
    there, number, step = None, 0, 0
    while True:
        path = f"checkpoint-{step}" if fresh else "checkpoint"
        if fresh:
            there = None
        elif there is None:
            dcp.save(layout.state(number), storage_writer=layout.writer(place, path, 3))
            there = number
        number += 1
        rule = proxy.add(fault, skip=step, times=1)
        allowed = {number}
        try:
            dcp.save(layout.state(number), storage_writer=layout.writer(place, path, 1 + step % 3))
        except CheckpointException:
            # A commit whose answer was lost has happened.
            allowed.add(there)
        proxy.heal()
        there = loaded_number(layout, place, path)
        assert there in allowed
        if not rule.hits:
            break
        step += 1
    assert there == number
    assert step >= 4

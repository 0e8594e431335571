"""Loads that take several requests for one tensor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from s3torch.core import ObjectChangedError
from s3torch.testing.faults import Fault

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")

# Three parts of 5 MiB.
LARGE = {"a": torch.arange(3 * 5 * 1024**2 // 4, dtype=torch.int32)}
FILE = "checkpoint/__0_0-"


@pytest.fixture
def proxy(fault_proxy, seaweedfs):
    return fault_proxy(seaweedfs)


@pytest.fixture
def proxied(seaweed_place, proxy):
    """A bucket behind the proxy."""
    config = replace(seaweed_place.config, endpoint=proxy.endpoint, part_size=5 * 1024**2)
    return replace(seaweed_place, config=config)


def load(place):
    loaded = {"a": torch.zeros_like(LARGE["a"])}
    dcp.load(loaded, storage_reader=place.reader())
    return loaded


def test_the_parts_of_a_tensor_are_in_flight_together(proxied, proxy):
    dcp.save(LARGE, storage_writer=proxied.writer())
    seen = []

    def note(_):
        seen.append([request.status for request in proxy.requests("GET", key=FILE)])
        return True

    # Answers are held back; so, when the last request comes, none of the others has got its own.
    proxy.add(Fault(latency=0.5), method="GET", key=FILE, match=note)
    assert torch.equal(load(proxied)["a"], LARGE["a"])
    assert seen[-1] == [None, None, None]


@pytest.mark.promise(2)
def test_a_file_that_is_replaced_while_it_is_read(proxied, proxy, seaweed_place):
    dcp.save(LARGE, storage_writer=proxied.writer())
    file = seaweed_place.key("checkpoint/__0_0.distcp")
    other = bytes(len(seaweed_place.get(file)))

    def overwrite(request):
        if len(proxy.requests("GET", key=FILE)) == 2:
            seaweed_place.put(file, other)
        return True

    proxy.clear()
    proxy.add(Fault(), method="GET", key=FILE, match=overwrite)
    with pytest.raises(CheckpointException) as caught:
        load(proxied)
    assert isinstance(caught.value.failures[0][0], ObjectChangedError)

"""Models of several ranks: saved by a job of one size and loaded by a job of another, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from s3torch.dcp import load_sharded

PROGRAM = Path(__file__).with_name("sharded_program.py")
WIDE = 1000 * 1024 * 4

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")


@pytest.fixture
def job(seaweed_place, fault_proxy, seaweedfs):
    """Runs a job with torchrun, through a proxy that counts."""
    proxy = fault_proxy(seaweedfs)
    environment = dict(os.environ) | {
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }

    def run(ranks, *tasks):
        proxy.clear()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        arguments = [str(PROGRAM), seaweed_place.uri("run"), proxy.endpoint, *tasks]
        done = subprocess.run(
            command + arguments, env=environment, capture_output=True, text=True, check=False, timeout=250
        )
        assert done.returncode == 0, done.stderr[-5000:]
        return proxy

    return run


def whole_state(metadata):
    """Tensors of the size that was saved, for a load without a job."""
    return {
        name: torch.zeros(value.size, dtype=value.properties.dtype)
        for name, value in metadata.state_dict_metadata.items()
        if hasattr(value, "chunks")
    }


@pytest.mark.timeout(300)
def test_saved_by_four_and_two_and_loaded_by_two_four_and_one(job, seaweed_place):
    job(4, "save", "four")
    proxy = job(2, "save", "two", "save", "counted", "load", "four")
    assert len(proxy.requests("GET", key="run/four/.metadata")) == 1, "each rank has read the metadata"
    proxy = job(4, "load", "two", "wide", "counted")
    read = sum(request.response_bytes for request in proxy.requests("GET", key="run/counted/__"))
    assert WIDE <= read <= 1.2 * WIDE
    states = []
    for name in ("four", "two"):
        reader = seaweed_place.reader(f"run/{name}")
        states.append(whole_state(reader.read_metadata()))
        dcp.load(states[-1], storage_reader=reader)
        # The whole files, and the parts of which they were made.
        for face in (f"run/{name}-face", f"run/{name}-face/sharded"):
            loaded = load_sharded(seaweed_place.uri(face), client=seaweed_place.client())
            assert loaded.keys() == {"wide", "columns", "tiles", "same"}
            assert all(torch.equal(loaded[key], states[-1][key]) for key in loaded)
        assert len(seaweed_place.listed(f"run/{name}-face/model-0000")) == 2
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert torch.equal(states[0]["wide"][:, 0], torch.arange(1000) * 1024.0 + 7)

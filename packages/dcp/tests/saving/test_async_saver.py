"""Saves that go on while training does: memory, failures, one at a time, and how programs end."""

from __future__ import annotations

import io
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from s3torch.core.errors import ChecksumMismatchError, ConfigurationError
from s3torch.dcp import AsyncSaver, CheckpointError, S3StorageWriter
from s3torch.dcp.saving._staging import Staging, mapped, pickled, unpickled
from s3torch.testing.faults import Fault

PROGRAM = Path(__file__).with_name("ending_program.py")
FOREVER = 300.0

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized"),
    pytest.mark.filterwarnings("ignore:Detected an existing checkpoint"),
]


class Held:
    """Holds the requests that fit until it is told to let them go."""

    def __init__(self, proxy, **request):
        self.began, self.go_on = threading.Event(), threading.Event()
        proxy.add(Fault(), match=self._hold, **request)

    def _hold(self, _):
        self.began.set()
        self.go_on.wait(60)
        return False


@pytest.fixture
def proxy(fault_proxy, seaweedfs):
    return fault_proxy(seaweedfs)


@pytest.fixture
def writer_of(seaweed_place, proxy):
    """Makes writers whose requests go through the proxy."""

    def make(path="checkpoint"):
        config = seaweed_place.config
        return S3StorageWriter("us-east-1", seaweed_place.uri(path), config, endpoint=proxy.endpoint)

    return make


def filled(number):
    return {"weight": torch.full((300, 7), float(number)), "step": number}


def loaded(place, path="checkpoint"):
    state = {"weight": torch.zeros(300, 7), "step": 0}
    dcp.load(state, storage_reader=place.reader(path))
    assert state["weight"].unique().tolist() == [state["step"]]
    return state["step"]


def test_a_copy_is_made_of_everything(state, are_same):
    state["tied"] = [state["model"]["weight"], state["model"]["weight"]]
    state["nested"] = {"optimizer": torch.optim.SGD([state["model"]["weight"]]), "stream": io.BytesIO(b"abc")}
    state["sparse"] = torch.eye(3).to_sparse()
    before = {name: state[name] for name in ("model", "views", "empty", "objects")}
    expected = {name: torch.utils._pytree.tree_map(_clone, one) for name, one in before.items()}
    staging = Staging(shared=False)
    staged = staging.stage(state)
    for tensor in torch.utils._pytree.tree_leaves([state["model"], state["views"][0]]):
        tensor.detach().zero_()
    assert are_same({name: staged[name] for name in before}, expected)
    assert staged["tied"][0] is staged["tied"][1]
    assert torch.equal(staged["sparse"].to_dense(), torch.eye(3))
    assert staged["nested"]["stream"].getvalue() == b"abc"


def _clone(value):
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("shared", [False, True])
def test_memory_is_used_again(shared):
    staging = Staging(shared=shared)
    first = staging.stage({"a": torch.ones(1000), "b": torch.ones(10, 10)})
    place, size = staging.block.memory.data_ptr(), staging.block.memory.nbytes
    # Other tensors in another order, as long as they are not more.
    second = staging.stage({"b": torch.full((9,), 2.0), "a": torch.full((300,), 3.0)})
    assert staging.block.memory.data_ptr() == place
    assert second["a"].unique().tolist() == [3]
    assert second["b"].unique().tolist() == [2]
    assert first["a"][0] == 2
    staging.stage({"a": torch.ones(size, dtype=torch.int8), "b": torch.ones(1)})
    assert staging.block.memory.nbytes > size
    staging.close()


def test_another_process_gets_no_bytes():
    staging = Staging(shared=True)
    staged = staging.stage({"a": torch.arange(10**6), "tied": [torch.ones(3)] * 2, "n": 5})
    body = pickled(staged, staging.block.memory)
    assert len(body) < 2000
    there = mapped(staging.block.descriptor, staging.block.memory.nbytes)
    found = unpickled(body, there)
    assert torch.equal(found["a"], torch.arange(10**6))
    assert (
        found["a"].data_ptr() - there.data_ptr() == staged["a"].data_ptr() - staging.block.memory.data_ptr()
    )
    assert found["n"] == 5


def test_what_is_saved_is_what_was_there(seaweed_place, writer_of):
    with AsyncSaver() as saver:
        for number in (1, 2, 3):
            state = filled(number)
            saver.save(state, storage_writer=writer_of())
            state["weight"].zero_()
            saver.wait()
            assert loaded(seaweed_place) == number


@pytest.mark.timeout(120)
def test_a_process_saves(seaweed_place, writer_of, proxy, state, are_same, blank_of):
    with AsyncSaver(process=True) as saver:
        expected = torch.utils._pytree.tree_map(_clone, state)
        saving = saver.save(state, storage_writer=writer_of("all"))
        for tensor in state["model"].values():
            tensor.detach().zero_()
        assert saving.result().state_dict_metadata
        found = blank_of(expected)
        dcp.load(found, storage_reader=seaweed_place.reader("all"))
        assert are_same(found, expected)
        saver.save(filled(1), storage_writer=writer_of()).result()
        rule = proxy.add(Fault.flip(100, side="request"), method="PUT", key=".distcp")
        with pytest.raises(CheckpointException, match="ChecksumMismatchError"):
            saver.save(filled(2), storage_writer=writer_of()).result()
        proxy.remove(rule)
        assert loaded(seaweed_place) == 1
        # Another one is started, when it has died in the middle.
        rule = proxy.add(Fault.stall(FOREVER, side="request"), method="PUT", key=".distcp")
        saving = saver.save(filled(2), storage_writer=writer_of())
        while not rule.hits:
            wait([saving], 0.01)
        proxy.heal()
        os.kill(saver._process._process.pid, signal.SIGKILL)
        with pytest.raises(CheckpointError, match="exit code -9"):
            saving.result()
        assert loaded(seaweed_place) == 1
        saver.save(filled(3), storage_writer=writer_of())
    assert loaded(seaweed_place) == 3


@pytest.mark.promise(2)
def test_bytes_that_flip_on_the_way_are_never_committed(seaweed_place, writer_of, proxy):
    with AsyncSaver() as saver:
        saver.save(filled(1), storage_writer=writer_of()).result()
        for key in (".distcp", ".metadata"):
            rule = proxy.add(Fault.flip(100, side="request"), method="PUT", key=key)
            with pytest.raises(CheckpointException) as caught:
                saver.save(filled(2), storage_writer=writer_of()).result()
            assert isinstance(caught.value.failures[0][0], ChecksumMismatchError)
            assert rule.hits
            proxy.heal()
            assert loaded(seaweed_place) == 1
        saver.save(filled(3), storage_writer=writer_of())
    behind = replace(seaweed_place, config=replace(seaweed_place.config, endpoint=proxy.endpoint))
    for key in (".metadata", ".distcp"):
        rule = proxy.add(Fault.flip(100), method="GET", key=key, times=1)
        assert loaded(behind) == 3
        assert rule.hits == 1


@pytest.mark.promise(7)
def test_a_failure_is_raised_once(seaweed_place, writer_of, proxy):
    saver = AsyncSaver()
    saver.save(filled(1), storage_writer=writer_of()).result()
    proxy.add(Fault.error(403, "AccessDenied"), method="PUT", times=2)
    saver.save(filled(2), storage_writer=writer_of())
    with pytest.raises(CheckpointException, match="AccessDenied"):
        saver.save(filled(3), storage_writer=writer_of())
    assert loaded(seaweed_place) == 1
    saving = saver.save(filled(4), storage_writer=writer_of())
    with pytest.raises(CheckpointException, match="AccessDenied"):
        saving.result()
    saver.save(filled(5), storage_writer=writer_of())
    saver.close()
    assert loaded(seaweed_place) == 5
    proxy.add(Fault.error(403, "AccessDenied"), method="PUT", times=1)
    saver.save(filled(6), storage_writer=writer_of())
    with pytest.raises(CheckpointException, match="AccessDenied"):
        saver.close()


def test_one_save_at_a_time(seaweed_place, writer_of, proxy, caplog):
    skipping, waiting = AsyncSaver(when_busy="skip"), AsyncSaver()
    for saver in (skipping, waiting):
        held = Held(proxy, method="PUT", key=".distcp")
        first = saver.save(filled(1), storage_writer=writer_of())
        assert held.began.wait(60)
        if saver is skipping:
            assert saver.save(filled(2), storage_writer=writer_of()) is None
            assert "no checkpoint is saved" in caplog.text
            held.go_on.set()
            first.result()
            assert loaded(seaweed_place) == 1
        else:
            with ThreadPoolExecutor(1) as thread:
                second = thread.submit(saver.save, filled(2), storage_writer=writer_of())
                assert not first.done()
                held.go_on.set()
                second.result().result()
            assert first.done()
            assert loaded(seaweed_place) == 2
        proxy.heal()
        saver.close()


def test_arguments_are_checked():
    for options in ({"when_busy": "no"}, {"at_exit": "never"}):
        with pytest.raises(ConfigurationError):
            AsyncSaver(**options)


@pytest.fixture(scope="module")
def program(start_program):
    """A process that forks others, which save and end."""
    return start_program(PROGRAM)


@pytest.mark.promise(1)
@pytest.mark.parametrize("end", ["wait", "abort", "kill"])
def test_a_program_that_ends(program, seaweed_place, writer_of, proxy, tmp_path, end):
    with AsyncSaver() as saver:
        saver.save(filled(1), storage_writer=writer_of())
    # The one that is waited for goes on; the others hang.
    held = Held(proxy, method="PUT", key=".distcp") if end == "wait" else None
    rule = None if held else proxy.add(Fault.stall(FOREVER, side="request"), method="PUT", key=".distcp")
    job = {
        "uri": seaweed_place.uri("checkpoint"),
        "endpoint": proxy.endpoint,
        "number": 2,
        "options": {"at_exit": "abort" if end == "abort" else "wait"},
        # An aborting one would end before it has begun.
        "goes_on_until": str(tmp_path / "end") if end == "abort" else "",
    }
    pid, ended = program.start(job)
    while not (held.began.is_set() if held else rule.hits):
        assert not wait([ended], 0.01).done
    if held:
        # Its own thread has nothing to do any more.
        assert not wait([ended], 0.2).done
        held.go_on.set()
    elif end == "abort":
        (tmp_path / "end").touch()
    else:
        os.kill(pid, signal.SIGKILL)
    assert ended.result() == (-signal.SIGKILL if end == "kill" else 0)
    proxy.heal()
    state = {"tensor": torch.zeros(1000)} if end == "wait" else filled(0)
    dcp.load(state, storage_reader=seaweed_place.reader())
    assert state.get("step", 1) == 1
    if end == "wait":
        assert state["tensor"].unique().tolist() == [2]

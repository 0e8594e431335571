"""Saves that go on in the background, and what becomes of them when something fails."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
import warnings
from itertools import count
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from s3torch.core import ConfigurationError, NotFoundError, S3ClientConfig
from s3torch.core.errors import S3Error
from s3torch.dcp import S3StorageReader
from s3torch.lightning import S3LightningCheckpoint, S3ModelParallelStrategy
from s3torch.testing import Fault

MIB = 1024 * 1024
# Two parts.
WEIGHTS = 9 * MIB // 4


@pytest.fixture
def make_io(seaweedfs, folder, proxy):
    made = []

    def make(**options):
        config = S3ClientConfig(max_attempts=1)
        made.append(
            S3LightningCheckpoint(seaweedfs.region, config, proxy.endpoint, async_save=True, **options)
        )
        return made[-1]

    yield make
    proxy.heal()
    for io in made:
        io.teardown()


def key_of(folder, name):
    return f"{folder.removeprefix('s3://').partition('/')[2]}/{name}"


def test_what_is_saved_is_what_it_was_then(make_io, folder, proxy):
    io = make_io()
    proxy.add(Fault.stall(0.3), method="PUT")
    state = {"weights": torch.zeros(3 * MIB), "numbers": [1], "tied": None}
    state["tied"] = state["weights"][5:9]
    io.save_checkpoint(state, f"{folder}/a.ckpt")
    state["weights"].fill_(7)
    state["numbers"].append(2)
    io.wait()
    loaded = io.load_checkpoint(f"{folder}/a.ckpt")
    assert torch.equal(loaded["weights"], torch.zeros(3 * MIB))
    assert loaded["numbers"] == [1]
    assert loaded["tied"].untyped_storage().data_ptr() == loaded["weights"].untyped_storage().data_ptr()


def test_memory_is_used_again_and_sizes_may_change(make_io, folder):
    io = make_io(max_pending=1)
    for number, size in enumerate([1, 17 * MIB, 10]):
        io.save_checkpoint({"weights": torch.full((size,), float(number))}, f"{folder}/{number}.ckpt")
    for number, size in enumerate([1, 17 * MIB, 10]):
        assert torch.equal(
            io.load_checkpoint(f"{folder}/{number}.ckpt")["weights"], torch.full((size,), float(number))
        )
    assert len(io._background._free) == 1


def test_a_save_waits_when_too_many_are_pending(make_io, folder, proxy):
    io = make_io(max_pending=2)
    proxy.add(Fault.stall(0.3), method="PUT")
    for number in range(5):
        io.save_checkpoint({"number": number}, f"{folder}/{number}.ckpt")
        assert len(proxy.requests("PUT")) >= number - 1
    io.wait()
    assert [request.key for request in proxy.requests("PUT")] == [
        key_of(folder, f"{number}.ckpt") for number in range(5)
    ]
    with pytest.raises(ConfigurationError, match="max_pending must be at least 1"):
        make_io(max_pending=0)


def test_what_cannot_be_pickled_fails_the_save(make_io, names, folder):
    io = make_io()
    io.save_checkpoint({"number": 1}, f"{folder}/a.ckpt")
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        io.save_checkpoint({"bad": lambda: None}, f"{folder}/a.ckpt")
    io.save_checkpoint({"number": 2}, f"{folder}/b.ckpt")
    io.wait()
    assert io.load_checkpoint(f"{folder}/a.ckpt") == {"number": 1}
    assert names() == ["a.ckpt", "b.ckpt"]


@pytest.mark.promise(7)
def test_a_failed_upload_is_raised_by_the_next_save_which_is_carried_out(make_io, folder, names, proxy):
    io = make_io()
    rule = proxy.add(Fault.slow_down(), method="PUT", key=key_of(folder, "a.ckpt"))
    io.save_checkpoint({"number": 1}, f"{folder}/a.ckpt")
    while io._is_pending(io_uri(folder, "a.ckpt")):
        time.sleep(0.01)
    proxy.remove(rule)
    with pytest.raises(S3Error) as caught:
        io.save_checkpoint({"number": 2}, f"{folder}/b.ckpt")
    assert f"{folder}/a.ckpt" in caught.value.__notes__[0]
    io.wait()
    assert names() == ["b.ckpt"]


@pytest.mark.promise(7)
def test_a_failed_upload_is_raised_at_the_end_and_by_loads_of_it(make_io, folder, proxy):
    io = make_io()
    proxy.add(Fault.slow_down(), method="PUT")
    io.save_checkpoint({"number": 1}, f"{folder}/a.ckpt")
    with pytest.raises(S3Error):
        io.teardown()
    io.teardown()
    io.save_checkpoint({"number": 1}, f"{folder}/a.ckpt")
    with pytest.raises(NotFoundError):
        io.load_checkpoint(f"{folder}/other.ckpt")
    with pytest.raises(S3Error, match="SlowDown"):
        io.load_checkpoint(f"{folder}/a.ckpt")
    io.save_checkpoint({"number": 1}, f"{folder}/a.ckpt")
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        # It must not take the place of the error that ends the run.
        io.teardown()


@pytest.mark.promise(7)
def test_what_is_older_goes_only_when_the_newer_is_complete(make_io, folder, names, proxy):
    io = make_io()
    io.save_checkpoint({"number": 1}, f"{folder}/a.ckpt")
    io.wait()
    rule = proxy.add(Fault.stall(0.3) | Fault.slow_down(), method="PUT")
    io.save_checkpoint({"number": 2}, f"{folder}/b.ckpt")
    io.remove_checkpoint(f"{folder}/a.ckpt")
    assert proxy.requests("DELETE") == []
    with pytest.raises(S3Error):
        io.wait()
    assert names() == ["a.ckpt"]
    proxy.remove(rule)
    io.save_checkpoint({"number": 3}, f"{folder}/c.ckpt")
    io.remove_checkpoint(f"{folder}/a.ckpt")
    io.wait()
    assert names() == ["c.ckpt"]
    methods = [request.method for request in proxy.requests() if request.method in {"PUT", "DELETE"}]
    assert methods[-2:] == ["PUT", "DELETE"]


@pytest.mark.promise(5)
def test_pickles_and_forks_have_nothing_to_do(make_io, folder, proxy, in_child):
    io = make_io(max_pending=3)
    proxy.add(Fault.stall(0.5), method="PUT")
    io.save_checkpoint({"number": 1}, f"{folder}/a.ckpt")
    again = pickle.loads(pickle.dumps(io))
    again.teardown()
    assert again._background.max_pending == 3
    in_child(io.teardown)
    io.wait()
    assert len(proxy.requests("PUT")) == 1


def save_for_ever(io, save, folder):
    """Saves a checkpoint with its number in it, and removes the one before the last."""
    # The threads of the parent, on which torch relies, are not here.
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for number in count():
        save({"state_dict": {"weights": torch.full((WEIGHTS,), float(number))}}, f"{folder}/{number}.ckpt")
        if number > 1:
            io.remove_checkpoint(f"{folder}/{number - 2}.ckpt")


def kill_at(moment, side, proxy, io, save, folder):
    """Kills a process that saves, while a request of it is on the way to the server, or the answer is."""
    if isinstance(moment, int):
        rule = proxy.add(Fault.stall(30, side=side), skip=moment - 1, times=1)
    else:
        rule = proxy.add(Fault.stall(30, side=side), method="PUT", key=moment, times=1)
    child = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(io, save, folder))
    child.start()
    while child.is_alive() and not rule.hits:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert rule.hits
    proxy.remove(rule)


# A checkpoint takes four requests, of which the last makes it visible. From the third one on, one more
# follows, which removes an older one.
@pytest.mark.promise(1)
@pytest.mark.parametrize("side", ["request", "response"])
@pytest.mark.parametrize("moment", [1, 4, *range(8, 16)])
def test_a_process_that_is_killed_leaves_the_newest_complete_one(make_io, folder, names, proxy, moment, side):
    io = make_io()
    kill_at(moment, side, proxy, io, io.save_checkpoint, folder)
    complete = [one.key for one in proxy.requests("POST") if "uploadId" in one.query and one.status == 200]
    found = [int(name.removesuffix(".ckpt")) for name in names()]
    assert {int(Path(key).stem) for key in complete[-1:]} <= set(found)
    for number in found:
        weights = io.load_checkpoint(f"{folder}/{number}.ckpt")["state_dict"]["weights"]
        assert torch.equal(weights, torch.full((WEIGHTS,), float(number)))


@pytest.mark.promise(1)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("side", ["request", "response"])
@pytest.mark.parametrize("name", ["2.ckpt/__0_", "2.ckpt/meta.pt", "2.ckpt/.metadata"])
def test_a_process_that_is_killed_leaves_the_newest_complete_shards(
    make_io, folder, names, proxy, name, side
):
    io = make_io()
    kill_at(name, side, proxy, io, sharded(io).save_checkpoint, folder)
    found = [int(name.removesuffix(".ckpt/.metadata")) for name in names() if name.endswith("/.metadata")]
    stored = [one for one in proxy.requests("PUT") if one.key.endswith("/.metadata") and one.status == 200]
    # Nothing is removed before the next ones are complete, of which two are on their way at a time.
    assert {0} | {int(Path(one.key).parent.stem) for one in stored} <= set(found)
    assert (2 in found) == ((name, side) == ("2.ckpt/.metadata", "response"))
    for number in found:
        assert torch.equal(shards(io, f"{folder}/{number}.ckpt"), torch.full((WEIGHTS,), float(number)))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.filterwarnings("ignore:Detected an existing checkpoint")
def test_shards_are_saved_while_training_goes_on(make_io, folder, names, proxy):
    io = make_io()
    strategy = sharded(io)
    stalled = proxy.add(Fault.stall(0.5), method="PUT", key=".distcp")
    weights = torch.zeros(WEIGHTS)
    strategy.save_checkpoint({"state_dict": {"weights": weights}, "epoch": 1}, f"{folder}/a.ckpt")
    strategy.save_checkpoint({"state_dict": {"weights": weights}, "epoch": 2}, f"{folder}/b.ckpt")
    weights.fill_(7)
    assert io._is_pending(io_uri(folder, "a.ckpt"))
    io.remove_checkpoint(f"{folder}/a.ckpt")
    assert not [name for name in names() if name.endswith(".metadata")]
    io.wait()
    assert {name.partition("/")[0] for name in names()} == {"b.ckpt"}
    assert torch.equal(shards(io, f"{folder}/b.ckpt"), torch.zeros(WEIGHTS))
    assert torch.load(io._client.get_object(*io_uri(folder, "b.ckpt/meta.pt"))) == {"epoch": 2}
    proxy.remove(stalled)
    # One that is written over is never overtaken by what was there before.
    for number in range(4):
        weights.fill_(number)
        strategy.save_checkpoint({"state_dict": {"weights": weights}}, f"{folder}/b.ckpt")
    io.wait()
    assert torch.equal(shards(io, f"{folder}/b.ckpt"), torch.full((WEIGHTS,), 3.0))
    strategy._saves.close()


@pytest.mark.promise(7)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_that_could_not_be_saved_are_raised_by_the_next_save(make_io, folder, names, proxy):
    io = make_io(max_pending=1)
    strategy = sharded(io)
    state = {"state_dict": {"weights": torch.zeros(10)}}
    strategy.save_checkpoint(state, f"{folder}/a.ckpt")
    io.wait()
    rule = proxy.add(Fault.slow_down(), method="PUT", key="b.ckpt")
    strategy.save_checkpoint(state, f"{folder}/b.ckpt")
    io.remove_checkpoint(f"{folder}/a.ckpt")
    while io._is_pending(io_uri(folder, "b.ckpt")):
        time.sleep(0.01)
    proxy.remove(rule)
    with pytest.raises(CheckpointException, match="SlowDown"):
        strategy.save_checkpoint(state, f"{folder}/c.ckpt")
    io.wait()
    assert [name for name in names() if name.endswith(".metadata")] == [
        "a.ckpt/.metadata",
        "c.ckpt/.metadata",
    ]
    strategy._saves.close()


def sharded(io):
    """A strategy that saves shards, of one rank."""
    strategy = S3ModelParallelStrategy(save_distributed_checkpoint=True)
    strategy.checkpoint_io = io
    return strategy


def shards(io, path):
    """The weights of a checkpoint in shards."""
    state = {"state_dict": {"weights": torch.empty(WEIGHTS)}}
    dcp.load(state, storage_reader=S3StorageReader(None, path, s3_client=io._client), no_dist=True)
    return state["state_dict"]["weights"]


def io_uri(folder, name):
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    return (bucket, f"{prefix}/{name}")

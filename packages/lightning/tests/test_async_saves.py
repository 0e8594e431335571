"""Saves that go on in the background, and what becomes of them when something fails."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from itertools import count

import pytest
import torch

from s3torch.core import ConfigurationError, NotFoundError, S3Client, S3ClientConfig
from s3torch.core.errors import S3Error
from s3torch.lightning import S3LightningCheckpoint
from s3torch.testing import Fault

MIB = 1024 * 1024


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


@pytest.fixture
def client(seaweedfs, folder):
    with S3Client(seaweedfs.region) as client:
        yield client


def keys(client, folder):
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    pages = client.list_objects(bucket, prefix)
    return [info.key.removeprefix(f"{prefix}/") for page in pages for info in page.object_info]


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


def test_what_cannot_be_pickled_fails_the_save(make_io, client, folder):
    io = make_io()
    io.save_checkpoint({"number": 1}, f"{folder}/a.ckpt")
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        io.save_checkpoint({"bad": lambda: None}, f"{folder}/a.ckpt")
    io.save_checkpoint({"number": 2}, f"{folder}/b.ckpt")
    io.wait()
    assert io.load_checkpoint(f"{folder}/a.ckpt") == {"number": 1}
    assert keys(client, folder) == ["a.ckpt", "b.ckpt"]


@pytest.mark.promise(7)
def test_a_failed_upload_is_raised_by_the_next_save_which_is_carried_out(make_io, folder, client, proxy):
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
    assert keys(client, folder) == ["b.ckpt"]


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
def test_what_is_older_goes_only_when_the_newer_is_complete(make_io, folder, client, proxy):
    io = make_io()
    io.save_checkpoint({"number": 1}, f"{folder}/a.ckpt")
    io.wait()
    rule = proxy.add(Fault.stall(0.3) | Fault.slow_down(), method="PUT")
    io.save_checkpoint({"number": 2}, f"{folder}/b.ckpt")
    io.remove_checkpoint(f"{folder}/a.ckpt")
    assert proxy.requests("DELETE") == []
    with pytest.raises(S3Error):
        io.wait()
    assert keys(client, folder) == ["a.ckpt"]
    proxy.remove(rule)
    io.save_checkpoint({"number": 3}, f"{folder}/c.ckpt")
    io.remove_checkpoint(f"{folder}/a.ckpt")
    io.wait()
    assert keys(client, folder) == ["c.ckpt"]
    methods = [request.method for request in proxy.requests() if request.method in {"PUT", "DELETE"}]
    assert methods[-2:] == ["PUT", "DELETE"]


@pytest.mark.promise(5)
def test_pickles_and_forks_have_nothing_to_do(make_io, folder, proxy):
    io = make_io(max_pending=3)
    proxy.add(Fault.stall(0.5), method="PUT")
    io.save_checkpoint({"number": 1}, f"{folder}/a.ckpt")
    again = pickle.loads(pickle.dumps(io))
    again.teardown()
    assert again._background._max_pending == 3
    child = os.fork()
    if child == 0:
        io.teardown()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    io.wait()
    assert len(proxy.requests("PUT")) == 1


def save_for_ever(io, folder):
    """Saves a checkpoint with its number in it, and removes the one before the last."""
    # The threads of the parent, on which torch relies, are not here.
    torch.set_num_threads(1)
    for number in count():
        io.save_checkpoint({"weights": torch.full((5 * MIB,), float(number))}, f"{folder}/{number}.ckpt")
        if number > 1:
            io.remove_checkpoint(f"{folder}/{number - 2}.ckpt")


@pytest.mark.promise(1)
@pytest.mark.parametrize("moment", [1, 4, 5, 6, 16])
def test_a_process_that_is_killed_leaves_the_newest_complete_one(make_io, folder, client, proxy, moment):
    io = make_io()
    child = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(io, folder))
    child.start()
    while child.is_alive() and len(proxy.requests()) < moment:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    # A checkpoint takes five requests, of which the last makes it visible.
    found = keys(client, folder)
    assert len(found) >= min(1, (moment - 1) // 6)
    for name in found:
        expected = torch.full((5 * MIB,), float(name.removesuffix(".ckpt")))
        assert torch.equal(io.load_checkpoint(f"{folder}/{name}")["weights"], expected)


def io_uri(folder, name):
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    return (bucket, f"{prefix}/{name}")

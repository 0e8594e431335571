"""What one rank of a job does; run as a program: rank, world size, folder of the rendezvous.

Each line of the standard input has a task and a bucket; the answer to each is one line.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from s3torch.core import S3ClientConfig
from s3torch.core.errors import NotFoundError
from s3torch.dcp import (
    AsyncSaver,
    CheckpointError,
    HexPrefixStrategy,
    S3FileSystem,
    S3HuggingFaceStorageWriter,
    S3StorageReader,
    S3StorageWriter,
    consolidate_safetensors_files,
    load_sharded,
)
from s3torch.dcp._metadata import everywhere, shared

ROWS = 11


def whole(factor=1.0):
    return torch.arange(ROWS * 3, dtype=torch.float64).reshape(ROWS, 3) * factor


def sharded(tensor):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return distribute_tensor(tensor, mesh, [Shard(0)])


def state_of(rank, factor=1.0):
    return {
        "model": {"sharded": sharded(whole(factor)), "same": torch.ones(7) * factor},
        "objects": {"step": 17 * factor},
    }


def writer_of(bucket, path, **options):
    config = S3ClientConfig(max_attempts=2)
    return S3StorageWriter("us-east-1", f"s3://{bucket}/{path}", config, **options)


def reader_of(bucket, path, **options):
    return S3StorageReader("us-east-1", f"s3://{bucket}/{path}", **options)


def check(loaded, factor=1.0):
    assert torch.equal(loaded["model"]["sharded"].full_tensor(), whole(factor))
    assert torch.equal(loaded["model"]["same"], torch.ones(7) * factor)
    assert loaded["objects"]["step"] == 17 * factor


def save(rank, bucket):
    """Saves with one file per rank, and with several threads and prefixes."""
    dcp.save(state_of(rank), storage_writer=writer_of(bucket, "plain"))
    writer = writer_of(bucket, "hex", prefix_strategy=HexPrefixStrategy(), thread_count=4)
    dcp.save(state_of(rank), storage_writer=writer)
    assert writer.prefix_strategy.prefix_count == dist.get_world_size()


def load(rank, bucket):
    """Loads what a job of any size has saved."""
    for path in ("plain", "hex"):
        loaded = state_of(rank, 0.0)
        dcp.load(loaded, storage_reader=reader_of(bucket, path))
        check(loaded)


def cached(rank, bucket):
    """Saves again and again with plans that torch keeps; the prefix is that of each save."""
    writer = writer_of(bucket, "unused")
    for epoch in range(4):
        writer.prefix_strategy = HexPrefixStrategy(epoch_num=epoch, min_prefix_length=1)
        # Two over each other, and two elsewhere.
        path = f"cached-{epoch // 2}"
        dcp.save(
            state_of(rank, epoch + 1),
            checkpoint_id=f"s3://{bucket}/{path}",
            storage_writer=writer,
            planner=DefaultSavePlanner(enable_plan_caching=True),
        )
        loaded = state_of(rank, 0.0)
        dcp.load(loaded, storage_reader=reader_of(bucket, path))
        check(loaded, epoch + 1)


def alone(rank, bucket):
    """Saves and loads without collectives: each rank has what it has saved."""
    dcp.save(
        {"mine": torch.full((5,), rank)},
        storage_writer=writer_of(bucket, "alone"),
        use_collectives=False,
    )
    loaded = {"mine": torch.zeros(5, dtype=torch.int64)}
    dcp.load(loaded, storage_reader=reader_of(bucket, "alone"))
    assert torch.equal(loaded["mine"], torch.full((5,), rank))


def together(rank, bucket):
    """One rank reads the metadata for all, and what goes wrong there goes wrong on all."""
    group = {"process_group": dist.group.WORLD}
    dcp.save(state_of(rank), storage_writer=writer_of(bucket, "together"))
    reader = reader_of(bucket, "together", **group)
    for reads in (reader, reader_of(bucket, "together", **group)):
        loaded = state_of(rank, 0.0)
        dcp.load(loaded, storage_reader=reads)
        check(loaded)
    # A copy in another process has no ranks to wait for.
    assert pickle.loads(pickle.dumps(reader)).read_metadata().state_dict_metadata
    with pytest.raises(CheckpointException) as caught:
        dcp.load(state_of(rank), storage_reader=reader_of(bucket, "nothing", **group))
    assert sorted(caught.value.failures) == list(range(dist.get_world_size()))
    # One rank alone, as without a group.
    if rank == 1:
        assert reader_of(bucket, "together").read_metadata().storage_data
        loaded = {"objects": {"step": 0}}
        dcp.load(loaded, storage_reader=reader_of(bucket, "together"), no_dist=True)
        assert loaded["objects"]["step"] == 17


def consolidate(rank, bucket):
    """The ranks share the whole files between them; what fails on one fails on all."""
    numbers = {f"t{n}": n + 1 for n in range(5)}
    state = {name: sharded(whole(number)) for name, number in numbers.items()}
    group = dist.group.WORLD
    shards, target = f"s3://{bucket}/shards", f"s3://{bucket}/whole"
    dcp.save(state, storage_writer=S3HuggingFaceStorageWriter(None, shards, save_distributed=True))
    for _ in range(2):
        consolidate_safetensors_files(shards, target, numbers, process_group=group)
    # Each rank has written its share.
    loaded = load_sharded(target)
    assert all(torch.equal(loaded[name], whole(number)) for name, number in numbers.items())
    with pytest.raises(CheckpointError if rank else RuntimeError, match="already exists"):
        consolidate_safetensors_files(shards, target, numbers, process_group=group, overwrite=False)
    client = S3FileSystem(None).client
    with pytest.raises(NotFoundError):
        everywhere(lambda: client.head_object(bucket, "missing") if rank else None, group)


def broken(rank, bucket):
    """An error that is none of S3 reaches the other ranks, too."""

    def fail():
        raise ArithmeticError("of the first rank")

    with pytest.raises(CheckpointError if rank else ArithmeticError, match="of the first rank"):
        shared(fail, dist.group.WORLD)


def asynchronous(rank, bucket):
    """Saves from another process, twice with the same writer."""
    writer = writer_of(bucket, "first", prefix_strategy=HexPrefixStrategy())
    for factor, path in enumerate(("first", "second"), start=1):
        saving = dcp.async_save(
            state_of(rank, factor),
            checkpoint_id=f"s3://{bucket}/{path}",
            storage_writer=writer,
            async_checkpointer_type=dcp.state_dict_saver.AsyncCheckpointerType.PROCESS,
        )
        saving.result()
        loaded = state_of(rank, 0.0)
        dcp.load(loaded, storage_reader=reader_of(bucket, path))
        check(loaded, factor)


def background(rank, bucket):
    """Saves in threads and in processes, of all ranks alike; training goes on with the same group."""
    for process in (False, True):
        with AsyncSaver(process=process) as saver:
            for factor in (1, 2):
                state = state_of(rank, factor)
                saving = saver.save(state, storage_writer=writer_of(bucket, f"background-{process}"))
                state["model"]["sharded"].to_local().zero_()
                for _ in range(20):
                    dist.all_reduce(torch.ones(1))
                saving.result()
                loaded = state_of(rank, 0.0)
                dcp.load(loaded, storage_reader=reader_of(bucket, f"background-{process}"))
                check(loaded, factor)


def skipping(rank, bucket):
    """While one rank still saves, none begins another save; what fails on one fails on all."""
    last = dist.get_world_size() - 1
    done, go_on = threading.Event(), threading.Event()

    def held(number):
        if number == 0 == rank:
            done.set()
            go_on.wait(60)
        return "x" * 2000 if number == last else "a"

    saver = AsyncSaver(when_busy="skip")
    writer = writer_of(bucket, "failing", prefix_strategy=held)
    saver.save(state_of(rank), storage_writer=writer)
    if rank == 0:
        done.wait(60)
    assert saver.save(state_of(rank), storage_writer=writer) is None
    go_on.set()
    saver.wait()
    with pytest.raises(CheckpointException, match="KeyTooLong"):
        saver.save(state_of(rank), storage_writer=writer)
    saver.save(state_of(rank), storage_writer=writer_of(bucket, "failing")).result()
    saver.close()


def too_long(rank):
    """A prefix that S3 refuses; spawned processes find it by its name."""
    return "x" * 2000 + str(rank)


def frozen(rank, factor):
    return state_of(rank, factor) | {"frozen": sharded(torch.arange(ROWS * 1000).reshape(ROWS, 1000))}


def reusing(rank, bucket):
    """S3 copies what has not changed, whichever rank has written it, also with plans that torch keeps."""
    dcp.save(frozen(rank, 1), storage_writer=writer_of(bucket, "reuse/1"))
    for step, options in ((2, {}), (3, {"enable_plan_caching": True}), (4, {"enable_plan_caching": True})):
        writer = writer_of(bucket, f"reuse/{step}", reuse="latest")
        dcp.save(frozen(rank, step), storage_writer=writer, planner=DefaultSavePlanner(**options))
        assert writer.report.why_sent == ()
        # Too little of a file for a range; the rest of it has changed. Then it is a file of its own.
        copied = 0 if step == 2 else (ROWS * 8000 if rank == 0 else 1)
        assert writer.report.copied_bytes >= copied
    loaded = frozen(rank, 0)
    loaded["frozen"] = sharded(torch.zeros(ROWS, 1000, dtype=torch.int64))
    reader = reader_of(bucket, "reuse/4")
    dcp.load(loaded, storage_reader=reader)
    check(loaded, 4)
    assert torch.equal(loaded["frozen"].full_tensor(), torch.arange(ROWS * 1000).reshape(ROWS, 1000))
    assert reader.unverified_bytes == 0


def asynchronous_failing(rank, bucket):
    """What fails in the other process fails here, and then the writer can be used again."""
    writer = writer_of(bucket, "failing", prefix_strategy=too_long)
    options = {"async_checkpointer_type": dcp.state_dict_saver.AsyncCheckpointerType.PROCESS}
    saving = dcp.async_save(state_of(rank), storage_writer=writer, **options)
    with pytest.raises(BaseException, match="KeyTooLong"):
        saving.result()


def failing(rank, bucket):
    """The last rank cannot write its files: the save fails on all."""
    last = dist.get_world_size() - 1
    writer = writer_of(
        bucket, "failing", prefix_strategy=lambda rank: "x" * 2000 if rank == last else f"__{rank}_"
    )
    with pytest.raises(CheckpointException) as caught:
        dcp.save(state_of(rank), storage_writer=writer)
    assert list(caught.value.failures) == [last]
    assert "KeyTooLong" in str(caught.value.failures[last][0])


def answer(task, rank, bucket):
    try:
        globals()[task](rank, bucket)
        dist.barrier()
    except BaseException:  # noqa: BLE001 - The test that asked gets it, CheckpointException too.
        return {"error": traceback.format_exc()}
    return {"error": None}


def main():
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # Some releases of gloo print to the standard output.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    rendezvous = Path(folder, "rendezvous").as_uri()
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    for line in sys.stdin:
        task, bucket = line.split()
        answers.write(json.dumps(answer(task, rank, bucket)) + "\n")
        answers.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

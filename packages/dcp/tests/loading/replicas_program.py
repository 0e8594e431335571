"""Loads checkpoints with jobs whose ranks read for each other; run as a program.

Each line of the standard input is a job, as JSON: the name of a task, the URI of the checkpoint, the endpoint
of each rank, and a folder where the ranks meet and leave what they have found. For each rank a process is
forked, and their ids are the answer; a second line tells how they have ended.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from s3torch.core import S3ClientConfig
from s3torch.dcp import CheckpointError, S3HuggingFaceStorageReader, S3StorageReader, _reader
from s3torch.dcp.loading import _engine
from s3torch.dcp.loading._exchange import Exchange
from s3torch.dcp.loading._pieces import ToDevice

WIDTH = 1024


def state_of(seed=3):
    """What is saved: tensors from a few bytes to some stripes, and objects."""
    torch.manual_seed(seed)
    state = {f"layer{n}": torch.randn(4 * n + 4, WIDTH) for n in range(16)}
    state |= {"large": torch.randn(2600, WIDTH), "narrow": torch.randn(513, 77).bfloat16()}
    state |= {f"scale{n}": torch.tensor(float(n)) for n in range(5)}
    return {"model": state, "objects": {"step": 17, "name": "run", "raw": b"\x00\x01"}}


def blank(value):
    if isinstance(value, dict):
        return {name: blank(one) for name, one in value.items()}
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else None


def same(left, right):
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if hasattr(left, "full_tensor"):
        left = left.full_tensor()
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


class Job:
    """What a rank knows."""

    def __init__(self, job, rank):
        self.rank = rank
        self.ranks = len(job["endpoints"])
        self.uri = job["uri"]
        self.endpoint = job["endpoints"][rank]
        self.there = state_of()

    def reader(self, kind=S3StorageReader, uri=None, **options):
        options.setdefault("replicas", "broadcast")
        config = S3ClientConfig(max_attempts=2, part_size=5 * 2**20)
        return kind("us-east-1", uri or self.uri, config, endpoint=self.endpoint, **options)

    def load(self, state, *, no_dist=False, group=None, **options):
        reader = self.reader(**options)
        dcp.load(state, storage_reader=reader, no_dist=no_dist, process_group=group)
        return reader

    def distributed(self, shape, names, placements):
        """The model with all rows of two dimensions placed like that."""
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        model = {}
        for name, tensor in blank(self.there["model"]).items():
            placed = placements if tensor.dim() == 2 else [Replicate()] * len(shape)
            model[name] = distribute_tensor(tensor, mesh, placed)
        return {"model": model, "objects": blank(self.there["objects"])}


def alike(job):
    """All ranks have all, as with DDP; one of them reads the metadata."""
    state = blank(job.there)
    job.load(state, process_group=dist.group.WORLD)
    assert same(state, job.there)


def apart(job):
    """Every rank reads all for itself."""
    state = blank(job.there)
    job.load(state, replicas=None)
    assert same(state, job.there)


def hybrid(job):
    """HSDP: sharded in one dimension of the mesh, replicated in the other."""
    state = job.distributed((2, 2), ("replicate", "shard"), [Replicate(), Shard(0)])
    job.load(state, process_group=dist.group.WORLD)
    assert same(state, job.there)


def fully_sharded(job):
    """FSDP2, of a real model, with sizes that do not divide evenly; each rank has some rows only."""
    model = torch.nn.Module()
    for name, tensor in blank(job.there["model"]).items():
        if tensor.dim() == 2:
            model.register_parameter(name, torch.nn.Parameter(tensor))
    fully_shard(model)
    found = get_model_state_dict(model)
    scalars = {name: torch.zeros(()) for name in job.there["model"] if name.startswith("scale")}
    state = {"model": found | scalars, "objects": blank(job.there["objects"])}
    job.load(state, process_group=dist.group.WORLD)
    assert same(state, job.there)


class StandIn(ToDevice):
    """Takes the tensors of the host for those of an accelerator."""

    def serves(self, tensor):
        return tensor.dim() == 2

    def take(self, size):
        return torch.empty(size, dtype=torch.uint8)

    def start(self, source, target):
        target.copy_(source)


def staged(job):
    """Tensors on an accelerator: bytes go from host to host, and each rank copies them."""
    _engine.ToDevice = StandIn
    alike(job)


def uneven(job):
    """Ranks want other keys, other parts, other types, views, or nothing at all."""
    model = job.there["model"]
    state = {"model": {}, "objects": {"step": None}}
    if job.rank == 0:
        state = {"model": blank(model)}
    if job.rank == 1:
        # Not the memory of a contiguous tensor of the type that is stored.
        wide = torch.zeros(WIDTH, 2600, dtype=torch.float64).t()
        state = {
            "model": {"large": wide, "narrow": torch.zeros(513, 77, dtype=torch.float32)},
            "objects": {"name": None},
        }
    if job.rank == job.ranks - 1:
        state = {}
    job.load(state)
    for name, tensor in state.get("model", {}).items():
        assert torch.equal(tensor, model[name].to(tensor.dtype)), name
    for name, value in state.get("objects", {}).items():
        assert value == job.there["objects"][name]


def resharded(job):
    """Saved by a job of another size: each rank wants other rows than were stored, some want the same."""
    tensor = job.there["model"]["large"]
    mesh = init_device_mesh("cpu", (2, job.ranks // 2))
    state = {"model": {"large": distribute_tensor(torch.zeros_like(tensor), mesh, [Replicate(), Shard(1)])}}
    job.load(state)
    assert torch.equal(state["model"]["large"].full_tensor(), tensor)


def parts_of_the_world(job):
    """Two jobs of half of the ranks each, told and not told of their group, and one rank alone."""
    half = job.ranks // 2
    groups = [dist.new_group(range(half)), dist.new_group(range(half, job.ranks))]
    mine = groups[job.rank // half]
    for options in ({}, {"process_group": mine}):
        state = blank(job.there)
        job.load(state, group=mine, **options)
        assert same(state, job.there)
    if job.rank == 1:
        state = blank(job.there)
        job.load(state, no_dist=True)
        assert same(state, job.there)


def in_threads(job):
    """Two loads at the same time, each with a group of its own, while the first group is used as well."""
    groups = [dist.new_group() for _ in range(2)]
    states = [blank(job.there) for _ in groups]
    threads = [
        threading.Thread(target=job.load, args=(state,), kwargs={"group": group})
        for state, group in zip(states, groups, strict=True)
    ]
    for thread in threads:
        thread.start()
    for _ in range(50):
        counted = torch.ones(1)
        dist.all_reduce(counted)
        assert counted == job.ranks
    for thread in threads:
        thread.join()
    assert all(same(state, job.there) for state in states)


def hugging_face(job):
    """Checkpoints in the other layout."""
    state = blank(job.there["model"])
    job.load(state, kind=S3HuggingFaceStorageReader, process_group=dist.group.WORLD)
    assert same(state, job.there["model"])


def failing(job):
    """One rank cannot load: all raise, and the job can go on."""
    began = torch.zeros(1)
    state = blank(job.there)
    try:
        job.load(state, process_group=dist.group.WORLD)
    except CheckpointException as exc:
        failures = {rank: str(error) for rank, (error, _) in exc.failures.items()}
        notes = {rank: getattr(error, "__notes__", []) for rank, (error, _) in exc.failures.items()}
        kinds = {rank: type(error).__name__ for rank, (error, _) in exc.failures.items()}
        dist.all_reduce(began)
        return {"failures": failures, "kinds": kinds, "notes": notes}
    raise AssertionError("it should have failed")


class Mistaken(DefaultLoadPlanner):
    """Fails where bytes have arrived already."""

    def commit_tensor(self, read_item, tensor):
        raise ArithmeticError(f"cannot take {read_item.dest_index.fqn}")


def mistaken(job):
    """The planner of one rank fails, in the middle of a load."""
    planner = Mistaken() if job.rank == 1 else None
    try:
        dcp.load(blank(job.there), storage_reader=job.reader(), planner=planner)
    except CheckpointException as exc:
        return {rank: f"{type(error).__name__}: {error}" for rank, (error, _) in exc.failures.items()}
    raise AssertionError("it should have failed")


def dying(job):
    """A rank is killed meanwhile."""
    state = blank(job.there)
    try:
        job.load(state)
    except CheckpointError as exc:
        return {"error": str(exc), "again": str(pickle.loads(pickle.dumps(exc)))}
    raise AssertionError("it should have failed")


class Dying(Exchange):
    """Dies in the midst of an agreement: those that hear of it first are not the same that ask next."""

    def _wait(self, messages, problems):
        super()._wait(messages, problems)
        if self.turn == 1 and len(messages) == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def dying_while_all_agree(job):
    """A rank dies when it has told one of the others that all is well, and none of the rest."""
    if job.rank == 1:
        _reader.Exchange = Dying
    return dying(job)


def refused(job):
    """Loads again and again, and tells before each load that it begins, until all have loaded."""
    errors = []
    while True:
        dist.barrier()
        reader = job.reader(process_group=dist.group.WORLD)
        reader.fs.exists(f"{job.uri}/begins")
        state = blank(job.there)
        try:
            dcp.load(state, storage_reader=reader)
        except CheckpointException as exc:
            errors.append(sorted(map(str, exc.failures)))
        else:
            assert same(state, job.there)
            return errors


@contextmanager
def process_group(job, rank):
    dist.init_process_group(
        "gloo",
        init_method=Path(job["folder"], "rendezvous").as_uri(),
        rank=rank,
        world_size=len(job["endpoints"]),
        timeout=timedelta(seconds=600),
    )
    yield
    if not job["task"].startswith("dying"):
        dist.barrier()


def run(job, rank):
    result = {"error": None}
    try:
        with process_group(job, rank):
            result["found"] = globals()[job["task"]](Job(job, rank))
    except BaseException:  # noqa: BLE001 - The test shows it.
        result["error"] = traceback.format_exc()
    Path(job["folder"], str(rank)).write_text(json.dumps(result))


def start(job, rank):
    child = os.fork()
    if not child:
        try:
            run(job, rank)
        finally:
            os._exit(0)
    return child


def main():
    # Some releases of gloo print to the standard output.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    def answer(numbers):
        answers.write(json.dumps(numbers) + "\n")
        answers.flush()

    for line in sys.stdin:
        job = json.loads(line)
        # What is imported for a request is imported once.
        S3StorageReader("us-east-1", job["uri"], endpoint=job["endpoints"][0]).fs.exists(job["uri"] + "/no")
        children = [start(job, rank) for rank in range(len(job["endpoints"]))]
        answer(children)
        answer([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])


if __name__ == "__main__":
    main()

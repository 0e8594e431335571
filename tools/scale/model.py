"""What a job asks of one node and of S3, as arithmetic; every function is pure.

Connections and memory come from the code that decides them in a process; costs are measured, see ``Costs``;
what Amazon says of its machines and of S3, and what is assumed, is in ``Node`` and ``Job``.
"""

from __future__ import annotations

import math
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3torch.core import S3ClientConfig
from s3torch.core._memory import _HIGHEST_LIMIT, _LOWEST_LIMIT, _SHARE_OF_MEMORY
from s3torch.core._resources import GBPS_PER_CONNECTION, connections_share
from s3torch.core.ranges import KIB, MAX_PARTS, MIB, TIB, ByteRange, plan_parts, upload_part_size
from s3torch.core.transfer._window import FETCH_IN_FLIGHT, UPLOAD_IN_FLIGHT
from scale.store import GETS_PER_SECOND, PUTS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Iterator

TB = 10**12
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured; the row that each comes from is named in ``tools/scale/README.md``.

    Attributes:
        read: Processor seconds for a GB that is read over TLS into memory of the caller.
        write: The same for a GB that is written.
        small_object: Processor seconds for an object of 100 KiB.
        listed_object: Bytes that an entry of a listing takes as a Python object.
        row: Bytes that an object takes in a dataset, besides its key.
        answer: Seconds until S3 answers; assumed, as nothing here is in a region.
    """

    read: float = 0.7
    write: float = 0.7
    small_object: float = 0.86e-3
    listed_object: int = 368
    row: int = 42
    answer: float = 0.03


@dataclass(frozen=True, slots=True)
class Node:
    """One machine, by default a p5.48xlarge.

    Attributes:
        gpus: Accelerators, one rank each.
        gpu_memory: Bytes of one.
        cores: Processors.
        memory: Bytes.
        gbps: Gigabits a second that reach S3; assumed, a part of what the machine has for all traffic.
        peer_gbps: Gigabits a second between nodes.
    """

    gpus: int = 8
    gpu_memory: int = 80 * 10**9
    cores: int = 192
    memory: int = 2 * TIB
    gbps: float = 100.0
    peer_gbps: float = 3200.0


@dataclass(frozen=True, slots=True)
class Job:
    """A training job.

    Attributes:
        nodes: How many.
        node: What each of them is.
        workers: DataLoader workers of each rank.
        partitions: Ranges of keys over which S3 has spread what the job asks for.
        part_size: Bytes of one request.
    """

    nodes: int = 1
    node: Node = Node()
    workers: int = 4
    partitions: int = 1
    part_size: int = S3ClientConfig().part_size

    @property
    def ranks(self) -> int:
        """One for each accelerator."""
        return self.nodes * self.node.gpus


@dataclass(frozen=True, slots=True)
class Prediction:
    """How much a piece of work is, and the seconds that each resource needs for it.

    Attributes:
        requests: What S3 is asked.
        nbytes: What moves between S3 and the nodes.
        bounds: Seconds, by resource; the work takes as long as the slowest, if all else overlaps.
    """

    requests: int
    nbytes: int
    bounds: dict[str, float]

    @property
    def seconds(self) -> float:
        """How long it takes at least."""
        return max(self.bounds.values())

    @property
    def bound(self) -> str:
        """What it waits for."""
        return max(self.bounds, key=lambda name: self.bounds[name])


def connections_per_process(job: Job, *, in_worker: bool = False) -> int:
    """Returns how many connections a client may have in a rank, or in a DataLoader worker."""
    processes = job.node.gpus * (job.workers + 1 if in_worker else 1)
    with _local_processes(processes):
        return connections_share(S3ClientConfig().throughput_target_gbps)


def connections_per_node(job: Job) -> int:
    """Returns how many connections a node may have at most: ranks and workers."""
    workers = job.node.gpus * job.workers
    return job.node.gpus * connections_per_process(job) + workers * connections_per_process(
        job, in_worker=True
    )


def memory_limit(job: Job, *, in_worker: bool = False) -> int:
    """Returns the bytes that may be in flight in a rank, or in a DataLoader worker."""
    processes = job.node.gpus * (job.workers + 1 if in_worker else 1)
    share = job.node.memory // _SHARE_OF_MEMORY // processes
    return max(_LOWEST_LIMIT, min(share, _HIGHEST_LIMIT))


def memory_per_node(job: Job) -> int:
    """Returns the bytes that may be in flight on a node: ranks and workers."""
    workers = job.node.gpus * job.workers
    return job.node.gpus * memory_limit(job) + workers * memory_limit(job, in_worker=True)


def upload_parts(size: int, base: int) -> int:
    """Returns into how many parts an object of unknown size is cut."""
    count = 0
    while size > 0 and count < MAX_PARTS:
        count += 1
        size -= upload_part_size(count, base)
    return count


def replicas(job: Job, size: int) -> int:
    """Returns how many groups of nodes can each hold a whole model of this size."""
    group = math.ceil(size / (job.node.gpus * job.node.gpu_memory * 0.8))
    return max(1, job.nodes // group)


def load_parts(size: int, tensors: int, part_size: int) -> int:
    """Returns how many requests fetch tensors of one size that lie next to each other in a file.

    It is what ``plan_parts`` decides: one that is at least half a part large is asked for alone, because its
    bytes can then be received where they are wanted.
    """
    if tensors == 1:
        return math.ceil(size / part_size)
    each = size // tensors
    starts = range(0, tensors * (each + KIB), each + KIB)
    return len(plan_parts([ByteRange(at, at + each) for at in starts], part_size=part_size, max_gap=None))


def load(job: Job, size: int, *, copies: int = 1, tensors: int = 1, costs: Costs | None = None) -> Prediction:
    """Loads a checkpoint.

    Args:
        job: Who loads.
        size: Its bytes.
        copies: How many ranks ask S3 for each byte; with 1 it is read once, and passed on between nodes where
            others need it, too.
        tensors: Of how many tensors a rank's share is.
        costs: What was measured.
    """
    costs = costs or Costs()
    nbytes = size * copies
    share = math.ceil(nbytes / job.ranks)
    # And the metadata, by each rank.
    requests = job.ranks * (load_parts(share, tensors, job.part_size) + 1)
    bounds = _moving(job, nbytes, requests, GETS_PER_SECOND, costs.read, FETCH_IN_FLIGHT, costs)
    return Prediction(requests, nbytes, bounds)


def load_once(job: Job, size: int, *, copies: int, costs: Costs | None = None) -> Prediction:
    """Loads a checkpoint that ``copies`` groups of nodes need: S3 is asked once, nodes pass it on."""
    once = load(job, size, costs=costs)
    passed_on = size * (copies - 1)
    between = passed_on * 8 / (job.nodes * job.node.peer_gbps * 1e9)
    return Prediction(once.requests, once.nbytes, {**once.bounds, "network between nodes": between})


def save(job: Job, size: int, *, costs: Costs | None = None) -> Prediction:
    """Saves a checkpoint, one file a rank, each byte once."""
    costs = costs or Costs()
    share = math.ceil(size / job.ranks)
    parts = upload_parts(share, job.part_size)
    # Beginning and end of each upload; metadata are one more, and a look at what is there another.
    each = parts + 2 if parts > 1 else parts
    requests = job.ranks * each + 2
    bounds = _moving(job, size, requests, PUTS_PER_SECOND, costs.write, UPLOAD_IN_FLIGHT, costs)
    return Prediction(requests, size, bounds)


def _moving(
    job: Job, nbytes: int, requests: int, rate: float, cpu: float, window: int, costs: Costs
) -> dict[str, float]:
    connections = min(connections_per_process(job), max(1, window // job.part_size))
    part = costs.answer + job.part_size * 8 / (GBPS_PER_CONNECTION * 1e9)
    return {
        "network of the nodes": nbytes * 8 / (job.nodes * job.node.gbps * 1e9),
        "processors": nbytes / 1e9 * cpu / (job.nodes * job.node.cores),
        "requests a second of a prefix": requests / (rate * job.partitions),
        "connections and window": nbytes / job.ranks / job.part_size * part / connections,
    }


def listing(
    keys: int, *, in_flight: int = 1, costs: Costs | None = None, page_seconds: float = 0.1
) -> Prediction:
    """Lists keys, a page of 1,000 at a time, or several where there are folders to list side by side."""
    costs = costs or Costs()
    requests = math.ceil(keys / PAGE)
    bounds = {
        "pages, one after the other": requests * page_seconds / in_flight,
        "requests a second of a prefix": requests / GETS_PER_SECOND,
    }
    return Prediction(requests, keys * costs.listed_object, bounds)


def manifest_memory(rows: int, *, key_length: int = 40, costs: Costs | None = None) -> int:
    """Returns the bytes of a dataset with so many objects; processes of a node can share them."""
    return rows * (key_length + (costs or Costs()).row)


def restart(job: Job, *, metadata: int = 64 * MIB) -> Prediction:
    """All ranks read the metadata of a checkpoint in the same second, before anything else."""
    parts = math.ceil(metadata / job.part_size)
    requests = job.ranks * parts
    bounds = {
        "network of the nodes": metadata * job.node.gpus * 8 / (job.node.gbps * 1e9),
        "requests a second of a prefix": requests / (GETS_PER_SECOND * job.partitions),
    }
    return Prediction(requests, metadata * job.ranks, bounds)


def nodes_that_fill_a_prefix(job: Job) -> float:
    """Returns how many nodes can ask for as much as their networks move before one prefix is too slow."""
    one = job.node.gbps * 1e9 / 8 / job.part_size
    return GETS_PER_SECOND * job.partitions / one


@contextmanager
def _local_processes(count: int) -> Iterator[None]:
    """As a launcher tells processes how many they are."""
    before = os.environ.get("LOCAL_WORLD_SIZE")
    os.environ["LOCAL_WORLD_SIZE"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_WORLD_SIZE"]
        else:
            os.environ["LOCAL_WORLD_SIZE"] = before

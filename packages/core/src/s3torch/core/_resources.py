"""Resources of this process: its share of the memory, the throughput and the connections of its node.

A training job has many processes on one node, one for each local rank, and each of them may have DataLoader
workers. What is meant for a node is divided between them.
"""

from __future__ import annotations

import errno
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "GBPS_PER_CONNECTION",
    "available_memory",
    "connections_for_throughput",
    "connections_share",
    "exhausted_files",
    "processes_on_node",
    "throughput_share",
]

# By the version of control groups: where a hierarchy is mounted, and what has the limits of a group in it.
_MOUNTS_V2 = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
_MOUNTS_V1 = ("sys/fs/cgroup/memory",)
_LIMITS_V2 = ("memory.max", "memory.high")
_LIMITS_V1 = ("memory.limit_in_bytes",)
_DEFAULT_GBPS = 10.0
_LOWEST_GBPS = 1.0
# What S3 gives on one connection, about; the CRT counts with the same.
GBPS_PER_CONNECTION = 0.4
_LOWEST_CONNECTIONS = 10
_CONNECTIONS = 128


def available_memory(root: Path = Path("/")) -> int:
    """Returns how many bytes this process may use: the lowest limit of its control groups and the machine.

    Args:
        root: Where ``proc`` and ``sys`` are mounted.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_cgroup_limits(root)])


def exhausted_files(count: int = 1) -> str | None:
    """Says that this process cannot open so many more files, and what to do; ``None`` if it can.

    Libraries hide it behind errors of their own: a host is unknown, a module is missing, the process aborts.
    """
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401 - They are closed also after an error.
    except OSError as exc:
        if exc.errno not in {errno.EMFILE, errno.ENFILE}:
            return None
        return (
            f"this process cannot open more files ({exc.strerror}); close some, raise the limit (ulimit -n) "
            "or lower max_connections"
        )
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return None


def processes_on_node() -> int:
    """Returns how many processes of this job share what belongs to the node.

    Launchers such as ``torchrun`` set ``LOCAL_WORLD_SIZE``; torch tells a DataLoader worker how many there
    are. A worker counts the process that it works for, too.
    """
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    ranks = int(text) if text.isdecimal() else 1
    return max(1, ranks) * (_workers() + 1)


def throughput_share(target_gbps: float) -> float:
    """Returns what a client of this process should try to reach, in gigabits per second.

    Args:
        target_gbps: The setting. 0 takes what awscrt recommends for this type of instance, or 10 where it
            does not know it, divided between the processes of the node.
    """
    if target_gbps > 0:
        return target_gbps
    return max(_LOWEST_GBPS, (_recommended_gbps() or _DEFAULT_GBPS) / processes_on_node())


def connections_for_throughput(target_gbps: float) -> int:
    """Returns how many connections large objects want, to reach the target: from 10 to 128."""
    wanted = math.ceil(throughput_share(target_gbps) / GBPS_PER_CONNECTION)
    return max(_LOWEST_CONNECTIONS, min(wanted, _CONNECTIONS))


def connections_share(target_gbps: float) -> int:
    """Returns how many connections a client of this process may have, which are made as they are needed.

    Small objects wait longer for their first byte than they take to arrive, so 128 are divided between the
    processes of the node where that is more than what large objects want.
    """
    return max(connections_for_throughput(target_gbps), _CONNECTIONS // processes_on_node())


def _workers() -> int:
    """How many DataLoader workers there are if this process is one of them, else 0."""
    # Whoever is a worker has loaded torch; nobody else has to.
    data: Any = sys.modules.get("torch.utils.data")
    info = data.get_worker_info() if data is not None else None
    return 0 if info is None else int(info.num_workers)


def _recommended_gbps() -> float | None:
    try:
        from awscrt.s3 import get_recommended_throughput_target_gbps
    except ImportError:
        return None
    return get_recommended_throughput_target_gbps()


def _cgroup_limits(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        # hierarchy:controllers:path, see cgroups(7).
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield from _limits(root, _MOUNTS_V2, group, _LIMITS_V2)
        elif "memory" in controllers.split(","):
            yield from _limits(root, _MOUNTS_V1, group, _LIMITS_V1)


def _limits(root: Path, mounts: tuple[str, ...], group: str, names: tuple[str, ...]) -> Iterator[int]:
    """Yields the limits of a group and of those around it, as far as they can be seen from here."""
    inner = Path(group.lstrip("/"))
    for mount in mounts:
        # In a container the path may be that of the host, of which only the root is mounted.
        for around in (inner, *inner.parents):
            for name in names:
                try:
                    text = (root / mount / around / name).read_text(encoding="ascii").strip()
                except OSError:
                    continue
                if text.isdecimal():
                    yield int(text)

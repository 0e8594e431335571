"""What is installed here, and what this machine lets a process do."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from s3torch.core._memory import default_memory_limit
from s3torch.core._resources import available_memory, processes_on_node
from s3torch.core.cli._plugins import described_plugins, own_versions
from s3torch.core.cli.findings import Finding, Severity
from s3torch.core.observers.live import size_text
from s3torch.core.ranges import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core import S3ClientConfig

_INSTALLED = "Installation"
_MACHINE = "Machine"
# Besides connections: the interpreter, torch, DataLoader workers with their pipes and shared tensors.
_OTHER_FILES = 128
_ROOMY_FILES = 1024
_LITTLE_MEMORY = 128 * MIB
_LITTLE_SHARED = GIB
_SHARED = "/dev/shm"  # noqa: S108 - It is looked at, not written to.


def look_at_installation() -> Iterator[Finding]:
    """Tells versions and plugins."""
    python = f"{platform.python_implementation()} {platform.python_version()}, "
    python += f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield Finding(_INSTALLED, "interpreter", Severity.OK, python, facts={"executable": sys.executable})
    versions = own_versions()
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Finding(_INSTALLED, "versions", Severity.OK, listed, facts=versions)
    if find_spec("awscrt") is None:
        yield Finding(
            _INSTALLED,
            "awscrt",
            Severity.WARNING,
            "awscrt is not installed: the transport crt is missing, and uploads carry CRC32",
            "pip install awscrt",
        )
    # The transport that is used is loaded for the signed request.
    plugins = described_plugins(transports=False)
    for one in plugins:
        if one["status"] != "ok":
            yield Finding(
                _INSTALLED,
                "plugins",
                Severity.WARNING,
                f"{one['kind']} {one['name']} of {one['distribution']} cannot be used: {one['status']}",
                f"repair or uninstall {one['distribution'].partition(' ')[0]}",
                facts=one,
            )
    working = [f"{one['name']}" for one in plugins if one["status"] == "ok"]
    yield Finding(_INSTALLED, "plugins", Severity.OK, ", ".join(working) or "none", facts={"names": working})


def look_at_machine(config: S3ClientConfig) -> Iterator[Finding]:
    """Tells what a process of a training job gets here."""
    yield _start_method()
    yield _memory(config)
    yield _open_files(config)
    yield _shared_memory()


def _start_method() -> Finding:
    method = multiprocessing.get_start_method(allow_none=True)
    # Asking for the default would set it.
    method = method or multiprocessing.get_context().get_start_method()
    text = f"DataLoader workers start with {method}; clients work with fork, forkserver and spawn"
    return Finding(_MACHINE, "processes", Severity.OK, text, facts={"start_method": method})


def _memory(config: S3ClientConfig) -> Finding:
    limit = config.memory_limit or default_memory_limit()
    whole, shared_by = available_memory(), processes_on_node()
    text = f"up to {size_text(limit)} in flight in a process, of {size_text(whole)}"
    text += f" that {shared_by} processes share" if shared_by > 1 else ""
    facts = {"memory_limit": limit, "available": whole, "processes": shared_by}
    if limit >= _LITTLE_MEMORY:
        return Finding(_MACHINE, "memory", Severity.OK, text, facts=facts)
    remedy = "give the job more memory, or set S3ClientConfig(memory_limit=…) if it has some to spare"
    return Finding(_MACHINE, "memory", Severity.WARNING, f"{text}: too little for full speed", remedy, facts)


def _open_files(config: S3ClientConfig) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = config.connections + _OTHER_FILES
    facts = {"soft": soft, "hard": hard, "connections": config.connections}
    text = f"{soft:,} at most, for up to {config.connections} connections"
    if soft == resource.RLIM_INFINITY or soft >= max(needed, _ROOMY_FILES):
        return Finding(_MACHINE, "open files", Severity.OK, text, facts=facts)
    wanted = max(needed, 4 * _ROOMY_FILES)
    remedy = f"ulimit -n {wanted} before the job starts"
    if hard != resource.RLIM_INFINITY and hard < wanted:
        ways = f"limits.conf, LimitNOFILE= of systemd, docker run --ulimit nofile={wanted}"
        remedy = f"raise the hard limit, which is {hard:,} ({ways}), and {remedy}"
    if soft < needed:
        remedy += f"; or S3ClientConfig(max_connections={max(1, (soft - _OTHER_FILES // 4) // 2)})"
        text += ": too low, requests and imports will fail under load"
        return Finding(_MACHINE, "open files", Severity.ERROR, text, remedy, facts)
    return Finding(_MACHINE, "open files", Severity.WARNING, f"{text}: low for many workers", remedy, facts)


def _shared_memory() -> Finding:
    try:
        stats = os.statvfs(_SHARED)
    except OSError:
        return Finding(
            _MACHINE, _SHARED, Severity.OK, "this system has none; workers hand over tensors in another way"
        )
    size, free = stats.f_frsize * stats.f_blocks, stats.f_frsize * stats.f_bavail
    text = f"{size_text(free)} free of {size_text(size)}"
    facts = {"size": size, "free": free}
    if free >= _LITTLE_SHARED:
        return Finding(_MACHINE, _SHARED, Severity.OK, text, facts=facts)
    remedy = "docker run --shm-size=8g (or --ipc=host); in Kubernetes an emptyDir of medium Memory there"
    text += ": DataLoader workers hand their batches over in it, and die with a bus error when it is full"
    return Finding(_MACHINE, _SHARED, Severity.WARNING, text, remedy, facts)

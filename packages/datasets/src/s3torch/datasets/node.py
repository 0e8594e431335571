"""Which ranks of a job run beside each other, so that one of them can list for all."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

__all__ = ["common_name", "launch_on_node"]

_made: Counter[str] = Counter()


def launch_on_node(proc: Path = Path("/proc")) -> str | None:
    """Names the launch of ``torchrun`` that this rank shares with others of its machine.

    No other launch has the name, before or after, nor has one that starts again after a failure.

    Args:
        proc: Where the system tells of processes.

    Returns:
        The name; ``None`` where there is no such launch or the system does not tell.
    """
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    if not ranks.isdecimal() or int(ranks) < 2:
        return None
    # All ranks of a node are children of one agent, whose number and begin nobody else has.
    agent = proc / str(os.getppid())
    try:
        if b"\0LOCAL_RANK=" in b"\0" + (agent / "environ").read_bytes():
            return None  # It is a rank itself, and this process something that it has started.
        begin = (agent / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        boot = (proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, IndexError):
        return None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return f"{boot}/{os.getppid()}/{begin}/{attempt}"


def common_name(subject: str) -> str | None:
    """Returns a name that this rank and its neighbours give to the same thing, without a word about it.

    They run the same program, so the second thing of a kind in one is the second in the others.

    Args:
        subject: What it is, in words that are the same on all ranks.

    Returns:
        The name; ``None`` where there are no neighbours.
    """
    launch = launch_on_node()
    if launch is None:
        return None
    _made[subject] += 1
    return f"{launch}/{subject}/{_made[subject]}"

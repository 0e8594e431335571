"""Ranks of a load hand each other what they have read, over their process group.

All messages go directly from one rank to another, with a tag that only this load has: whatever else is sent
over the group meanwhile, also by other threads, does not meet them. A round begins with an agreement: each
rank tells that its bytes for the round are there, or why they will never be, and in a logarithmic number of
steps all know of all. So a rank that fails takes nobody by surprise, and no message is left behind. A rank
that dies closes its connections, which those that it talks to notice at once and tell the others. When it
dies in the midst of an agreement, some have heard of it and others have not. Those who have send their bytes
nevertheless, for which the others wait, and all agree once more.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.distributed as dist

from s3torch.core.ranges import KIB
from s3torch.dcp._metadata import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch.distributed import ProcessGroup

    from s3torch.dcp.loading._replicas import Share, Slice

_log = logging.getLogger(__name__)
# Smaller slices travel together, with a copy on either side.
_OWN_MESSAGE = 256 * KIB
_NOTICE = 2 * KIB
_LONGEST = 1000
# What a notice begins with where a rank has gone, and so others may not know of it.
_GONE = "\x01"


class RankGoneError(CheckpointError):
    """A rank of a load has gone, and so torch cannot gather the errors of all ranks.

    It would raise an error of the process group, which does not tell what has happened. So the first attempt
    to pickle this one, which is what torch does before it sends it, raises it instead.
    """

    _is_raised = False

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._is_raised:
            self._is_raised = True
            raise self
        return super().__reduce__()


@dataclass(frozen=True, slots=True)
class _Message:
    """A message on its way, with the memory that it needs meanwhile."""

    peer: int
    work: Any
    memory: torch.Tensor


def group_for_bytes(group: ProcessGroup | None) -> ProcessGroup | None:
    """Returns the group over which this process can send bytes of the host to others, if it has one."""
    if not dist.is_available() or not dist.is_initialized():
        return None
    found = group or dist.group.WORLD
    if found is None or dist.get_rank(found) < 0:
        return None
    backends = dict(one.split(":") for one in dist.get_backend_config(found).split(",") if ":" in one)
    if backends.get("cpu") != "gloo":
        _log.warning(
            "every rank reads everything it needs: replicas='broadcast' sends bytes with gloo, but the "
            "process group has %s; use for example init_process_group('cpu:gloo,cuda:nccl')",
            dist.get_backend_config(found),
        )
        return None
    return found


class Exchange:
    """What one rank does for the others in one load, and they for it. A context manager around the load.

    An error in its block is told to the others, which raise ``CheckpointError``.

    Args:
        share: What was planned.
        group: Carries the messages.
        where: The URI of the checkpoint, for the texts of errors.

    Attributes:
        share: What was planned.
        turn: The next round.
        reading: What the rank reads while an error is raised, for its text.
    """

    def __init__(self, share: Share, group: ProcessGroup, *, where: str) -> None:
        self.share = share
        self.turn = 0
        self.reading = ""
        self._group = group
        self._where = where
        self._loss = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None or not self.is_open():
            return
        about = f"rank {self.share.rank} could not load {self.reading or 'its part'} of {self._where}"
        error.add_note(about)
        self.turn = self.share.turns
        failure = f"{about}: {type(error).__name__}: {error}"[:_LONGEST]
        self._agree(failure)
        if self._loss:
            raise RankGoneError(f"{failure}; {self._loss}") from error

    def is_open(self) -> bool:
        """Whether there are more rounds."""
        return self.turn < self.share.turns

    def run_round(self, slices: Sequence[Slice], memory: Callable[[Slice], memoryview]) -> None:
        """Sends and receives the slices of the next round.

        Args:
            slices: Those of this round.
            memory: Returns where a slice is, or where it is wanted.

        Raises:
            CheckpointError: A rank has failed.
        """
        failure = self._agree("")
        self.turn += 1
        if not failure or failure.startswith(_GONE):
            problem = self._move(slices, memory)
            failure = failure or problem
            if failure and self.is_open():
                # The others may come to the next agreement without knowing.
                failure = self._agree(failure)
        if failure:
            self.turn = self.share.turns
            kind = RankGoneError if failure.startswith(_GONE) else CheckpointError
            raise kind(failure.removeprefix(_GONE))

    def _move(self, slices: Sequence[Slice], memory: Callable[[Slice], memoryview]) -> str:
        """Moves the bytes of a round; returns what went wrong."""
        problems: list[str] = []
        packets: dict[tuple[int, ...], memoryview] = {}
        incoming, outgoing = self._by_peer(slices)
        messages: list[_Message] = []
        unpacking: list[tuple[memoryview, list[Slice]]] = []
        for peer, some in incoming.items():
            targets, small = _by_message(some, memory)
            if small:
                targets.append(_packet(small))
                unpacking.append((targets[-1], small))
            messages += self._started(dist.irecv, targets, peer, problems)
        for peer, some in outgoing.items():
            sources, small = _by_message(some, memory)
            if small:
                # Replicas get the same one.
                key = tuple(map(id, small))
                if key not in packets:
                    packets[key] = _packet(small)
                    for there, one in _places(packets[key], small):
                        there[:] = memory(one)
                sources.append(packets[key])
            messages += self._started(dist.isend, sources, peer, problems)
        self._wait(messages, problems)
        for packet, small in unpacking:
            for there, one in _places(packet, small):
                memory(one)[:] = there
        return "".join(problems[:1])

    def _by_peer(self, slices: Iterable[Slice]) -> tuple[dict[int, list[Slice]], dict[int, list[Slice]]]:
        """Returns what this rank gets from each other one, and what it sends to each."""
        incoming: dict[int, list[Slice]] = defaultdict(list)
        outgoing: dict[int, list[Slice]] = defaultdict(list)
        for one in slices:
            if one.owner != self.share.rank:
                incoming[one.owner].append(one)
                continue
            for other in one.others:
                outgoing[other].append(one)
        return incoming, outgoing

    def _agree(self, failure: str) -> str:
        """Tells all peers whether this rank goes on; returns the failure of any of them.

        In each step a rank tells what it knows to one further away; after the last all know of all.
        """
        peers = self.share.peers
        place, step = peers.index(self.share.rank), 1
        while step < len(peers):
            known, heard = _notice(failure), _notice("")
            before, after = peers[place - step], peers[(place + step) % len(peers)]
            problems: list[str] = []
            messages = self._started(dist.irecv, [heard], before, problems)
            messages += self._started(dist.isend, [known], after, problems)
            self._wait(messages, problems)
            failure = failure or _text(heard) or "".join(problems[:1])
            step *= 2
        return failure

    def _started(
        self, start: Callable[..., Any], buffers: Iterable[memoryview], peer: int, problems: list[str]
    ) -> list[_Message]:
        messages: list[_Message] = []
        for buffer in buffers:
            memory = torch.frombuffer(buffer, dtype=torch.uint8)
            try:
                work = start(memory, peer, group=self._group, tag=self.share.tag)
            except RuntimeError as exc:
                problems.append(self._gone(peer, exc))
            else:
                messages.append(_Message(peer, work, memory))
        return messages

    def _wait(self, messages: Iterable[_Message], problems: list[str]) -> None:
        for one in messages:
            try:
                one.work.wait()
            except RuntimeError as exc:
                problems.append(self._gone(one.peer, exc))

    def _gone(self, peer: int, error: RuntimeError) -> str:
        self._loss = f"rank {peer} has gone while it loaded its part of {self._where}: {error}"[:_LONGEST]
        return _GONE + self._loss


def _by_message(
    slices: Iterable[Slice], memory: Callable[[Slice], memoryview]
) -> tuple[list[memoryview], list[Slice]]:
    """Returns the memory of slices that travel alone, and those that travel together."""
    alone: list[memoryview] = []
    together: list[Slice] = []
    for one in slices:
        if one.size >= _OWN_MESSAGE:
            alone.append(memory(one))
        else:
            together.append(one)
    return alone, together


def _packet(slices: Iterable[Slice]) -> memoryview:
    return memoryview(bytearray(sum(one.size for one in slices)))


def _places(packet: memoryview, slices: Iterable[Slice]) -> Iterator[tuple[memoryview, Slice]]:
    at = 0
    for one in slices:
        yield packet[at : at + one.size], one
        at += one.size


def _notice(text: str) -> memoryview:
    return memoryview(bytearray(text.encode()[:_NOTICE].ljust(_NOTICE, b"\0")))


def _text(notice: memoryview) -> str:
    return bytes(notice).rstrip(b"\0").decode("utf-8", "ignore")

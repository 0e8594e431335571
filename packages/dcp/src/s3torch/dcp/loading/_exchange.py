"""Ranks of a load hand each other what they have read, over their process group.

All messages go directly from one rank to another, with two tags that only this load has: whatever else is
sent over the group meanwhile, also by other threads, does not meet them. A round begins with an agreement:
each rank tells that its bytes for the round are there, or why they will never be, and in a logarithmic number
of steps all know of all. When everything is loaded, all agree twice more.

A rank that dies closes its connections, which those that it talks to notice at once and tell the others. So
of what a rank knows when an agreement begins, all that live hear something in it: the failure itself, or
that a rank has gone which had to pass it on. But when a rank dies in the midst of an agreement, some have
heard of it and others, to whom all is well, go on. Hence whoever hears that a rank has gone

- sends what the others wait for in this round, without waiting for it,
- comes to the next agreement, as do those who have heard of any failure. In that one all hear of it;
- sends what he would tell in the one after, to which those come that have only heard of it now.

So nobody waits for a rank that has left, whichever rank dies when, unless it is after the last agreement.
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
# What was sent to ranks that may not come for it needs its memory for as long as they could.
_left_behind: list[_Message] = []


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

    An error in its block is told to the others, which raise ``CheckpointError`` in their next round, or at
    the end of their block.

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
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._is_over:
            return
        failure = ""
        if error is not None:
            about = f"rank {self.share.rank} could not load {self.reading or 'its part'} of {self._where}"
            error.add_note(about)
            failure = f"{about}: {type(error).__name__}: {error}"[:_LONGEST]
        self.turn, self._is_over = self.share.turns, True
        # Of a rank that dies in the first of these all that live hear in the second.
        failure = self._agree(self._agree(failure))
        if failure and (error is None or failure.startswith(_GONE)):
            raise _error_of(failure) from error

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
        for one in slices:
            memory(one)  # What fails here is told to the others.
        failure = self._agree("")
        self.turn += 1
        if not failure:
            failure = self._move(slices, memory)
        elif failure.startswith(_GONE):
            nowhere = memoryview(bytearray(max((one.size for one in slices), default=0)))
            messages, _ = self._start_moving(slices, lambda one: nowhere[: one.size], [])
            _left_behind.extend(messages)
        if failure:
            self.turn, self._is_over = self.share.turns, True
            failure = self._agree(failure)
            if failure.startswith(_GONE):
                for before, after in self._steps():
                    _left_behind.extend(self._tell(failure, _notice(""), before, after, []))
            raise _error_of(failure)

    def _move(self, slices: Sequence[Slice], memory: Callable[[Slice], memoryview]) -> str:
        """Moves the bytes of a round; returns what went wrong."""
        problems: list[str] = []
        messages, unpacking = self._start_moving(slices, memory, problems)
        self._wait(messages, problems)
        for packet, small in unpacking:
            for there, one in _places(packet, small):
                memory(one)[:] = there
        return _joined(problems)

    def _start_moving(
        self, slices: Sequence[Slice], memory: Callable[[Slice], memoryview], problems: list[str]
    ) -> tuple[list[_Message], list[tuple[memoryview, list[Slice]]]]:
        """Starts all messages of a round; returns also the packets in which small slices arrive."""
        packets: dict[tuple[int, ...], memoryview] = {}
        incoming, outgoing = self._by_peer(slices)
        messages: list[_Message] = []
        unpacking: list[tuple[memoryview, list[Slice]]] = []
        tag = self.share.tag + 1
        for peer, some in incoming.items():
            targets, small = _by_message(some, memory)
            if small:
                targets.append(_packet(small))
                unpacking.append((targets[-1], small))
            messages += self._started(dist.irecv, targets, peer, tag, problems)
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
            messages += self._started(dist.isend, sources, peer, tag, problems)
        return messages, unpacking

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
        for before, after in self._steps():
            heard, problems = _notice(""), list[str]()
            self._wait(self._tell(failure, heard, before, after, problems), problems)
            failure = _joined([failure, _text(heard), *problems])
        return failure

    def _steps(self) -> Iterator[tuple[int, int]]:
        """Yields from whom this rank hears in each step of an agreement, and whom it tells."""
        peers = self.share.peers
        place, step = peers.index(self.share.rank), 1
        while step < len(peers):
            yield peers[place - step], peers[(place + step) % len(peers)]
            step *= 2

    def _tell(
        self, failure: str, heard: memoryview, before: int, after: int, problems: list[str]
    ) -> list[_Message]:
        """Starts one step of an agreement."""
        messages = self._started(dist.irecv, [heard], before, self.share.tag, problems)
        return messages + self._started(dist.isend, [_notice(failure)], after, self.share.tag, problems)

    def _started(
        self,
        start: Callable[..., Any],
        buffers: Iterable[memoryview],
        peer: int,
        tag: int,
        problems: list[str],
    ) -> list[_Message]:
        messages: list[_Message] = []
        for buffer in buffers:
            memory = torch.frombuffer(buffer, dtype=torch.uint8)
            try:
                work = start(memory, peer, group=self._group, tag=tag)
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
        text = f"{_GONE}rank {peer} has gone while it loaded its part of {self._where}: {error}"
        return text[:_LONGEST]


def _joined(failures: Iterable[str]) -> str:
    """Returns what there is to tell: a rank that has gone, if any, and the first failure of another kind."""
    gone = other = ""
    for one in failures:
        if one.startswith(_GONE):
            gone = gone or one
        else:
            other = other or one
    return f"{gone}; {other}" if gone and other and other not in gone else gone or other


def _error_of(failure: str) -> CheckpointError:
    kind = RankGoneError if failure.startswith(_GONE) else CheckpointError
    return kind(failure.removeprefix(_GONE))


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

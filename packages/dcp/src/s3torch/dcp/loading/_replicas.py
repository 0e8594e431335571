"""Which rank reads what, where several ranks of a load want the same bytes. Pure functions of values.

Each rank notes in its plan which bytes it wants. The coordinator cuts what several want into stripes, and
gives each of them to one of the ranks that want it, so that all read about as much. The stripes travel in
rounds, in which no rank sends or receives more than a bounded number of bytes.
"""

from __future__ import annotations

import random
from array import array
from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from torch.distributed.checkpoint.planner import LoadItemType

from s3torch.core.ranges import KIB, MIB
from s3torch.dcp._tensors import noted_layout
from s3torch.dcp.loading._pieces import is_inside, span_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from s3torch.dcp._tensors import TensorLayout
    from s3torch.dcp.loading._pieces import StoredChunk

# Below this an archive is fetched whole: looking for its tensor first would cost more.
SMALL_ITEM = 256 * KIB
# What a stripe may read in vain between two tensors.
STRIPE_GAP = 16 * KIB
# A stripe is a part of a file of this size, less where there is not enough for all ranks.
_STRIPE = 8 * MIB
_SMALLEST_STRIPE = MIB
_STRIPES_PER_RANK = 8
# The most that a rank receives in a round, and the least that one sends.
_ROUND = 64 * MIB
_SMALLEST_BUCKET = 64 * KIB
_ROUNDS = 8
# Tags are positive numbers of 32 bits.
_FIRST_TAG = 2**30


@dataclass(frozen=True, slots=True)
class Wants:
    """What a rank notes in its plan: the bytes that it wants.

    Attributes:
        rank: Its number in the whole job.
        group: The name of the process group over which it can exchange bytes.
        spans: For each file starts and stops in turn, as unsigned integers of 8 bytes.
        unknown: Chunks of tensors, with their files, of which nobody has noted where the tensors begin.
    """

    rank: int
    group: str
    spans: Mapping[str, bytes]
    unknown: tuple[tuple[str, StoredChunk], ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes that one rank reads, and sends to others in one message or in a part of one.

    Attributes:
        turn: The number of the round in which they travel.
        piece: A number that neighbours have in common which are read together.
        path: The file.
        start: Where they begin.
        stop: Where they end.
        owner: The rank that reads them.
        others: The ranks that receive them.
    """

    turn: int
    piece: int
    path: str
    start: int
    stop: int
    owner: int
    others: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Share:
    """What a rank does for others in a load, and they for it.

    Attributes:
        rank: The number of the rank in the whole job.
        peers: All ranks of the exchange, this one among them, in order.
        turns: How many rounds it takes.
        slices: Those that this rank reads or receives, in order.
        layouts: Where tensors are in chunks of which nobody has noted it, by file, start and stop.
        tag: Tells the messages of this load from all others.
    """

    rank: int
    peers: tuple[int, ...]
    turns: int
    slices: tuple[Slice, ...]
    layouts: Mapping[tuple[str, int, int], TensorLayout | None]
    tag: int


def new_tag() -> int:
    """Returns the tag of a load: one that no other load has, most likely, and no message of a user."""
    return _FIRST_TAG + random.randrange(_FIRST_TAG)  # noqa: S311 - It is no secret.


def wants_of(files: Mapping[str, Iterable[StoredChunk]], *, rank: int, group: str) -> Wants:
    """Returns what a rank wants of the chunks of its plan, by the paths of the files."""
    spans: dict[str, bytes] = {}
    unknown: list[tuple[str, StoredChunk]] = []
    for path, chunks in files.items():
        found: list[tuple[int, int]] = []
        for chunk in chunks:
            layout = noted_layout(chunk.note, chunk.size)
            if layout is None and needs_head(chunk):
                unknown.append((path, chunk))
            else:
                found += spans_of(chunk, layout)
        if found:
            spans[path] = _packed(found)
    return Wants(rank, group, spans, tuple(unknown))


def needs_head(chunk: StoredChunk) -> bool:
    """Whether the head of a chunk that nobody has noted the layout of should be read first."""
    is_object = chunk.requests[0].type == LoadItemType.BYTE_IO
    return not chunk.descriptors and not is_object and chunk.size > SMALL_ITEM


def spans_of(chunk: StoredChunk, layout: TensorLayout | None) -> list[tuple[int, int]]:
    """Returns which bytes of its file a load fetches for a chunk."""
    is_object = chunk.requests[0].type == LoadItemType.BYTE_IO or chunk.descriptors
    if layout is None or is_object or not all(is_inside(one, layout) for one in chunk.requests):
        spans = [(chunk.start, chunk.stop)]
    else:
        spans = []
        for request in chunk.requests:
            first, elements = span_in(request, layout)
            start = chunk.start + layout.start + first * layout.dtype.itemsize
            spans.append((start, start + elements * layout.dtype.itemsize))
    return [span for span in spans if span[0] < span[1]]


def wanted_heads(wants: Iterable[Wants]) -> list[tuple[str, StoredChunk]]:
    """Returns the chunks whose layout is unknown and of which several ranks want something, each once."""
    chunks: dict[tuple[str, int, int], tuple[str, StoredChunk]] = {}
    ranks: dict[tuple[str, int, int], set[int]] = defaultdict(set)
    for one in wants:
        for path, chunk in one.unknown:
            place = path, chunk.start, chunk.stop
            chunks.setdefault(place, (path, chunk))
            ranks[place].add(one.rank)
    return [chunk for place, chunk in chunks.items() if len(ranks[place]) > 1]


def plan_shares(
    wants: Sequence[Wants], layouts: Mapping[tuple[str, int, int], TensorLayout | None], *, tag: int
) -> dict[int, Share]:
    """Decides which rank reads what for others.

    Args:
        wants: What each rank wants, in any order.
        layouts: Where the tensors are in chunks that several want and of which nobody has noted it.
        tag: Any number, which no other load that goes on has.

    Returns:
        What each rank has to do, by its number; ranks that share nothing are not among them.
    """
    shares: dict[int, Share] = {}
    for group in {one.group for one in wants}:
        stripes, loads = _stripes([one for one in wants if one.group == group], layouts)
        owners = _owners(stripes, loads)
        for peers in _components(stripes):
            members = set(peers)
            own = {
                rank: [stripe for stripe, owner in zip(stripes, owners, strict=True) if owner == rank]
                for rank in peers
            }
            slices = sorted(_slices(own), key=lambda one: (one.turn, one.path, one.start))
            turns = 1 + max(one.turn for one in slices)
            involved: dict[int, list[Slice]] = {rank: [] for rank in members}
            for one in slices:
                for rank in (one.owner, *one.others):
                    involved[rank].append(one)
            for rank, some in involved.items():
                shares[rank] = Share(rank, peers, turns, tuple(some), layouts, tag)
    return shares


@dataclass(frozen=True, slots=True)
class _Stripe:
    """Neighbouring intervals of a file that the same ranks want."""

    path: str
    intervals: list[tuple[int, int]]
    ranks: tuple[int, ...]
    size: int


def _stripes(
    wants: Sequence[Wants], layouts: Mapping[tuple[str, int, int], TensorLayout | None]
) -> tuple[list[_Stripe], dict[int, int]]:
    """Cuts what several ranks want, in the order of the files; tells also what each rank reads for itself."""
    # Ranks that want the same, as replicas do, are looked at together.
    alike: dict[tuple[str, bytes], list[int]] = defaultdict(list)
    for one in wants:
        spans = dict(one.spans)
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for path, chunk in one.unknown:
            place = path, chunk.start, chunk.stop
            if place in layouts:
                found[path] += spans_of(chunk, layouts[place])
        for path, some in found.items():
            spans[path] = spans.get(path, b"") + _packed(some)
        for path, packed in spans.items():
            alike[path, packed].append(one.rank)
    files: dict[str, list[tuple[bytes, list[int]]]] = defaultdict(list)
    for (path, packed), ranks in alike.items():
        files[path].append((packed, ranks))
    loads = {one.rank: 0 for one in wants}
    shared: list[tuple[str, int, int, tuple[int, ...]]] = []
    for path in sorted(files):
        for start, stop, wanted_by in _intervals(files[path]):
            if len(wanted_by) > 1:
                shared.append((path, start, stop, wanted_by))
            else:
                loads[wanted_by[0]] += stop - start
    size = _stripe_size(sum(stop - start for _, start, stop, _ in shared), len(wants))
    return list(_joined(shared, size)), loads


def _intervals(wanted: list[tuple[bytes, list[int]]]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Yields the parts of a file between any two borders, with the ranks that want each of them."""
    borders: list[tuple[int, int, int]] = []
    for number, (packed, _) in enumerate(wanted):
        numbers = array("Q", packed)
        borders += ((at, 1, number) for at in numbers[::2])
        borders += ((at, -1, number) for at in numbers[1::2])
    borders.sort()
    active: dict[int, int] = {}
    known: dict[frozenset[int], tuple[int, ...]] = {}
    last = 0
    for at, change, number in borders:
        if at > last and active:
            sets = frozenset(active)
            if sets not in known:
                known[sets] = tuple(sorted({rank for one in sets for rank in wanted[one][1]}))
            yield last, at, known[sets]
        last = at
        active[number] = active.get(number, 0) + change
        if not active[number]:
            del active[number]


def _stripe_size(total: int, ranks: int) -> int:
    size = _STRIPE
    while size > _SMALLEST_STRIPE and size * ranks * _STRIPES_PER_RANK > total:
        size //= 2
    return size


def _joined(shared: Iterable[tuple[str, int, int, tuple[int, ...]]], most: int) -> Iterator[_Stripe]:
    """Joins neighbours that are small, and cuts what is large."""
    path, ranks, end, size = "", (), 0, 0  # type: tuple[str, tuple[int, ...], int, int]
    intervals: list[tuple[int, int]] = []
    for next_path, start, stop, next_ranks in shared:
        for begin in range(start, stop, most):
            until = min(begin + most, stop)
            is_near = (next_path, next_ranks) == (path, ranks) and 0 <= begin - end <= STRIPE_GAP
            if intervals and not (is_near and size + until - begin <= most):
                yield _Stripe(path, intervals, ranks, size)
                intervals, size = [], 0
            path, ranks, end = next_path, next_ranks, until
            intervals.append((begin, until))
            size += until - begin
    if intervals:
        yield _Stripe(path, intervals, ranks, size)


def _owners(stripes: Sequence[_Stripe], loads: dict[int, int]) -> list[int]:
    """Gives each stripe to the rank that has least, of those that want it; the rarest stripes come first."""
    owners = [0] * len(stripes)
    for index in sorted(range(len(stripes)), key=lambda index: len(stripes[index].ranks)):
        owner = min(stripes[index].ranks, key=lambda rank: loads[rank])
        loads[owner] += stripes[index].size
        owners[index] = owner
    return owners


def _components(stripes: Iterable[_Stripe]) -> list[tuple[int, ...]]:
    """Returns the sets of ranks that have something to do with each other."""
    of: dict[int, set[int]] = {}
    for ranks in {stripe.ranks for stripe in stripes}:
        joined = set(ranks).union(*(of[rank] for rank in ranks if rank in of))
        of.update(dict.fromkeys(joined, joined))
    return sorted({tuple(sorted(members)) for members in of.values()})


def _slices(own: Mapping[int, list[_Stripe]]) -> Iterator[Slice]:
    """Puts the stripes of each rank into rounds, as much in each as all may send."""
    totals = [sum(stripe.size for stripe in stripes) for stripes in own.values() if stripes]
    # What is read last is sent when all else is done, so it should not be much.
    enough = max(_SMALLEST_STRIPE, max(totals) // _ROUNDS)
    bucket = min(_STRIPE, enough, max(_SMALLEST_BUCKET, _ROUND // len(totals)))
    pieces = count()
    for owner, stripes in own.items():
        turn, room = 0, bucket
        for stripe in stripes:
            others = tuple(rank for rank in stripe.ranks if rank != owner)
            for start, stop in stripe.intervals:
                piece, at = next(pieces), start
                while at < stop:
                    until = min(stop, at + room)
                    yield Slice(turn, piece, stripe.path, at, until, owner, others)
                    room -= until - at
                    at = until
                    if not room:
                        turn, room = turn + 1, bucket


def _packed(spans: Iterable[tuple[int, int]]) -> bytes:
    return array("Q", [at for span in spans for at in span]).tobytes()

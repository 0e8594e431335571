"""The bytes of a load in which ranks read for each other: where they go, and when an item is complete."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

from s3torch.core.transfer import Piece
from s3torch.dcp.loading._replicas import STRIPE_GAP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from s3torch.core.transfer import Fetch
    from s3torch.dcp.loading._exchange import Exchange
    from s3torch.dcp.loading._replicas import Slice

_SHOWN_NAMES = 3


class LoadPiece(Piece, Protocol):
    """Bytes of a file that a rank wants, for an item."""

    @property
    def name(self) -> str:
        """The name of the item."""
        ...


class Arrivals:
    """The pieces of one rank, each when all of its bytes are there, read by itself or received.

    What others wait for is read first, in the order of the rounds, and then what nobody else wants. Bytes of
    several pieces, or of pieces that need memory of their own, wait for their round in a buffer, so that only
    those pieces have memory that are being filled.

    Args:
        exchange: The rounds.
        pieces: All that this rank wants, by the paths of the files.
        fetching: Fetches pieces of files, those of the first mapping before those of the second; with each
            goes the gap up to which one request fetches two.
        max_gap: That gap for what nobody else wants.
    """

    def __init__(
        self,
        exchange: Exchange,
        pieces: Mapping[str, Sequence[LoadPiece]],
        fetching: Callable[..., Fetch[LoadPiece]],
        *,
        max_gap: float | None,
    ) -> None:
        self._exchange = exchange
        self._places = {path: _Places(some) for path, some in pieces.items()}
        self._complete: deque[LoadPiece] = deque()
        self._turns: dict[int, list[Slice]] = defaultdict(list)
        by_path: dict[str, list[Slice]] = defaultdict(list)
        by_piece: dict[int, list[Slice]] = defaultdict(list)
        for one in exchange.share.slices:
            self._turns[one.turn].append(one)
            by_path[one.path].append(one)
            if one.owner == exchange.share.rank:
                by_piece[one.piece].append(one)
        # The bytes of each round that are still being read here, and those of each piece that are missing.
        self._awaited: dict[int, int] = defaultdict(int)
        self._missing: dict[int, int] = {}
        self._stretches: dict[int, _Stretch] = {}
        self._received: dict[tuple[str, int], memoryview] = {}
        for number, slices in by_piece.items():
            self._stretches[number] = _Stretch(slices, self._between(slices[0].path, slices))
            for one in slices:
                self._awaited[one.turn] += one.size
        shared: dict[str, list[LoadPiece]] = defaultdict(list)
        for stretch in self._stretches.values():
            shared[stretch.path].append(stretch)
        private = {path: list(self._rest(some, by_path.get(path, []))) for path, some in pieces.items()}
        self._fetched = fetching((shared, STRIPE_GAP), (private, max_gap))

    def __iter__(self) -> Iterator[LoadPiece]:
        return self

    def __next__(self) -> LoadPiece:
        try:
            while not self._complete:
                if self._exchange.is_open() and not self._awaited[self._exchange.turn]:
                    self._run_round()
                else:
                    self._take(next(self._fetched))
        except StopIteration:
            raise
        except BaseException:
            self._exchange.reading = self._reading()
            raise
        return self._complete.popleft()

    def close(self) -> None:
        """Stops what is in flight."""
        self._fetched.close()

    def _between(self, path: str, slices: Sequence[Slice]) -> list[LoadPiece]:
        places = self._places.get(path)
        return places.between(slices[0].start, slices[-1].stop) if places is not None else []

    def _rest(self, pieces: Sequence[LoadPiece], slices: Sequence[Slice]) -> Iterator[LoadPiece]:
        """Yields what nobody else wants of some pieces of a file."""
        slices = sorted(slices, key=lambda one: one.start)
        stops = [one.stop for one in slices]
        for piece in pieces:
            gaps, at = [], piece.start
            for index in range(bisect_left(stops, piece.start + 1), len(slices)):
                if slices[index].start >= piece.stop:
                    break
                if slices[index].start > at:
                    gaps.append((at, slices[index].start))
                at = slices[index].stop
            if at == piece.start:
                yield piece
                continue
            if at < piece.stop:
                gaps.append((at, piece.stop))
            self._missing[id(piece)] = piece.stop - piece.start
            yield from (_Remnant(piece, start, stop) for start, stop in gaps)

    def _take(self, piece: LoadPiece) -> None:
        """Takes in what this rank has read."""
        if isinstance(piece, _Stretch):
            for one in piece.slices:
                self._awaited[one.turn] -= one.size
            # Its buffer is used until its round.
            piece.kept = self._fetched.keep()
        elif isinstance(piece, _Remnant):
            self._count(piece.whole, piece.stop - piece.start)
        else:
            self._complete.append(piece)

    def _count(self, piece: LoadPiece, size: int) -> None:
        self._missing[id(piece)] -= size
        if not self._missing[id(piece)]:
            self._complete.append(piece)

    def _run_round(self) -> None:
        self._fetched.start_more()
        slices = self._turns.pop(self._exchange.turn, [])
        self._exchange.run_round(slices, self._memory)
        for one in slices:
            self._deliver(one)

    def _memory(self, one: Slice) -> memoryview:
        """Returns where a slice is, or where it is wanted."""
        stretch = self._stretches.get(one.piece)
        if stretch is not None:
            return stretch.open()[one.start - stretch.start : one.stop - stretch.start]
        key = one.path, one.start
        if key not in self._received:
            pieces = self._between(one.path, [one])
            self._received[key] = (
                pieces[0].open()[one.start - pieces[0].start : one.stop - pieces[0].start]
                if _is_inside(one, pieces)
                else memoryview(bytearray(one.size))
            )
        return self._received[key]

    def _deliver(self, one: Slice) -> None:
        """Gives the bytes of a slice to the pieces that want them."""
        data, pieces = self._memory(one), self._between(one.path, [one])
        stretch = self._stretches.get(one.piece)
        is_there = _is_inside(one, pieces) if stretch is None else stretch.is_direct
        for piece in pieces:
            start, stop = max(piece.start, one.start), min(piece.stop, one.stop)
            if not is_there:
                view = piece.open()
                view[start - piece.start : stop - piece.start] = data[start - one.start : stop - one.start]
            self._count(piece, stop - start)
        if stretch is None:
            del self._received[one.path, one.start]
        elif one is stretch.slices[-1]:
            self._fetched.drop(stretch.kept)
            del self._stretches[one.piece]

    def _reading(self) -> str:
        """Tells which items were being read, where a request has failed."""
        if self._fetched.failed is None:
            return ""
        source, part = self._fetched.failed
        names = list(dict.fromkeys(getattr(piece, "name", "") for piece in part.pieces))
        return f"{', '.join(names[:_SHOWN_NAMES])} (in {source.key.rpartition('/')[2]})"


def _is_inside(one: Slice, pieces: Sequence[LoadPiece]) -> bool:
    """Whether a slice is in the memory of one piece, and of no other."""
    return len(pieces) == 1 and pieces[0].start <= one.start and one.stop <= pieces[0].stop


class _Stretch:
    """Bytes that this rank reads for others, and most often for itself."""

    kept = 0

    def __init__(self, slices: Sequence[Slice], pieces: Sequence[LoadPiece]) -> None:
        self.slices = slices
        self.path = slices[0].path
        self.start = slices[0].start
        self.stop = slices[-1].stop
        self.name = ", ".join(piece.name for piece in pieces[:_SHOWN_NAMES]) or "what others want"
        self._pieces = pieces
        self._view: memoryview | None = None
        self.is_direct = (
            len(pieces) == 1
            and not pieces[0].held
            and pieces[0].start <= self.start
            and self.stop <= pieces[0].stop
        )
        self.held = 0 if self.is_direct else self.stop - self.start

    def open(self) -> memoryview:
        if self._view is None:
            if self.is_direct:
                (piece,) = self._pieces
                self._view = piece.open()[self.start - piece.start : self.stop - piece.start]
            else:
                self._view = memoryview(bytearray(self.stop - self.start))
        return self._view


class _Remnant:
    """A part of a piece that this rank reads for itself."""

    def __init__(self, whole: LoadPiece, start: int, stop: int) -> None:
        self.whole = whole
        self.start = start
        self.stop = stop
        self.held = stop - start if whole.held else 0
        self.name = whole.name

    def open(self) -> memoryview:
        return self.whole.open()[self.start - self.whole.start : self.stop - self.whole.start]


class _Places:
    """The pieces of a file, found by their bytes; they may overlap."""

    def __init__(self, pieces: Sequence[LoadPiece]) -> None:
        self._pieces = sorted(pieces, key=lambda piece: piece.start)
        self._starts = [piece.start for piece in self._pieces]
        self._reach = list(accumulate((piece.stop for piece in self._pieces), max))

    def between(self, start: int, stop: int) -> list[LoadPiece]:
        """Returns the pieces that have some of the bytes."""
        found = []
        index = bisect_left(self._starts, stop)
        while index and self._reach[index - 1] > start:
            index -= 1
            if self._pieces[index].stop > start:
                found.append(self._pieces[index])
        return found[::-1]

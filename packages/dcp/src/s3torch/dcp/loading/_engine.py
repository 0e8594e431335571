"""A load that knows its whole plan: all ranges of all files in flight, items finished as they arrive."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.planner import LoadItemType

from s3torch.core.ranges import MIB, plan_parts
from s3torch.core.transfer import ObjectSource, fetch, read_again
from s3torch.dcp._filesystem import join_path
from s3torch.dcp._tensors import TensorLayout, noted_layout, parse_archive, tensor_of
from s3torch.dcp.loading._arrivals import Arrivals
from s3torch.dcp.loading._checking import CheckedSource, CheckPlan, WholeFile, plan_checks, union
from s3torch.dcp.loading._pieces import (
    HeadPiece,
    InFlight,
    ItemPiece,
    StagedPiece,
    TensorPiece,
    ToDevice,
    hand_over,
    is_inside,
    staged_pieces,
    target_of,
)
from s3torch.dcp.loading._replicas import SMALL_ITEM, needs_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from contextlib import ExitStack

    from torch.distributed.checkpoint.planner import LoadPlanner

    from s3torch.core.ranges import Part
    from s3torch.core.transfer import Fetch, FetchSource
    from s3torch.dcp._filesystem import S3FileSystem
    from s3torch.dcp.loading._arrivals import LoadPiece
    from s3torch.dcp.loading._checking import Check, Head
    from s3torch.dcp.loading._exchange import Exchange
    from s3torch.dcp.loading._pieces import StoredChunk

_DECODING = 64 * MIB
# Joins what overlaps, and nothing that only touches.
_OVERLAP = -1


class PlannedLoad:
    """One load of one rank.

    The caller's thread talks to the planner, because planners are not made for many threads. Items that are
    large and have to be decoded are decoded in threads meanwhile.

    Args:
        open_source: Opens a file by its path, relative to the checkpoint.
        planner: Says where the values belong.
        decode: Makes a value of an item that is more than a plain tensor.
        max_gap: Bytes between two pieces up to which one request fetches both; ``None`` to keep waste small.
        threads: How many items are decoded at a time.
        in_order: Each file is read once, from front to back and item by item, as some readers want it.
        verifies: Compares what arrives with the checksums that the writer has noted.
        device: Copies to an accelerator; ``None`` for that of this process, if it has one.
        exchange: The other ranks of the load, where they read for each other.
        heads: What is known of files that have no checksums of their pieces, by their paths.
    """

    def __init__(
        self,
        open_source: Callable[[str], FetchSource],
        planner: LoadPlanner,
        decode: Callable[[StoredChunk, io.BytesIO], Any],
        *,
        max_gap: float | None,
        threads: int,
        in_order: bool = False,
        verifies: bool = True,
        device: ToDevice | None = None,
        exchange: Exchange | None = None,
        heads: Mapping[str, Head] | None = None,
    ) -> None:
        self._open = open_source
        self._planner = planner
        self._decode = decode
        self._max_gap = _OVERLAP if in_order else max_gap
        self._threads = threads
        self._in_order = in_order
        self._verifies = verifies
        self._device = device or ToDevice()
        self._exchange = exchange
        self._heads = heads or {}
        self._whole: list[WholeFile] = []
        self._sources: dict[str, FetchSource] = {}
        self._checks = CheckPlan({}, {}, 0, 0)
        self._read = self._compared = 0

    @property
    def verified(self) -> tuple[int, int]:
        """How many bytes of the load were compared with checksums of the writer, and how many were not.

        Where ranks read for each other, these are the bytes that this one has read.
        """
        if self._exchange is None:
            return self._checks.checked, self._checks.unchecked
        return self._compared, self._read - self._compared

    def run(self, files: Mapping[str, Iterable[StoredChunk]]) -> None:
        """Loads chunks of files, by the paths of the files.

        Raises:
            CheckpointError: The checkpoint is not what its metadata says.
            ChecksumMismatchError: Bytes are not those that were saved, also when they are fetched once more.
            S3Error: A file is missing, damaged, or cannot be read.
        """
        chunks = [(path, chunk) for path, chunks in files.items() for chunk in chunks]
        if self._heads and self._exchange is None:
            # The same files again: they know by then where the parts end that their checksums are of.
            read_again(lambda: self._run(chunks))
        else:
            self._run(chunks)
        for file in self._whole:
            file.compare()

    def _run(self, chunks: Sequence[tuple[str, StoredChunk]]) -> None:
        self._read = self._compared = 0
        self._whole.clear()
        layouts = self.layouts(chunks)
        pieces: dict[str, list[LoadPiece]] = {}
        checks: dict[str, list[Check]] = {}
        for path, chunk in chunks:
            found = list(self._pieces_of(chunk, layouts.get(id(chunk))))
            pieces.setdefault(path, []).extend(found)
            ranges = [(one.start, one.stop) for one in found] if self._verifies else []
            for start, stop in union(ranges) if len(ranges) > 1 else ranges:
                checks.setdefault(path, []).extend(chunk.checks(start, stop))
        # What other ranks read is compared there, so nothing is fetched here only to compare it.
        self._checks = plan_checks(pieces, checks, widens=self._exchange is None)
        for path, paddings in self._checks.paddings.items():
            pieces[path] += paddings
        if self._verifies and self._exchange is None:
            self._verify_whole(pieces, checks)
        decoding = _Decoding(self._threads, self._give)
        with closing(self._arriving(pieces)) as arrived, closing(decoding):
            for piece in arrived:
                if isinstance(piece, TensorPiece | StagedPiece):
                    piece.finish(self._planner)
                elif isinstance(piece, ItemPiece):
                    view = piece.take()
                    decoding.add(piece.chunk, len(view), partial(self._value, piece.chunk, view))
            decoding.finish()
        self._device.finish()

    def _verify_whole(
        self, pieces: dict[str, list[LoadPiece]], checks: Mapping[str, Sequence[Check]]
    ) -> None:
        """Has the store's checksums compared of files of which all tensors, and so all bytes, are wanted."""
        for path, wanted in pieces.items():
            head = self._heads.get(path)
            if head is None or checks.get(path):
                continue
            if union((one.start, one.stop) for one in wanted) == [(head.stop, head.size)]:
                source = self._source(path)
                if isinstance(source, ObjectSource):
                    self._whole.append(WholeFile(source, head))
                    wanted.append(self._whole[-1])

    def _source(self, path: str) -> FetchSource:
        return self._sources.get(path) or self._sources.setdefault(path, self._open(path))

    def layouts(self, chunks: Iterable[tuple[str, StoredChunk]]) -> dict[int, TensorLayout]:
        """Finds out where the tensors are, from what the writer has noted, else from the archives' heads."""
        layouts: dict[int, TensorLayout] = {}
        heads: dict[str, list[LoadPiece]] = {}
        known = self._exchange.share.layouts if self._exchange is not None else {}
        for path, chunk in chunks:
            if chunk.descriptors or chunk.requests[0].type == LoadItemType.BYTE_IO:
                continue
            place = path, chunk.start, chunk.stop
            layout = noted_layout(chunk.note, chunk.size) or known.get(place)
            if layout is not None:
                layouts[id(chunk)] = layout
            elif needs_head(chunk) and place not in known and not self._in_order:
                heads.setdefault(path, []).append(HeadPiece(chunk))
        with closing(self._fetch((heads, 0))) as arrived:
            for piece in arrived:
                if isinstance(piece, HeadPiece) and (layout := piece.layout()) is not None:
                    layouts[id(piece.chunk)] = layout
        return layouts

    def _pieces_of(self, chunk: StoredChunk, layout: TensorLayout | None) -> Iterator[LoadPiece]:
        """Yields what has to be fetched; what has no bytes is finished at once."""
        if layout is None or not all(is_inside(request, layout) for request in chunk.requests):
            if chunk.size:
                yield ItemPiece(chunk)
            else:
                self._give(chunk, self._value(chunk, memoryview(b"")))
            return
        for request in chunk.requests:
            piece = TensorPiece(request, chunk, layout, target_of(request, self._planner))
            if piece.start == piece.stop:
                piece.finish(self._planner)
            elif piece.fits and self._device.serves(piece.target):
                yield from staged_pieces(piece, self._device)
            else:
                yield piece

    def _arriving(self, pieces: Mapping[str, list[LoadPiece]]) -> Fetch[LoadPiece] | Arrivals:
        if self._exchange is None:
            return self._fetch((pieces, self._max_gap))
        return Arrivals(self._exchange, pieces, self._fetch, max_gap=self._max_gap)

    def _fetch(self, *passes: tuple[Mapping[str, list[LoadPiece]], float | None]) -> Fetch[LoadPiece]:
        files: list[tuple[FetchSource, list[Part[LoadPiece]]]] = []
        all_wanted = [(path, some, gap) for pieces, gap in passes for path, some in pieces.items()]
        for path, wanted, max_gap in all_wanted:
            source = self._source(path)
            fitting = None
            if (checks := self._checks.files.get(path)) is not None:
                source, fitting = CheckedSource(source, checks), checks.fitting
            parts = plan_parts(wanted, part_size=source.part_size, max_gap=max_gap, fitting=fitting)
            files.append((source, parts))
            self._read += sum(part.size for part in parts)
            if checks is not None:
                self._compared += sum(checks.comparable(part.start, part.stop) for part in parts)
        if self._in_order:
            # A reader has one range in flight; so that several files have, they take turns.
            turns = zip_longest(*([(source, [part]) for part in parts] for source, parts in files))
            files = list(filter(None, chain.from_iterable(turns)))
        return fetch(files)

    def _value(self, chunk: StoredChunk, view: memoryview) -> Any:
        if chunk.requests[0].type != LoadItemType.BYTE_IO and not chunk.descriptors:
            layout = parse_archive(view, len(view))
            if layout is not None and layout.start < layout.stop:
                return tensor_of(view[layout.start : layout.stop], layout.dtype, layout.sizes)
        return self._decode(chunk, io.BytesIO(view))

    def _give(self, chunk: StoredChunk, value: Any) -> None:
        for request in chunk.requests:
            hand_over(request, value, self._planner)


class _Decoding:
    """Decodes large items in threads and small ones at once; hands them over on the caller's thread."""

    def __init__(self, threads: int, give: Callable[[StoredChunk, Any], None]) -> None:
        self._threads = threads
        self._give = give
        self._pool: ThreadPoolExecutor | None = None
        self._in_flight = InFlight(_DECODING)
        self.finish = self._in_flight.finish

    def add(self, chunk: StoredChunk, size: int, decode: Callable[[], Any]) -> None:
        """Takes an item; waits for older ones when there is much to be decoded already."""
        if size <= SMALL_ITEM or self._threads == 1:
            self._give(chunk, decode())
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="s3torch-load")
        future = self._pool.submit(decode)
        self._in_flight.add(size, future.done, lambda: self._give(chunk, future.result()))

    def close(self) -> None:
        """Drops what is not decoded yet."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class ReaderSources:
    """Opens files through readers of the user's own kind; each is read on one thread, from front to back.

    Args:
        fs: Makes the readers.
        path: The URI of the checkpoint.
        threads: How many files are read at a time.
        stack: Closes the readers and ends the threads.
    """

    def __init__(self, fs: S3FileSystem, path: str, threads: int, stack: ExitStack) -> None:
        self._fs = fs
        self._path = path
        self._stack = stack
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix="s3torch-load") for _ in range(threads)]
        for thread in self._threads:
            stack.callback(thread.shutdown)

    def open(self, path: str) -> FetchSource:
        """Opens a file by its path, relative to the checkpoint."""
        uri = join_path(self._path, path)
        reader = self._stack.enter_context(self._fs.create_stream(uri, "rb"))
        # The next file is for the next thread.
        self._threads.append(thread := self._threads.pop(0))
        return _ReaderSource(reader, thread, self._fs.open_ranges(uri))


class _ReaderSource:
    """One file; what its reader does not have to tell comes from the object."""

    def __init__(self, reader: Any, thread: ThreadPoolExecutor, file: ObjectSource) -> None:
        self.bucket = file.bucket
        self.key = file.key
        self.part_size = file.part_size
        self.budget = file.budget
        self._reader = reader
        self._thread = thread

    def start(self, start: int, stop: int, into: memoryview | None = None) -> _Read:
        view = memoryview(bytearray(stop - start)) if into is None else into
        return _Read(self._thread.submit(self._read, start, view))

    def _read(self, start: int, view: memoryview) -> memoryview:
        self._reader.seek(start)
        filled = 0
        while filled < len(view) and (count := self._reader.readinto(view[filled:])):
            filled += count
        return view[:filled]


class _Read:
    """A range that is being read."""

    def __init__(self, read: Future[memoryview]) -> None:
        self._read = read

    def wait(self) -> memoryview:
        return self._read.result()

    def cancel(self) -> None:
        if not self._read.cancel():
            # A reader cannot be interrupted, and the memory must not be touched any more.
            wait([self._read])

    def add_done_callback(self, fn: Callable[[], object], /) -> None:
        self._read.add_done_callback(lambda _: fn())

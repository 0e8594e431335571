"""Parquet files as shards: row groups, fetched ahead and decoded by pyarrow."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from s3torch.core.errors import ConfigurationError, S3Error
from s3torch.core.ranges import MAX_OBJECT_SIZE, ByteRange, Part, Span, plan_parts
from s3torch.datasets._opening import RangeInParts
from s3torch.datasets.formats import DamagedShardError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from s3torch.core.transfer import RangeSource
    from s3torch.datasets.formats import ShardObject

# A footer has some hundred bytes for each column and row group; most are within this.
_TAIL = 64 * 1024
_ENDING = 8
_MAGIC = b"PAR1"
# Columns that are no further apart share a request.
_GAP = 1024 * 1024
_ROWS_DECODED = 1024


@dataclass(frozen=True, slots=True)
class ParquetFormat:
    """Rows of Parquet files; needs the extra ``parquet``.

    Row groups are shared out between workers and fetched ahead, each by a request for each stretch of the
    columns that are wanted. Of every file, every worker reads the footer: one request, two for those above 64
    KiB.

    Attributes:
        suffixes: What keys end with.
        columns: The columns to fetch, as pyarrow names them; ``None`` for all.
        batch_rows: Yields ``pyarrow.RecordBatch`` of up to so many rows; ``None`` yields each row as a
            ``dict``.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".pq")
    columns: Sequence[str] | None = None
    batch_rows: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.columns, str):
            raise ConfigurationError(f"columns must be names of columns, got {self.columns!r}")
        if self.batch_rows is not None and (type(self.batch_rows) is not int or self.batch_rows < 1):
            raise ConfigurationError(f"batch_rows must be an integer from 1 on, got {self.batch_rows!r}")

    def open(self, shard: ShardObject) -> _ParquetShard:
        try:
            import pyarrow.parquet  # noqa: F401 - Fails now, not in a worker.
        except ImportError as exc:
            raise ConfigurationError(
                f'{shard.item.key!r} needs pyarrow; pip install "s3torch-datasets[parquet]"'
            ) from exc
        return _ParquetShard(shard, self)


class _ParquetShard:
    def __init__(self, shard: ShardObject, chosen: ParquetFormat) -> None:
        self.chosen = chosen
        self.source = shard.ranges()
        size = self.source.known_size
        # Without a size, the end is not known before the first answer.
        self._tail = None if size is None else self._fetched_tail(size)

    def pieces(self) -> Sequence[_RowGroup]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._tail is None:
            self._tail = self._fetched_tail(self.source.head().size)
        tail = self._tail.wait()
        size = self._tail.start + len(tail)
        if size < _ENDING or bytes(tail[-4:]) != _MAGIC:
            raise _damage(self.source, max(0, size - 4), "it does not end as a Parquet file")
        length = int.from_bytes(tail[-_ENDING:-4], "little")
        begin = size - _ENDING - length
        if begin < 0:
            why = f"it is too short for a footer of {length} bytes"
            raise _damage(self.source, size - _ENDING, why)
        stretches = [self._tail]
        if begin < self._tail.start:
            stretches = [RangeInParts(self.source, begin, self._tail.start), self._tail]
        try:
            metadata = pq.read_metadata(_SparseFile(size, stretches))
            indices = _wanted(metadata, self.chosen.columns)
            groups = [
                _stretches(metadata.row_group(number), indices, size)
                for number in range(metadata.num_row_groups)
            ]
        except (pa.ArrowException, OSError) as exc:
            raise _damage(self.source, begin, f"the footer: {exc}") from exc
        return [_RowGroup(self, size, metadata, number, ranges) for number, ranges in enumerate(groups)]

    def close(self) -> None:
        if self._tail is not None:
            self._tail.close()

    def _fetched_tail(self, size: int) -> RangeInParts:
        return RangeInParts(self.source, max(0, size - _TAIL), size)


class _RowGroup:
    """A row group; positions count its rows."""

    def __init__(
        self, shard: _ParquetShard, size: int, metadata: Any, number: int, ranges: Sequence[Span]
    ) -> None:
        # The source of the footer, so that both are of the same version of the object.
        self._source = shard.source
        self._chosen = shard.chosen
        self._file_size = size
        self._metadata = metadata
        self._number = number
        self._ranges = ranges
        self._fetched: list[RangeInParts] | None = None
        self.size = sum(one.stop - one.start for one in ranges)

    def prefetch(self) -> None:
        if self._fetched is None:
            self._fetched = [RangeInParts(self._source, one.start, one.stop) for one in self._ranges]

    def samples(self, position: int) -> Iterator[tuple[int, Any]]:
        import pyarrow as pa

        self.prefetch()
        try:
            table = self._table()
        except S3Error:
            raise
        except (pa.ArrowException, OSError) as exc:
            raise self._damage(exc) from exc
        finally:
            self.close()
        rows = self._chosen.batch_rows
        for batch in table.slice(position).to_batches(max_chunksize=rows or _ROWS_DECODED):
            if rows is not None:
                position += batch.num_rows
                yield position, batch
                continue
            try:
                found = batch.to_pylist()
            except (pa.ArrowException, ValueError) as exc:
                raise self._damage(exc) from exc
            for row in found:
                position += 1
                yield position, row

    def close(self) -> None:
        fetched, self._fetched = self._fetched, None
        for stretch in fetched or ():
            stretch.close()

    def _damage(self, exc: Exception) -> DamagedShardError:
        begin = self._ranges[0].start if self._ranges else 0
        return _damage(self._source, begin, f"row group {self._number}: {exc}")

    def _table(self) -> Any:
        import pyarrow.parquet as pq

        file = _SparseFile(self._file_size, self._fetched or [])
        parquet = pq.ParquetFile(file, metadata=self._metadata)
        columns = self._chosen.columns
        return parquet.read_row_group(
            self._number, columns=None if columns is None else list(columns), use_threads=False
        )


class _SparseFile(io.RawIOBase):
    """A file of which some stretches are there; what else is read of it is an error."""

    def __init__(self, size: int, stretches: Sequence[RangeInParts]) -> None:
        super().__init__()
        self._size = size
        self._stretches = stretches
        self._position = 0

    def readable(self) -> bool:
        return True

    seekable = readable

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._size, self._position + size)
        start = self._position
        self._position = max(start, stop)
        if start >= stop:
            return b""
        pieces = []
        for stretch in self._stretches:
            if stretch.start <= start < stretch.stop:
                piece = stretch.wait()[start - stretch.start : stop - stretch.start]
                pieces.append(piece)
                start += len(piece)
                if start == stop:
                    return b"".join(pieces)
        raise OSError(f"the footer has nothing at {start}")


def _damage(source: RangeSource, offset: int, why: str) -> DamagedShardError:
    return DamagedShardError.at(source.bucket, source.key, offset, why)


def _wanted(metadata: Any, columns: Sequence[str] | None) -> list[int]:
    """Returns the numbers of the leaf columns under these names; all for ``None``."""
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    if columns is None:
        return list(range(len(paths)))
    found = {
        name: [n for n, path in enumerate(paths) if f"{path}.".startswith(f"{name}.")] for name in columns
    }
    for name, numbers in found.items():
        if not numbers:
            raise ConfigurationError(f"there is no column {name!r}; there are: {', '.join(paths)}")
    return sorted({number for numbers in found.values() for number in numbers})


def _stretches(group: Any, indices: Sequence[int], size: int) -> list[Part[ByteRange]]:
    """Returns where the chunks of some columns are, in order, those that are close to each other as one."""
    chunks = []
    for index in indices:
        column = group.column(index)
        start = column.data_page_offset
        if column.has_dictionary_page and column.dictionary_page_offset:
            start = min(start, column.dictionary_page_offset)
        length = column.total_compressed_size
        if not 0 <= start <= start + length <= size:
            raise OSError(f"it names {length} bytes at {start}, of {size}")
        if length:
            chunks.append(ByteRange(start, start + length))
    return plan_parts(chunks, part_size=MAX_OBJECT_SIZE, max_gap=_GAP)

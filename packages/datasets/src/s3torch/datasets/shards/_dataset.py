"""A dataset of shards, objects with many samples: tar archives, Parquet files, and formats of plugins."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from torch.utils.data import get_worker_info

from s3torch.core.errors import ConfigurationError, NotFoundError, ObjectChangedError
from s3torch.core.plugins import shard_formats
from s3torch.datasets._base import COMMON_OPTIONS, apply
from s3torch.datasets._iterable import StreamedDataset
from s3torch.datasets._opening import identity
from s3torch.datasets.formats import DamagedShardError, ShardFormat, ShardObject, named_format
from s3torch.datasets.order._epoch import Permutation, Place, WorkerShard, current_worker
from s3torch.datasets.order._state import Mark, ShardState, ShareProgress
from s3torch.datasets.shards._pipeline import ShardRun
from s3torch.datasets.sources._sources import size_of, subject_of
from s3torch.datasets.sources._table import describe_objects

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from typing_extensions import TypeVar as DefaultTypeVar

    from s3torch.core import S3BucketKeyData, S3Client
    from s3torch.datasets.formats import OpenedShard
    from s3torch.datasets.order._epoch import StridedShard
    from s3torch.datasets.sources._sources import ObjectSource, PrefixSource
    from s3torch.datasets.sources._table import DatasetSummary, ObjectTable

    # Samples are dicts or rows, as their format says.
    ResultT = DefaultTypeVar("ResultT", default=Any)
else:
    ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)


def format_for_key(key: str) -> ShardFormat:
    """Makes the installed format with the longest suffix that the key ends with, with its defaults."""
    made: list[ShardFormat] = [make() for make in shard_formats().values()]
    best = max(made, key=lambda one: _match(key, one.suffixes), default=None)
    if best is None or not _match(key, best.suffixes):
        known = ", ".join(sorted(suffix for one in made for suffix in one.suffixes))
        raise ConfigurationError(f"no format of shards for the key {key!r}; known suffixes are: {known}")
    return best


@dataclass(frozen=True, slots=True)
class ShardSource:
    """The objects of another source that are shards by the suffix of their key; others are left out.

    ``suffixes`` are ``None`` for those of all formats that are installed.
    """

    source: ObjectSource
    suffixes: tuple[str, ...] | None = None

    def subject(self) -> str | None:
        return subject_of(self.source, self.suffixes)

    def __call__(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        suffixes = self.suffixes
        if suffixes is None:
            suffixes = tuple(suffix for make in shard_formats().values() for suffix in make().suffixes)
        return (item for item in self.source(client) if _match(item.key, suffixes))


def _match(key: str, suffixes: Iterable[str]) -> int:
    """Returns the length of the longest suffix that the key ends with; 0 if it ends with none."""
    name = key.lower()
    return max((len(suffix) for suffix in suffixes if name.endswith(suffix)), default=0)


class S3ShardDataset(StreamedDataset[Any, ResultT]):
    """The samples of all shards of a listing, streamed.

    A tar archive has samples by the naming of WebDataset: a ``dict`` with ``"__key__"``, ``"__url__"`` and
    the ``bytes`` of each file by its suffix. A row of a Parquet file is a ``dict`` by column.

    Shards are shared out between all DataLoader workers of all ranks: tar archives whole, Parquet files by
    row group. So there should be a multiple of workers in all of them; ranks may get numbers of samples that
    differ. While a shard is read, the downloads of the next ones are in flight.

    With ``shuffle``, shards come in an order that seed and ``set_epoch`` decide, and each worker shuffles its
    samples within blocks of ``shuffle_buffer``; the order depends on the numbers of ranks and workers.

    ``state_dict()`` has a few numbers for each worker and resumes exactly: no sample comes twice in an epoch
    and none is lost, whatever the numbers of ranks and workers are then. With the same numbers each worker
    goes on in the same order; with others what is left is shared out anew, and the blocks that were being
    yielded come first. Up to two blocks are read again, and of a compressed archive all before them.
    States are those of a ``ResumableLoader``, of torchdata's ``StatefulDataLoader`` (same numbers), or of the
    dataset itself where no loader has workers; ``merge_states`` puts those of several ranks together.

    Rank and world size are read as ``S3IterableDataset`` does. All workers of a rank and all epochs share one
    listing.

    Arguments that are not described here are those of ``S3MapDataset``.

    Args:
        get_dataset_objects: Takes the client and returns the shards.
        format: ``"tar"``, ``"parquet"``, another name that a plugin has registered, or a format with its
            options; ``None`` finds it by the suffix of each key.
        transform: Makes what the dataset yields of a sample; ``None`` yields the sample itself.
        shuffle: Shuffles shards and samples.
        shuffle_buffer: How many samples a worker keeps to shuffle them; 1 shuffles only the shards.
        seed: The same on all ranks.
        samples_per_worker: How many samples each worker yields an epoch, so that ranks get the same number
            and collectives do not hang: it stops there, or goes on with its shards from the beginning.
            ``None`` yields each sample once.
        shards_ahead: How many shards or row groups are fetched ahead in each worker while they fit in 128
            MiB, of a shard at most the first part until its turn comes.
        rank: This rank, for jobs without a process group; given together with ``world_size``.
        world_size: The number of ranks.
        on_error: ``"skip"`` leaves out shards that are missing, and the rest of those that changed or are
            damaged, with a warning in the log and a count in ``skipped``.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    _kind = "shards"
    _of_samples = True
    _options = COMMON_OPTIONS | {
        *("reader_constructor", "on_error", "rank", "world_size", "shuffle", "seed", "format"),
        *("shuffle_buffer", "samples_per_worker", "shards_ahead"),
    }
    _saved: ShardState | None

    def _prepare(self) -> None:
        super()._prepare()
        self._format = _made(self._settings.format)
        self._buffer = self._settings.shuffle_buffer if self._settings.shuffle else 1
        self._state: ShardState | None = None

    @classmethod
    def _chosen_from(cls, source: PrefixSource, options: Mapping[str, Any]) -> ObjectSource:
        chosen = _made(options.get("format"))
        return ShardSource(source, None if chosen is None else tuple(chosen.suffixes))

    @property
    def skipped(self) -> int:
        """How many shards or row groups were left out, wholly or in part, by this process and its workers."""
        return self._counter.total("skipped")

    def describe(self, *, count_samples: bool = False) -> DatasetSummary:
        """Summarises the shards, from their listing.

        Args:
            count_samples: Reads the shard of median size, counts its samples and estimates from that how many
                there are in all.
        """
        objects = self._listing()
        known = sorted((item for item in objects if item.object_info), key=size_of)
        if not (count_samples and known):
            return describe_objects(objects)
        probe = known[len(known) // 2]
        found = 0
        for piece in self._open(probe).pieces():
            with closing(piece):
                found += sum(1 for _ in piece.samples(0))
        estimate = round(found * sum(map(size_of, known)) / max(1, size_of(probe)))
        return describe_objects(objects, estimated_samples=estimate)

    def __iter__(self) -> Iterator[ResultT]:
        # Decided now, not at the first sample: a group may be gone by then.
        share = self._share()
        self._state = self._taken_up([share])
        if self._saved is not None:
            self._epoch[0] = self._state.epoch
        self._saved = None
        return self._run(self._state, share)

    def state_dict(self) -> dict[str, Any]:
        return (self._saved or self._state or self._taken_up([self._share()])).to_dict()

    def _loaded(self, state: Mapping[str, Any]) -> ShardState:
        return ShardState.from_dict(state, self._order())

    def begun(self, *, workers: int) -> dict[str, Any]:
        if workers == 0 and self._state is not None:
            return self._state.to_dict()
        places = [Place(number, workers) for number in range(workers)] or [Place()]
        state = self._taken_up([WorkerShard(self._rank(), place).strided for place in places])
        self._saved, self._epoch[0] = None, state.epoch
        return state.to_dict()

    @property
    def needs_marks(self) -> bool:
        # Batches do not say how far a worker is among its shards.
        return True

    def mark(self) -> Mark[ShareProgress]:
        if self._state is None:
            raise ConfigurationError("the dataset was not iterated in this process")
        ((share, progress),) = self._state.shares.items()
        return Mark(share, progress, self._state.listing)

    def marked(self, begun: Mapping[str, Any], marks: Iterable[Mark[ShareProgress]]) -> dict[str, Any]:
        return ShardState.from_dict(begun).noted(marks).to_dict()

    def _taken_up(self, team: Sequence[StridedShard]) -> ShardState:
        state = self._saved or ShardState(self._order(), epoch=int(self._epoch))
        return state.taken_up(team, quota=self._settings.samples_per_worker)

    def _share(self) -> StridedShard:
        return WorkerShard(self._rank(), current_worker()).strided

    def _order(self) -> dict[str, Any]:
        settings = self._settings
        seed = settings.seed if settings.shuffle else 0
        return {"shuffle": settings.shuffle, "seed": seed, "buffer": self._buffer}

    def _run(self, state: ShardState, share: StridedShard) -> Iterator[ResultT]:
        objects = self._listing()
        if state.listing not in {"", objects.digest}:
            raise ConfigurationError("the state was saved with other shards, or they have changed")
        state.listing = objects.digest
        quota = self._settings.samples_per_worker if state.quota is None else state.quota
        nothing = (
            f"there are no samples for worker {share.first} of {share.step} in all ranks: {len(objects)} "
            "shards are too few"
        )
        while True:
            begun = state.shares[share]
            yield from self._turn(state, share, objects, quota)
            here = state.shares[share]
            if quota is None or here.taken >= quota:
                break
            if here == ShareProgress(begun.turn, begun.taken) and not (state.consumed and here.turn == 0):
                raise ConfigurationError(nothing)
            state.shares[share] = ShareProgress(here.turn + 1, here.taken)
        # A worker does not know whether others have ended.
        state.finished = get_worker_info() is None
        if here.taken == 0 and not state.consumed:
            _log.warning(nothing)

    def _turn(
        self, state: ShardState, share: StridedShard, objects: ObjectTable, quota: int | None
    ) -> Iterator[ResultT]:
        settings, transform = self._settings, self._settings.transform
        order = Permutation(len(objects), seed=settings.seed, epoch=state.epoch) if settings.shuffle else None
        run = ShardRun(
            count=len(objects),
            open_shard=lambda place: self._open(objects[place if order is None else order[place]]),
            ahead=settings.shards_ahead,
            tolerate=self._tolerate,
            report=self._skip,
            share=share,
            consumed=state.consumed,
            seed=settings.seed,
            epoch=state.epoch,
            buffer=self._buffer,
        )
        begun = state.shares[share]
        left = None if quota is None else max(0, quota - begun.taken)
        with closing(run.samples(begun)) as samples:
            for after, sample in islice(samples, left):
                made = sample if transform is identity else apply(transform, sample, name_of)
                state.shares[share] = after
                yield made

    def _open(self, item: S3BucketKeyData) -> OpenedShard:
        chosen = format_for_key(item.key) if self._format is None else self._format
        return chosen.open(ShardObject(self._client, item, self._settings.reader_constructor, self._cache))

    def _tolerate(self, exc: Exception) -> bool:
        tolerated = NotFoundError | ObjectChangedError | DamagedShardError
        return self._settings.on_error == "skip" and isinstance(exc, tolerated)

    def _skip(self, exc: Exception) -> None:
        _log.warning("skipping a shard, or the rest of it: %s", exc)
        self._counter.add("skipped")


def name_of(sample: Any) -> str:
    return f"{sample.get('__key__')} of {sample.get('__url__')}" if isinstance(sample, dict) else "a row"


def _made(chosen: str | ShardFormat | None) -> ShardFormat | None:
    return named_format(chosen) if isinstance(chosen, str) else chosen

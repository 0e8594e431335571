"""A dataset of shards, objects with many samples: tar archives, Parquet files, and formats of plugins."""

from __future__ import annotations

import logging
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset

from s3torch.core import S3ReaderConstructor
from s3torch.core.errors import ConfigurationError, NotFoundError, ObjectChangedError
from s3torch.datasets._sample_dataset import SampleDataset
from s3torch.datasets._tally import Tally
from s3torch.datasets.damage import DamagedShardError
from s3torch.datasets.describe import describe_objects
from s3torch.datasets.formats import ShardFormat, ShardObject, ShardSource, format_for_key, named_format
from s3torch.datasets.ordering import Permutation
from s3torch.datasets.placement import current_rank, current_worker, given_place
from s3torch.datasets.sample_transform import transformed
from s3torch.datasets.shard_layout import ShareProgress
from s3torch.datasets.shard_pipeline import ShardPipeline
from s3torch.datasets.shard_run import ShardRun
from s3torch.datasets.shard_state import ShardMark, ShardState
from s3torch.datasets.sharding import Place, Shard
from s3torch.datasets.sources import PrefixSource

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Self

    from s3torch.core import S3BucketKeyData, S3ClientConfig, S3ReaderConstructorProtocol
    from s3torch.datasets.describe import DatasetSummary
    from s3torch.datasets.formats import OpenedShard
    from s3torch.datasets.sharding import Stripe
    from s3torch.datasets.sources import ObjectSource
    from s3torch.datasets.table import ObjectTable

__all__ = ["S3ShardDataset"]

_log = logging.getLogger(__name__)


class S3ShardDataset(SampleDataset, IterableDataset[Any]):
    """The samples of all shards of a listing, streamed.

    A tar archive has samples by the naming of WebDataset: a ``dict`` with ``"__key__"``, ``"__url__"`` and
    the ``bytes`` of each file by its suffix. A row of a Parquet file is a ``dict`` by column.

    Shards are shared out between all DataLoader workers of all ranks: tar archives whole, Parquet files by
    row group. So there should be a multiple of workers in all of them; ranks may get numbers of samples that
    differ. While a shard is read, the downloads of the next ones are under way.

    With ``shuffle``, shards come in an order that seed and ``set_epoch`` decide, and each worker mixes its
    samples within blocks of ``shuffle_buffer``; the order depends on the numbers of ranks and workers.

    ``state_dict()`` has a few numbers for each worker and resumes exactly: no sample comes twice in an epoch
    and none is lost, whatever the numbers of ranks and workers are then. With the same numbers each worker
    goes on in the same order; with others what is left is shared out anew, and the blocks that were being
    given out come first. Up to two blocks are read again, and of a compressed archive all before them.
    States are those of a ``ResumableLoader``, of torchdata's ``StatefulDataLoader`` (same numbers), or of the
    dataset itself where no loader has workers; ``merge_states`` puts those of several ranks together.

    Rank and world size are read as ``S3IterableDataset`` does. All workers of a rank and all epochs share one
    listing.

    Args:
        region: The region; ``None`` takes it from the usual AWS places.
        get_dataset_objects: Takes the client and returns the shards.
        format: ``"tar"``, ``"parquet"``, another name that a plugin has registered, or a format with its
            options; ``None`` finds it by the suffix of each key.
        endpoint: The URL of a store other than AWS.
        transform: Makes what the dataset yields of a sample.
        s3client_config: The settings of the client.
        reader_constructor: How shards are read; the default is sequential.
        shuffle: Shuffles shards and samples.
        shuffle_buffer: How many samples a worker keeps to mix them; 1 shuffles only the shards.
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
        cache_dir: A folder on a local disk where what was read is kept, for all processes of this machine, so
            that the second epoch reads from there; see ``DiskCache``.
        cache_limit: How many bytes the folder may have; ``None`` for half of what its disk has for it.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: ObjectSource,
        *,
        format: str | ShardFormat | None = None,  # noqa: A002 - the word that users know
        endpoint: str | None = None,
        transform: Callable[[Any], Any] | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        shuffle: bool = False,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        samples_per_worker: int | None = None,
        shards_ahead: int = 2,
        rank: int | None = None,
        world_size: int | None = None,
        on_error: str = "raise",
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | None = None,
    ) -> None:
        if on_error not in {"raise", "skip"}:
            raise ConfigurationError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        numbers = (
            ("shuffle_buffer", shuffle_buffer, 1),
            ("shards_ahead", shards_ahead, 0),
            ("samples_per_worker", 1 if samples_per_worker is None else samples_per_worker, 1),
        )
        for name, value, lowest in numbers:
            if type(value) is not int or value < lowest:
                raise ConfigurationError(f"{name} must be an integer from {lowest} on, got {value!r}")
        reader_type = S3ReaderConstructor.get_reader_type_string(reader_constructor)
        super().__init__(
            region,
            get_dataset_objects,
            agent=f"md/dataset#shards md/reader_type#{reader_type}",
            endpoint=endpoint,
            transform=transform,
            s3client_config=s3client_config,
            cache_dir=cache_dir,
            cache_limit=cache_limit,
        )
        self._format = named_format(format) if isinstance(format, str) else format
        self._reader_constructor = reader_constructor
        self._shuffle = shuffle
        self._buffer = shuffle_buffer if shuffle else 1
        self._seed = seed
        self._count = samples_per_worker
        self._ahead = shards_ahead
        self._skips = on_error == "skip"
        self._tally = Tally()
        self._given_rank = given_place(rank, world_size)
        self._seen_rank = current_rank()
        # Shared memory, so that persistent workers see the epoch that is set in their parent.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._saved: ShardState | None = None
        self._state: ShardState | None = None

    @classmethod
    def from_prefix(
        cls, s3_uri: str | os.PathLike[str], *, region: str | None = None, **options: Any
    ) -> Self:
        """Makes a dataset of all objects whose key begins with the key of the URI, in listing order.

        Keys that end with no suffix of the format, or of any without a ``format``, are left out, so sidecars
        may lie beside the shards. The other arguments are those of the class.

        Raises:
            ConfigurationError: The URI or another argument is wrong.
        """
        chosen = options.pop("format", None)
        chosen = named_format(chosen) if isinstance(chosen, str) else chosen
        source = ShardSource(
            PrefixSource.from_uri(s3_uri), None if chosen is None else tuple(chosen.suffixes)
        )
        return cls(region, source, format=chosen, **options)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration, also in workers that run already.

        A state that was loaded for another epoch is forgotten.
        """
        if self._saved is not None and self._saved.epoch != epoch:
            self._saved = None
        self._epoch[0] = epoch

    @property
    def skipped(self) -> int:
        """How many shards or row groups were left out, wholly or in part, by this process and its workers."""
        return self._tally.total("skipped")

    def describe(self, *, count_samples: bool = False) -> DatasetSummary:
        """Summarises the shards, from their listing.

        Args:
            count_samples: Reads the shard of median size, counts its samples and estimates from that how many
                there are in all.
        """
        objects = self._listing()
        known = sorted((item for item in objects if item.object_info), key=_size)
        if not (count_samples and known):
            return describe_objects(objects)
        probe = known[len(known) // 2]
        found = 0
        for piece in self._open(probe).pieces():
            with closing(piece):
                found += sum(1 for _ in piece.samples(0))
        total = sum(map(_size, known))
        return describe_objects(objects, estimated_samples=round(found * total / max(1, _size(probe))))

    def __iter__(self) -> Iterator[Any]:
        # Decided now, not at the first sample: a group may be gone by then.
        stripe = self._stripe()
        self._state = self._taken_up([stripe])
        self._saved = None
        return self._run(self._state, stripe)

    def state_dict(self) -> dict[str, Any]:
        """Tells how far the iteration is that this process started last.

        In a worker, it is the state of this worker: torchdata's ``StatefulDataLoader`` asks each, and needs
        the same numbers of workers and ranks to resume. For other numbers, see ``ResumableLoader``.
        """
        state = self._saved or self._state or self._taken_up([self._stripe()])
        return state.to_dict()

    def mark(self) -> ShardMark:
        """Tells in a worker how far the iteration is that was started last, without what stays the same."""
        if self._state is None:
            raise ConfigurationError("the dataset was not iterated in this process")
        ((stripe, progress),) = self._state.shares.items()
        return ShardMark(self._state.shards, stripe, progress)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on where a state was saved.

        For other numbers of ranks or workers than there were, the state is that of ``merge_states``.

        Raises:
            ConfigurationError: It is no such state, or the dataset has another order.
        """
        saved = ShardState.from_dict(state)
        if saved.order != self._order():
            raise ConfigurationError(
                f"the state was saved with {saved.order} and the dataset has {self._order()}: "
                "the order would differ"
            )
        self._saved = saved
        self._epoch[0] = saved.epoch

    def begun(self, *, workers: int) -> dict[str, Any]:
        """Returns the state that a loader's iteration starts from, which has just been started.

        Workers have their copies of a loaded state by then, so it is forgotten here.
        """
        if workers == 0 and self._state is not None:
            return self._state.to_dict()
        places = [Place(number, workers) for number in range(workers)] or [Place()]
        state = self._taken_up([Shard(self._rank(), place).stripe for place in places])
        self._saved = None
        return state.to_dict()

    def noted(self, begun: Mapping[str, Any], marks: Iterable[ShardMark]) -> dict[str, Any]:
        """Returns the state that ``begun`` has become when workers were where their marks tell."""
        state = ShardState.from_dict(begun)
        for mark in marks:
            state.note(mark)
        return state.to_dict()

    def _taken_up(self, team: Sequence[Stripe]) -> ShardState:
        """Returns where some workers of this rank go on."""
        state = self._saved or ShardState(int(self._epoch), self._order())
        return state.taken_up(team, quota=self._count)

    def _stripe(self) -> Stripe:
        return Shard(self._rank(), current_worker()).stripe

    def _order(self) -> dict[str, Any]:
        return {"shuffle": self._shuffle, "seed": self._seed if self._shuffle else 0, "buffer": self._buffer}

    def _run(self, state: ShardState, stripe: Stripe) -> Iterator[Any]:
        objects = self._listing()
        if state.shards not in {"", objects.digest}:
            raise ConfigurationError("the state was saved with other shards, or they have changed")
        state.shards = objects.digest
        quota = self._count if state.quota is None else state.quota
        while True:
            begun = state.shares[stripe]
            yield from self._turn(state, stripe, objects, quota)
            here = state.shares[stripe]
            if quota is None or here.taken >= quota:
                break
            if here == ShareProgress(begun.turn, begun.taken) and not (state.legs and here.turn == 0):
                raise ConfigurationError(_nothing_for(stripe, len(objects)))
            state.shares[stripe] = ShareProgress(here.turn + 1, here.taken)
        if here.taken == 0 and not state.legs:
            _log.warning(_nothing_for(stripe, len(objects)))

    def _turn(
        self, state: ShardState, stripe: Stripe, objects: ObjectTable, quota: int | None
    ) -> Iterator[Any]:
        """Yields what is left of all samples of this worker, or of the number that was asked for."""
        order = Permutation(len(objects), seed=self._seed, epoch=state.epoch) if self._shuffle else None
        pipeline = ShardPipeline(
            len(objects),
            lambda place: self._open(objects[place if order is None else order[place]]),
            ahead=self._ahead,
            tolerate=self._tolerate,
            tell=self._skip,
        )
        run = ShardRun(pipeline, stripe, state.legs, seed=self._seed, epoch=state.epoch, buffer=self._buffer)
        begun = state.shares[stripe]
        left = None if quota is None else max(0, quota - begun.taken)
        with closing(run.samples(begun)) as samples:
            for after, sample in islice(samples, left):
                made = transformed(self._transform, sample)
                state.shares[stripe] = after
                yield made

    def _open(self, item: S3BucketKeyData) -> OpenedShard:
        chosen = format_for_key(item.key) if self._format is None else self._format
        return chosen.open(ShardObject(self._client, item, self._reader_constructor, self._cache))

    def _tolerate(self, exc: Exception) -> bool:
        return self._skips and isinstance(exc, NotFoundError | ObjectChangedError | DamagedShardError)

    def _skip(self, exc: Exception) -> None:
        _log.warning("leaving out a shard, or the rest of it: %s", exc)
        self._tally.add("skipped")

    def _rank(self) -> Place:
        self._seen_rank = current_rank() or self._seen_rank
        return self._given_rank or self._seen_rank or Place()

    def __getstate__(self) -> dict[str, Any]:
        self._rank()
        return self.__dict__.copy()


def _nothing_for(stripe: Stripe, shards: int) -> str:
    return (
        f"there are no samples for worker {stripe.first} of {stripe.step} in all ranks: {shards} shards are "
        "too few"
    )


def _size(item: S3BucketKeyData) -> int:
    return 0 if item.object_info is None else item.object_info.size

"""A dataset that streams its samples in order and shares them out between ranks and workers."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from s3torch.core import S3Reader
from s3torch.core.errors import ConfigurationError
from s3torch.datasets._base import OBJECT_OPTIONS, InputT, ObjectDataset, ReadOptions, S3Dataset, SampleT
from s3torch.datasets._opening import identity
from s3torch.datasets.order._epoch import (
    ConsumedPrefix,
    EpochPosition,
    Permutation,
    Place,
    WorkerShard,
    current_rank,
    current_team,
    current_worker,
    given_place,
    pick,
)
from s3torch.datasets.order._state import Mark, ObjectState
from s3torch.datasets.sources._shared import shared_pages
from s3torch.datasets.sources._sources import PagedSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Unpack

    from s3torch.core import S3BucketKeyData, S3ClientConfig, S3ReaderConstructorProtocol
    from s3torch.datasets.order._state import ShardState
    from s3torch.datasets.sources._sources import ObjectSource

_REPEATED = "several workers without enable_sharding repeat every sample"


class StreamedDataset(S3Dataset[InputT, SampleT], IterableDataset[SampleT]):
    """Base of the datasets that ranks and workers share, and that resume; not for direct use."""

    def _prepare(self) -> None:
        super()._prepare()
        self._given_rank = given_place(self._settings.rank, self._settings.world_size)
        self._seen_rank = current_rank()
        # Shared memory, so that persistent workers see the epoch that is set in their parent.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._saved: EpochPosition | ShardState | None = None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration, also in workers that run already.

        A state that was loaded for another epoch is forgotten.
        """
        saved = self._saved
        if saved is not None:
            self._saved = replace(saved, finished=False) if saved.epoch == epoch else None
        self._epoch[0] = epoch

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Returns how far the iteration is that this process started last.

        In a worker, it is the state of this worker: torchdata's ``StatefulDataLoader`` asks each, and needs
        the same numbers of workers and ranks to resume. For other numbers, see ``ResumableLoader``.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on where a state was saved.

        That of shards, for other numbers of ranks or workers than there were, is that of ``merge_states``.
        One that was saved when the iteration had ended lets it go on with the next epoch, unless
        ``set_epoch`` says which one comes.

        Raises:
            ConfigurationError: It is no such state, or the dataset has another order.
        """
        self._saved = saved = self._loaded(state)
        self._epoch[0] = saved.epoch

    @abstractmethod
    def _loaded(self, state: Mapping[str, Any]) -> EpochPosition | ShardState: ...

    def _rank(self) -> Place:
        self._seen_rank = current_rank() or self._seen_rank
        return self._given_rank or self._seen_rank or Place()

    def __getstate__(self) -> dict[str, Any]:
        self._rank()
        return self.__dict__.copy()


class S3IterableDataset(ObjectDataset[SampleT], StreamedDataset[S3Reader, SampleT]):
    """The objects of a listing, one after the other; its type parameter is what the transform returns.

    Every epoch, that is every ``iter(dataset)``, lists anew and as far as it is read, unless it is shuffled,
    made even or of a manifest, see below. The workers of a rank share that listing, and under ``torchrun``
    all ranks of a node, unless the objects come from a callable of the user. While a transform runs, the
    downloads of the next objects are in flight; with the default transform they are not, because its readers
    are handed out unread.

    Without sharding every worker of every rank yields everything. With sharding, object ``i`` belongs
    to rank ``i % world_size`` and is there number ``j = i // world_size``, which goes to worker
    ``j % workers``; the order within a worker is that of the listing. Ranks may get numbers of samples
    that differ by one.

    Rank and world size are read from the default process group when the iteration starts. Spawned and
    forkserver workers have no group, so they take what the dataset saw last: when it was pickled,
    iterated or built in a process that had one. ``rank`` and ``world_size``, when given, come before
    all that.

    The dataset can be pickled, survives ``fork`` and may be iterated by several threads.

    Arguments that are not described here, also ``prefetch``, ``on_error``, ``hedge_after``, ``select``,
    ``cache_dir`` and ``cache_limit``, are those of ``S3MapDataset``, for each worker.

    Args:
        get_dataset_objects: Takes the client and returns the objects; called once for each epoch.
        enable_sharding: Shares the objects out between ranks and workers.
        rank: This rank, for jobs without a process group; needs ``enable_sharding`` and ``world_size``.
        world_size: The number of ranks.
        shuffle: Lists everything once, and yields it in an order that ``seed`` and ``set_epoch`` decide.
        seed: The same on all ranks.
        uneven: What becomes of a tail that cannot be shared out evenly, so that collectives do not hang:
            ``"pad"`` repeats samples, ``"drop"`` leaves some out, ``"keep"`` lets ranks differ by one. All
            but ``"keep"`` list everything once.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    _kind = "iterable"
    _options = OBJECT_OPTIONS | {"enable_sharding", "rank", "world_size", "shuffle", "seed", "uneven"}
    _saved: EpochPosition | None

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: ObjectSource,
        endpoint: str | None = None,
        transform: Callable[[S3Reader], SampleT] = identity,  # type: ignore[assignment]
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,  # noqa: FBT001, FBT002 - positional, as users know it
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Unpack[ReadOptions],
    ) -> None:
        super().__init__(
            region,
            get_dataset_objects,
            endpoint=endpoint,
            transform=transform,
            s3client_config=s3client_config,
            enable_sharding=enable_sharding,
            reader_constructor=reader_constructor,
            **options,
        )

    def _prepare(self) -> None:
        super()._prepare()
        if self._given_rank is not None and not self.enable_sharding:
            raise ConfigurationError("rank and world_size need enable_sharding=True")
        self._iterations = 0
        # The iteration that went on last, and how many objects it has taken.
        self._reached = (EpochPosition(), 0)

    @property
    def enable_sharding(self) -> bool:
        """Whether ranks and workers share the objects out."""
        return self._settings.enable_sharding

    def __iter__(self) -> Iterator[SampleT]:
        # Decided now, not at the first sample: a group may be gone by then.
        shard = self._shard(current_worker())
        saved, self._saved = self._saved, None
        begin = EpochPosition(int(self._epoch), shard=shard) if saved is None else saved.for_shard(shard)
        if saved is not None:
            self._epoch[0] = begin.epoch
        self._warn_of_copies()
        self._reached = (begin, begin.taken)
        self._iterations += 1
        return self._run(begin)

    def state_dict(self) -> dict[str, Any]:
        return ObjectState(self._order(), position=self._saved or self._now).to_dict()

    def _loaded(self, state: Mapping[str, Any]) -> EpochPosition:
        return ObjectState.from_dict(state, self._order()).resumed()

    def _warn_of_copies(self) -> None:
        worker = current_worker()
        if worker.size > 1 and worker.index == 0 and not self.enable_sharding:
            # In shared memory, so that it comes once.
            if not self._counter.total("repeated"):
                warnings.warn(f"{_REPEATED}; enable_sharding=True divides them between workers", stacklevel=3)
            self._counter.add("repeated")

    def begun(self, *, workers: int) -> dict[str, Any]:
        saved, self._saved = self._saved, None
        if workers == 0:
            saved = self._now
        position = (saved or EpochPosition(int(self._epoch))).for_all()
        self._epoch[0] = position.epoch
        state = ObjectState(self._order(), position=position)
        if self.needs_marks and (workers <= 1 or self.enable_sharding):
            places = [Place(number, workers) for number in range(workers)] or [Place()]
            state.counts = True
            state.shares = {self._shard(place).strided: 0 for place in places}
        return state.to_dict()

    @property
    def needs_marks(self) -> bool:
        # Objects may be left out.
        return self._settings.on_error == "skip"

    def mark(self) -> Mark[int]:
        begin, taken = self._reached
        return Mark(begin.shard.strided, taken)

    def marked(self, begun: Mapping[str, Any], marks: Iterable[Mark[int]]) -> dict[str, Any]:
        state = ObjectState.from_dict(begun)
        if not state.counts:
            raise ConfigurationError(_REPEATED)
        return state.noted(marks).to_dict()

    def counted(
        self, begun: Mapping[str, Any], *, workers: int, batch_size: int, batches: int
    ) -> dict[str, Any]:
        if workers > 1 and not self.enable_sharding:
            raise ConfigurationError(_REPEATED)
        begin = ObjectState.from_dict(begun, self._order()).resumed()
        ranks = self._rank().size if self.enable_sharding else 1
        consumed = begin.extended(ConsumedPrefix(ranks, workers, batch_size, batches))
        return ObjectState(self._order(), position=EpochPosition(begin.epoch, consumed)).to_dict()

    def _shard(self, worker: Place) -> WorkerShard:
        return WorkerShard(self._rank(), worker) if self.enable_sharding else WorkerShard()

    @property
    def _now(self) -> EpochPosition:
        begin, taken = self._reached
        return replace(begin, taken=taken)

    def _order(self) -> dict[str, Any]:
        settings = self._settings
        order = {"shuffle": settings.shuffle, "seed": settings.seed if settings.shuffle else 0}
        return order | self.listing_identity()

    def _run(self, begin: EpochPosition) -> Iterator[SampleT]:
        taken = 0
        with closing(self._opener().ahead(self._chosen(begin))) as readers:
            for taken, sample in self._samples(readers):
                self._reached = (begin, begin.taken + taken)
                yield sample
        # A worker does not know whether others have ended.
        if get_worker_info() is None:
            self._reached = (replace(begin, finished=True), begin.taken + taken)

    def _chosen(self, begin: EpochPosition) -> Iterator[S3BucketKeyData]:
        settings = self._settings
        if not settings.shuffle and settings.uneven == "keep" and not self._has_manifest:
            return pick(self._listed_anew(), begin.positions())
        objects = self._listing()
        positions = begin.within(len(objects), uneven=settings.uneven)
        if not settings.shuffle:
            return map(objects.__getitem__, positions)
        order = Permutation(len(objects), seed=settings.seed, epoch=begin.epoch)
        return (objects[order[position]] for position in positions)

    def _listed_anew(self) -> Iterable[S3BucketKeyData]:
        """Lists for this epoch, together with the other workers and the other ranks of this node."""
        source = self._get_dataset_objects
        is_alone = current_worker().size == 1 and not self._folder.spans_ranks
        if is_alone or not isinstance(source, PagedSource):
            return self._selected(source(self._client))
        # The same in all workers of an epoch, and another in the next one, also where workers stay.
        epoch = f"{current_team()}-{self._iterations}"
        return self._selected(shared_pages(self._folder, epoch, source, self._client))

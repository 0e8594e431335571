"""A dataset that streams its samples in order and shares them out between ranks and workers."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset

from s3torch.core.errors import ConfigurationError
from s3torch.datasets._dataset import S3Dataset, log_objects, log_prefix
from s3torch.datasets._settings import Settings
from s3torch.datasets.ordering import Course, Leg, Permutation, Uneven, check_uneven, pick
from s3torch.datasets.placement import current_rank, current_team, current_worker, given_place
from s3torch.datasets.progress import (
    CourseMark,
    course_from_state,
    course_to_state,
    resume,
    with_shares,
    without_share,
)
from s3torch.datasets.sharding import Place, Shard
from s3torch.datasets.shared_pages import shared_pages
from s3torch.datasets.sources import ObjectsSource, PagedSource, PrefixSource
from s3torch.datasets.transforms import identity

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Self, Unpack

    from s3torch.core import S3BucketKeyData, S3ClientConfig, S3Reader, S3ReaderConstructorProtocol
    from s3torch.datasets._settings import IterableOptions, ReadOptions
    from s3torch.datasets.sources import ObjectSource

__all__ = ["S3IterableDataset"]


class S3IterableDataset(S3Dataset, IterableDataset[Any]):
    """The objects of a listing, one after the other.

    Every epoch, that is every ``iter(dataset)``, lists anew and as far as it is read, unless it is shuffled,
    made even or of a manifest, see below. The workers of a rank share that listing, and under ``torchrun``
    all ranks of a node, unless the objects come from a callable of the user. While a transform runs, the
    downloads of the next objects are under way; with the default transform they are not, because its readers
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

    Args:
        region: The region; ``None`` takes it from the usual AWS places.
        get_dataset_objects: Takes the client and returns the objects; called once for each epoch.
        endpoint: The URL of a store other than AWS.
        transform: Makes a sample of an unread reader; the default returns the reader itself.
        s3client_config: The settings of the client.
        enable_sharding: Shares the objects out between ranks and workers.
        reader_constructor: How objects are read; the default is sequential.
        rank: This rank, for jobs without a process group; needs ``enable_sharding`` and ``world_size``.
        world_size: The number of ranks.
        shuffle: Lists everything once, and yields it in an order that ``seed`` and ``set_epoch`` decide.
        seed: The same on all ranks.
        uneven: What becomes of a tail that the ranks cannot share evenly, so that collectives do not hang:
            ``"pad"`` repeats samples, ``"drop"`` leaves some out, ``"keep"`` lets ranks differ by one. All
            but ``"keep"`` list everything once.
        options: ``prefetch`` is how many objects are fetched ahead in each worker, of each at most the first
            part until its turn comes; 0 fetches one after the other, ``None`` takes as many as fit in a share
            of the memory, at most 128. ``on_error="skip"`` leaves missing and changed objects out, with a
            warning in the log and a count in ``skipped``. ``hedge_after`` sends a second request for a small
            object whose answer is late, by seconds or by a quantile of the last answers, as in ``"p95"``; the
            first answer wins, and ``hedged`` counts. ``select``, a ``Selection``, leaves out objects.
            ``cache_dir`` keeps what was read in a folder on a local disk, of at most ``cache_limit`` bytes,
            so that the second epoch reads from there.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    _kind = "iterable"

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: ObjectSource,
        endpoint: str | None = None,
        transform: Callable[[S3Reader], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,  # noqa: FBT001, FBT002 - positional, as users know it
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        uneven: Uneven = "keep",
        **options: Unpack[ReadOptions],
    ) -> None:
        settings = Settings.of(
            type(self),
            endpoint=endpoint,
            transform=transform,
            s3client_config=s3client_config,
            reader_constructor=reader_constructor,
            **options,
        )
        super().__init__(region, get_dataset_objects, settings)
        self._enable_sharding = enable_sharding
        self._given_rank = given_place(rank, world_size)
        if self._given_rank is not None and not enable_sharding:
            raise ConfigurationError("rank and world_size need enable_sharding=True")
        self._seen_rank = current_rank()
        self._shuffle = shuffle
        self._seed = seed
        self._uneven = check_uneven(uneven)
        # Shared memory, so that persistent workers see the epoch that is set in their parent.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._iterations = 0
        self._saved: Course | None = None
        # The iteration that went on last, and how many objects it has taken.
        self._reached = (Course(), 0)

    @classmethod
    def from_prefix(
        cls,
        s3_uri: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        region: str | None = None,
        endpoint: str | None = None,
        transform: Callable[[S3Reader], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Unpack[IterableOptions],
    ) -> Self:
        """Makes a dataset of all objects whose key begins with the key of the URI, in listing order.

        The arguments are those of the class.

        Raises:
            ConfigurationError: The URI or another argument is wrong.
        """
        log_prefix(cls, s3_uri)
        return cls(
            region,
            PrefixSource.from_uri(s3_uri),
            endpoint=endpoint,
            transform=transform,
            s3client_config=s3client_config,
            enable_sharding=enable_sharding,
            reader_constructor=reader_constructor,
            **options,
        )

    @classmethod
    def from_objects(
        cls,
        object_uris: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        region: str | None = None,
        endpoint: str | None = None,
        transform: Callable[[S3Reader], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Unpack[IterableOptions],
    ) -> Self:
        """Makes a dataset of one URI or of several in their order; an iterator is gone through once, now.

        The arguments are those of the class.

        Raises:
            ConfigurationError: A URI or another argument is wrong.
        """
        log_objects(cls)
        return cls(
            region,
            ObjectsSource.from_uris(object_uris),
            endpoint=endpoint,
            transform=transform,
            s3client_config=s3client_config,
            enable_sharding=enable_sharding,
            reader_constructor=reader_constructor,
            **options,
        )

    @property
    def enable_sharding(self) -> bool:
        """Tells whether ranks and workers share the objects out."""
        return self._enable_sharding

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration, also in workers that run already.

        A state that was loaded for another epoch is forgotten.
        """
        if self._saved is not None and self._saved.epoch != epoch:
            self._saved = None
        self._epoch[0] = epoch

    def __iter__(self) -> Iterator[Any]:
        # Decided now, not at the first sample: a group may be gone by then.
        shard = self._shard(current_worker())
        saved, self._saved = self._saved, None
        course = Course(int(self._epoch), shard=shard) if saved is None else resume(saved, shard)
        self._reached = (course, course.taken)
        self._iterations += 1
        return self._run(course)

    def state_dict(self) -> dict[str, Any]:
        """Tells how far the iteration is that this process started last.

        In a worker, it is the state of this worker: torchdata's ``StatefulDataLoader`` asks each, and needs
        the same number of workers and ranks to resume. For another number, see ``ResumableLoader``.
        """
        saved = self._saved
        return course_to_state(self._now if saved is None else saved, self._order())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on where a state was saved.

        Raises:
            ConfigurationError: It is no such state, or the dataset has another order.
        """
        self._saved = course_from_state(state, self._order())
        self._epoch[0] = self._saved.epoch

    def begun(self, *, workers: int) -> dict[str, Any]:
        """Returns the state that a loader's iteration starts from, which has just been started.

        Workers have their copies of a loaded state by then, so it is forgotten here.
        """
        saved, self._saved = self._saved, None
        if workers == 0:
            saved = self._now
        if saved is None:
            saved = Course(int(self._epoch))
        state = course_to_state(without_share(saved), self._order())
        if not self.may_skip or (workers > 1 and not self._enable_sharding):
            return state
        places = [Place(number, workers) for number in range(workers)] or [Place()]
        return with_shares(state, (CourseMark(self._shard(place).stripe, 0) for place in places))

    @property
    def may_skip(self) -> bool:
        """Tells whether objects may be left out, so that batches do not tell how many were taken."""
        return self._settings.on_error == "skip"

    def mark(self) -> CourseMark:
        """Tells in a worker how far the iteration is that was started last."""
        course, taken = self._reached
        return CourseMark(course.shard.stripe, taken)

    def noted(self, begun: Mapping[str, Any], marks: Iterable[CourseMark]) -> dict[str, Any]:
        """Returns the state that ``begun`` has become when workers were where their marks tell.

        Raises:
            ConfigurationError: Workers do not share the samples out, so that there is no such state.
        """
        if "shares" not in begun:
            raise ConfigurationError("several workers without enable_sharding repeat every sample")
        return with_shares(begun, marks)

    def state_after(
        self, begun: Mapping[str, Any], workers: int, batch_size: int, batches: int
    ) -> dict[str, Any]:
        """Returns the state of all ranks after each took so many batches, in turn from its workers."""
        course = course_from_state(begun, self._order())
        ranks = self._rank().size if self._enable_sharding else 1
        leg = Leg(ranks, workers, batch_size, batches)
        return course_to_state(Course(course.epoch, course.extended(leg)), self._order())

    def _shard(self, worker: Place) -> Shard:
        return Shard(self._rank(), worker) if self._enable_sharding else Shard()

    @property
    def _now(self) -> Course:
        course, taken = self._reached
        return replace(course, taken=taken)

    def _order(self) -> dict[str, Any]:
        order = {"shuffle": self._shuffle, "seed": self._seed if self._shuffle else 0}
        return order | self.listing_identity()

    def _run(self, course: Course) -> Iterator[Any]:
        with closing(self._opener().ahead(self._chosen(course))) as readers:
            for taken, sample in self._samples(readers):
                self._reached = (course, course.taken + taken)
                yield sample

    def _chosen(self, course: Course) -> Iterator[S3BucketKeyData]:
        if not self._shuffle and self._uneven == "keep" and not self._has_manifest:
            return pick(self._listed_anew(), course.positions())
        objects = self._listing()
        places = course.within(len(objects), uneven=self._uneven)
        if not self._shuffle:
            return map(objects.__getitem__, places)
        order = Permutation(len(objects), seed=self._seed, epoch=course.epoch)
        return (objects[order[place]] for place in places)

    def _listed_anew(self) -> Iterable[S3BucketKeyData]:
        """Lists for this epoch, together with the other workers and the other ranks of this node."""
        source = self._get_dataset_objects
        is_alone = current_worker().size == 1 and not self._folder.spans_ranks
        if is_alone or not isinstance(source, PagedSource):
            return self._list()
        # The same in all workers of an epoch, and another in the next one, also where workers stay.
        epoch = f"{current_team()}-{self._iterations}"
        return self._selected(shared_pages(self._folder, epoch, source, self._client))

    def __getstate__(self) -> dict[str, Any]:
        self._rank()
        return self.__dict__.copy()

    def _rank(self) -> Place:
        self._seen_rank = current_rank() or self._seen_rank
        return self._given_rank or self._seen_rank or Place()

"""A sampler, and a ``DataLoader`` that can be interrupted and goes on where it was.

Workers are ahead of the batches that were used. Where the order is a function of numbers alone, counting
batches says which samples they had: ``_Counted``. Where it is not, each batch brings along how far its worker
was: ``_Marked``.
"""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from torch.utils.data import Sampler, get_worker_info

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.order._epoch import (
    Permutation,
    Place,
    Uneven,
    check_count,
    check_uneven,
    current_rank,
    even_length,
    given_place,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sized

    from torch.utils.data import DataLoader

    from s3torch.datasets.order._epoch import StridedShard
    from s3torch.datasets.order._state import Mark

# How many batches may be fetched and not used yet.
_RECENT = 8


@runtime_checkable
class _Listed(Protocol):
    """A dataset that knows what else decides which samples there are."""

    def listing_identity(self) -> dict[str, str]: ...


class S3Sampler(Sampler[int]):
    """Indices of a dataset in an order that only seed, epoch and length decide.

    Rank ``r`` of ``W`` takes every ``W``-th index of that order, from the ``r``-th on. As all ranks go
    forward alike, what they took together is the beginning of the order, so a state that one of them saved
    is good for any other number of ranks, workers and batch sizes.

    It works with ``DataLoader`` in a ``ResumableLoader``, and with torchdata's ``StatefulDataLoader``.

    Args:
        data_source: The dataset.
        shuffle: False keeps the order of the dataset.
        seed: The same on all ranks.
        uneven: What becomes of a tail that cannot be shared out evenly: ``"pad"`` gives some ranks a sample
            of the rest again, ``"drop"`` leaves it out, ``"keep"`` lets ranks differ by one sample.
        rank: This rank; ``None`` asks the process group when the iteration starts.
        world_size: The number of ranks; given together with ``rank``.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    def __init__(
        self,
        data_source: Sized,
        *,
        shuffle: bool = True,
        seed: int = 0,
        uneven: Uneven = "pad",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self._source = data_source
        self._shuffle = shuffle
        self._seed = seed
        self._uneven = check_uneven(uneven)
        self._given = given_place(rank, world_size)
        self._epoch = 0
        self._start = 0
        self._resumed = False
        self._finished = False
        self._ranks = 1
        self._taken = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration; a state that was loaded for another epoch is forgotten."""
        if epoch != self._epoch:
            self._start, self._resumed = 0, False
        self._epoch, self._finished = epoch, False

    def __len__(self) -> int:
        place = self._place()
        return len(range(place.index, self._length(place, self._begin()[1]), place.size))

    def __iter__(self) -> Iterator[int]:
        # A state counts for one iteration; the next one has the whole order.
        self._epoch, self._start = self._begin()
        self._resumed = self._finished = False
        place = self._place()
        self._ranks, self._taken = place.size, 0
        return self._indices(place, self._start)

    def _begin(self) -> tuple[int, int]:
        """Returns the epoch of the next iteration, and where in it that begins."""
        if self._finished:
            return self._epoch + 1, 0
        return self._epoch, self._start if self._resumed else 0

    def _length(self, place: Place, start: int) -> int:
        """Returns how many indices all ranks take together from ``start`` on."""
        return even_length(max(0, len(self._source) - start), place.size, self._uneven)

    def state_dict(self) -> dict[str, Any]:
        """Returns how far the last iteration is; the size does not depend on the number of samples."""
        return self.state_after(self._taken)

    def begun(self, **_: int) -> dict[str, Any]:
        return self.state_after(0)

    def counted(self, _: Mapping[str, Any], *, batch_size: int, batches: int, **__: int) -> dict[str, Any]:
        return self.state_after(batches * batch_size)

    def state_after(self, samples: int) -> dict[str, Any]:
        """Returns where to go on when each rank has used this many samples of its iteration.

        Workers of a loader ask for indices long before their batches are used, so the loader's user
        counts, not the sampler.
        """
        start = self._start + samples * self._ranks
        state = {"order": self._order(), "epoch": self._epoch, "start": start}
        return state | ({"finished": True} if self._finished else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on where a state was saved.

        Raises:
            ConfigurationError: It is no such state, or one of another seed, order or length.
        """
        try:
            order = dict(state["order"])
            epoch, start = check_count("epoch", state["epoch"]), check_count("start", state["start"])
        except (KeyError, TypeError, ValueError) as exc:
            raise ConfigurationError(f"this is not a state of an S3Sampler: {exc!r}") from exc
        if order != self._order():
            why = f"the state was saved with {order!r:.400} and the sampler has {self._order()}"
            raise ConfigurationError(why)
        self._epoch, self._start, self._resumed = epoch, start, True
        self._finished, self._taken = state.get("finished") is True, 0

    def _order(self) -> dict[str, Any]:
        order = {"shuffle": self._shuffle, "seed": self._seed, "count": len(self._source)}
        source = self._source
        return order | source.listing_identity() if isinstance(source, _Listed) else order

    def _place(self) -> Place:
        return self._given or current_rank() or Place()

    def _indices(self, place: Place, start: int) -> Iterator[int]:
        count = len(self._source)
        order = Permutation(count, seed=self._seed, epoch=self._epoch) if self._shuffle else range(count)
        left, length = max(0, count - start), self._length(place, start)
        for taken, number in enumerate(range(place.index, length, place.size), 1):
            self._taken = taken
            yield order[start + number % left]


class _Resumable(Protocol):
    """A dataset or a sampler that a loader's iteration starts from."""

    def set_epoch(self, epoch: int) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def begun(self, *, workers: int) -> dict[str, Any]:
        """Returns the state that a loader's iteration starts from, which has just been started.

        Workers have their copies of a loaded state by then, so it is forgotten here.
        """
        ...


@runtime_checkable
class _Counted(_Resumable, Protocol):
    """One whose order is a function of numbers."""

    def counted(
        self, begun: Mapping[str, Any], *, workers: int, batch_size: int, batches: int
    ) -> dict[str, Any]:
        """Returns the state of all ranks after each took so many batches, in turn from its workers.

        Raises:
            ConfigurationError: Workers do not share the samples out, so that there is no such state.
        """
        ...


@runtime_checkable
class _Marked(_Resumable, Protocol):
    """A dataset of which only its workers may know how far they are."""

    @property
    def needs_marks(self) -> bool:
        """Whether batches do not say how many samples were taken."""
        ...

    def mark(self) -> Mark[Any]:
        """Returns in a worker how far the iteration is that was started last."""
        ...

    def marked(self, begun: Mapping[str, Any], marks: Iterable[Mark[Any]]) -> dict[str, Any]:
        """Returns the state that ``begun`` has become when workers were where their marks say.

        Raises:
            ConfigurationError: Workers do not share the samples out, so that there is no such state.
        """
        ...


class ResumableLoader:
    """Follows the batches of a plain ``DataLoader``, so that its state can be saved in mid-epoch.

    The loader has an ``S3IterableDataset``, an ``S3ShardDataset``, or any map dataset with an ``S3Sampler``.
    A state has a few numbers, however many samples there are. It may be loaded with another number of ranks,
    workers, or another batch size: every sample comes once an epoch, and in the same global order.

    Of an ``S3IterableDataset`` and an ``S3Sampler`` the state of one rank is that of all, provided that they
    take the same number of batches, as training in step does, and have the same number of workers. Batches
    have to come in order (``in_order=True``, torch's default).

    Of an ``S3ShardDataset`` the state is that of this rank, and the ranks may have taken different numbers
    of batches; for another number of ranks, ``merge_states`` puts those of all ranks together. With other
    numbers of ranks or workers what is left comes in another order than it would have come.

    Of an ``S3IterableDataset`` that leaves objects out (``on_error="skip"``) the state is also that of this
    rank, and to resume several ranks always takes the merged state of all.

    Args:
        loader: The loader, which nobody else iterates; load a state before its first iteration if its
            workers are persistent.

    Raises:
        ConfigurationError: The loader has neither such a dataset nor such a sampler.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        dataset = loader.dataset
        self._is_marked = isinstance(dataset, _Marked) and dataset.needs_marks
        counted = [part for part in (dataset, loader.sampler) if isinstance(part, _Counted)]
        self._part: Any = dataset if self._is_marked else next(iter(counted), None)
        if self._part is None:
            raise ConfigurationError(
                "expected a loader of an S3IterableDataset or an S3ShardDataset, or one with an S3Sampler; "
                f"got {loader.sampler!r}"
            )
        self._is_sampled = self._part is not dataset
        self._begun: dict[str, Any] | None = None
        self._finished = False
        # Batches in the iteration, in its epoch before it, and in that epoch; the latter two of a sampler.
        self._count = self._before = self._length = 0
        self._marks: dict[StridedShard, Mark[Any]] = {}
        # Those of the last batches, which may not have been used yet.
        self._recent: deque[Mark[Any]] = deque()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration, also of persistent workers."""
        known = self._begun
        if known is None and self._before:
            known = self._part.state_dict()
        if known is not None and known["epoch"] != epoch:
            self._begun, self._before = None, 0
        self._part.set_epoch(epoch)

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where a Lightning trainer looks for a ``sampler`` with ``set_epoch``."""
        return SimpleNamespace(sampler=self)

    @property
    def has_begun(self) -> bool:
        """Whether there was an iteration since a state was loaded or another epoch was chosen."""
        return self._begun is not None

    def __len__(self) -> int:
        if self._is_sampled and self._begun is not None:
            return self._length
        return self._before + len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        if self._begun is not None:
            self._before = 0
        if self._is_sampled:
            self._length = self._before + len(self.loader)
        collate = self.loader.collate_fn
        if self._is_marked:
            self.loader.collate_fn = _MarkingCollate(collate, self._part)
        try:
            batches = iter(self.loader)
        finally:
            self.loader.collate_fn = collate
        # The workers have their copies by now; a later iteration has the whole epoch.
        self._begun = self._part.begun(workers=self.loader.num_workers)
        self._count, self._marks, self._finished = 0, {}, False
        self._recent.clear()
        for batch in batches:
            self._count += 1
            if not self._is_marked:
                yield batch
            elif isinstance(batch, _MarkedBatch):
                self._recent.append(batch.mark)
                if len(self._recent) > _RECENT:
                    oldest = self._recent.popleft()
                    self._marks[oldest.share] = oldest
                yield batch.data
            else:
                raise ConfigurationError("the loader was iterated before without its ResumableLoader")
        self._finished = True

    def state_dict(self, *, ahead: int = 0, finished: bool = False) -> dict[str, Any]:
        """Returns how far the iteration is that was started last.

        Args:
            ahead: How many of its batches were fetched, but not used yet; 8 at most.
            finished: Whether this is the end of the epoch, although there may be more batches.

        Raises:
            ConfigurationError: So many batches were not fetched.
        """
        if self._begun is None:
            state = dict(self._part.state_dict())
            return state | {"batches": self._before} if self._before else state
        if not 0 <= ahead <= min(self._count, _RECENT):
            raise ConfigurationError(f"ahead must be from 0 to {min(self._count, _RECENT)}, got {ahead!r}")
        used = self._count - ahead
        if self._is_marked:
            recent = list(self._recent)[: len(self._recent) - ahead]
            marks = self._marks | {mark.share: mark for mark in recent}
            state = dict(self._part.marked(self._begun, marks.values()))
        else:
            workers, size = max(1, self.loader.num_workers), self.loader.batch_size or 1
            state = dict(self._part.counted(self._begun, workers=workers, batch_size=size, batches=used))
        if finished or (self._finished and not ahead):
            return state | {"finished": True}
        # Loaders without a length need not know.
        return state | {"batches": self._before + used} if self._is_sampled else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on where a state was saved.

        A state that was saved after the last batch, when the loop over the loader had ended, lets it go on
        with the next epoch, unless ``set_epoch`` says which one comes.

        Raises:
            ConfigurationError: The state does not fit, or persistent workers are already running.
        """
        if self.loader.persistent_workers and getattr(self.loader, "_iterator", None) is not None:
            raise ConfigurationError(
                "persistent workers are already running: load the state into a new loader"
            )
        self._part.load_state_dict(state)
        self._begun = None
        self._before = 0 if state.get("finished") else check_count("batches", state.get("batches", 0))


class _MarkedBatch(NamedTuple):
    # A named tuple, because torch pins the memory of what is in one.
    data: Any
    mark: Mark[Any]


class _MarkingCollate:
    """Collates in a worker, and adds how far its dataset is."""

    def __init__(self, collate: Callable[[Any], Any], dataset: _Marked) -> None:
        self._collate = collate
        self._dataset = dataset

    def __call__(self, samples: Any) -> _MarkedBatch:
        worker = get_worker_info()
        dataset: Any = self._dataset if worker is None else worker.dataset
        return _MarkedBatch(self._collate(samples), dataset.mark())

"""A sampler, and a ``DataLoader`` that can be interrupted and goes on where it was.

Workers are ahead of the batches that were used. Where the order is a function of numbers alone, counting
batches says which samples they had: ``_Counted``. Where it is not, each batch brings along how far its worker
was: ``_Marked``.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    from collections.abc import Callable, Iterable, Iterator, Sequence, Sized

    from torch.utils.data import DataLoader

    from s3torch.datasets.order._epoch import StridedShard
    from s3torch.datasets.order._state import Mark


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
            raise ConfigurationError(f"this is no state of an S3Sampler: {exc!r}") from exc
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
        self._begun: dict[str, Any] | None = None
        self._finished = False
        self._count = 0
        self._marks: dict[StridedShard, Mark[Any]] = {}

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration, also of persistent workers."""
        if self._begun is not None and self._begun["epoch"] != epoch:
            self._begun = None
        self._part.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
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
        for batch in batches:
            self._count += 1
            if not self._is_marked:
                yield batch
            elif isinstance(batch, _MarkedBatch):
                self._marks[batch.mark.share] = batch.mark
                yield batch.data
            else:
                raise ConfigurationError("the loader was iterated before without its ResumableLoader")
        self._finished = True

    def state_dict(self) -> dict[str, Any]:
        """Returns how far the iteration is that was started last."""
        if self._begun is None:
            return dict(self._part.state_dict())
        if self._is_marked:
            state = self._part.marked(self._begun, self._marks.values())
        else:
            workers, size = max(1, self.loader.num_workers), self.loader.batch_size or 1
            state = self._part.counted(self._begun, workers=workers, batch_size=size, batches=self._count)
        return {**state, "finished": True} if self._finished else dict(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on where a state was saved.

        A state that was saved after the last batch, when the loop over the loader had ended, lets it go on
        with the next epoch, unless ``set_epoch`` says which one comes.

        Raises:
            ConfigurationError: The state does not fit, or persistent workers run already.
        """
        if self.loader.persistent_workers and getattr(self.loader, "_iterator", None) is not None:
            raise ConfigurationError("persistent workers run already: load the state into a new loader")
        self._part.load_state_dict(state)
        self._begun = None


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Makes one state of those of all ranks, with which any number of ranks can go on.

    Each rank saves the state of its ``ResumableLoader`` with the checkpoint, or all exchange them
    (``torch.distributed.all_gather_object``). Of an ``S3ShardDataset``, the states may also be those of
    torchdata's ``StatefulDataLoader``; what is merged is then loaded into the dataset.

    Args:
        states: One of each rank, saved at the same point.

    Raises:
        ConfigurationError: They do not belong together.
    """
    found = list(states)
    if not found or not all(isinstance(state, Mapping) for state in found):
        raise ConfigurationError(f"expected the state of each rank, got {found or 'none'!r:.80}")
    try:
        return _merged([part for state in found for part in _shard_states(state)] or found)
    except (AttributeError, KeyError, TypeError, RecursionError) as exc:
        raise ConfigurationError(f"these are no states of a dataset: {exc!r}") from exc


def _merged(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, shares = dict(states[0]), dict[tuple[int, ...], Any]()
    if "shards" in first:
        first["shards"] = next((state["shards"] for state in states if state.get("shards")), "")
    if first.get("finished") and not all(state.get("finished") for state in states):
        del first["finished"]
    for state in states:
        same = {"shards": first["shards"]} if state.get("shards") == "" else {}
        same |= {"shares": (), "finished": False}
        if {**state, **same} != {**first, **same}:
            raise ConfigurationError(
                "the states differ: they were not saved at the same point of the same epoch"
            )
        for share in state.get("shares", ()):
            owner = tuple(share["stripe"] if "shards" in first else share[:2])
            if shares.setdefault(owner, share) != share:
                raise ConfigurationError(f"two states are those of the same worker, {owner}")
    return {**first, "shares": list(shares.values())} if "shares" in first else first


def _shard_states(state: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the states of shard datasets within a state, whatever torchdata has put around them."""
    if "quota" in state:
        yield state
        return
    if state.get("_steps_since_snapshot"):
        raise ConfigurationError("the state needs snapshot_every_n_steps=1 of the StatefulDataLoader")
    for part in state.values():
        if isinstance(part, Mapping):
            yield from _shard_states(part)


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

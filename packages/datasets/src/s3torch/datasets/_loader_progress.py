"""How far a ``DataLoader`` is, seen from where its batches are used.

Workers are ahead of what was used. Where the order is a function of numbers alone, counting batches tells
which samples they had; where it is not, each batch brings along how far its worker was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch.utils.data import get_worker_info

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.sampler import S3Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch.utils.data import DataLoader

    from s3torch.datasets.iterable import S3IterableDataset
    from s3torch.datasets.sharding import Stripe


class Resumable(Protocol):
    """What can go on where it was."""

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tells how far the iteration is that was started last."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on where a state was saved."""
        ...


class LoaderProgress(Resumable, Protocol):
    """What a ``ResumableLoader`` needs of a kind of dataset."""

    def begin(self) -> Iterator[Any]:
        """Starts an iteration of the loader."""
        ...

    def take(self, batch: Any) -> Any:
        """Counts what an iteration yielded and returns the batch."""
        ...


class CountedBatches:
    """For an ``S3Sampler`` or an ``S3IterableDataset``: the number of batches tells everything."""

    def __init__(self, loader: DataLoader[Any], part: S3Sampler | S3IterableDataset) -> None:
        self._loader = loader
        self._part = part
        self._batches = 0
        self._state: dict[str, Any] | None = None

    def begin(self) -> Iterator[Any]:
        batches = iter(self._loader)
        if isinstance(self._part, S3Sampler):
            self._state = self._part.state_after(0)
        else:
            # The workers have their copies by now; a later iteration has the whole epoch.
            self._state = self._part.begun(workers=self._loader.num_workers)
        self._batches = 0
        return batches

    def take(self, batch: Any) -> Any:
        self._batches += 1
        return batch

    def set_epoch(self, epoch: int) -> None:
        self._state = None if self._state is None or self._state["epoch"] != epoch else self._state
        self._part.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        if self._state is None:
            return self._part.state_dict()
        size = self._loader.batch_size or 1
        if isinstance(self._part, S3Sampler):
            return self._part.state_after(self._batches * size)
        workers = max(1, self._loader.num_workers)
        if workers > 1 and not self._part.enable_sharding:
            raise ConfigurationError("several workers without enable_sharding repeat every sample")
        return self._part.state_after(self._state, workers, size, self._batches)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._part.load_state_dict(state)
        self._state, self._batches = None, 0


class MarkedDataset(Resumable, Protocol):
    """A dataset of which nobody but its workers knows how far they are."""

    def begun(self, *, workers: int) -> dict[str, Any]:
        """Returns the state that a loader's iteration starts from, which has just been started."""
        ...

    def mark(self) -> Any:
        """Tells in a worker how far the iteration is; the mark has a ``stripe``, the worker's share."""
        ...

    def noted(self, begun: Mapping[str, Any], marks: Iterable[Any]) -> dict[str, Any]:
        """Returns the state that ``begun`` has become when workers were where their marks tell."""
        ...


class MarkedBatches:
    """For an ``S3ShardDataset``, and an ``S3IterableDataset`` that leaves objects out."""

    def __init__(self, loader: DataLoader[Any], dataset: MarkedDataset) -> None:
        self._loader = loader
        self._dataset = dataset
        self._begun: dict[str, Any] | None = None
        self._marks: dict[Stripe, Any] = {}

    def begin(self) -> Iterator[Any]:
        collate = self._loader.collate_fn
        self._loader.collate_fn = _Marking(collate, self._dataset)
        try:
            batches = iter(self._loader)
        finally:
            self._loader.collate_fn = collate
        self._begun, self._marks = self._dataset.begun(workers=self._loader.num_workers), {}
        return batches

    def take(self, batch: Any) -> Any:
        if not isinstance(batch, _MarkedBatch):
            raise ConfigurationError("the loader was iterated before without its ResumableLoader")
        self._marks[batch.mark.stripe] = batch.mark
        return batch.data

    def set_epoch(self, epoch: int) -> None:
        self._begun = None if self._begun is None or self._begun["epoch"] != epoch else self._begun
        self._dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        if self._begun is None:
            return self._dataset.state_dict()
        return self._dataset.noted(self._begun, self._marks.values())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._dataset.load_state_dict(state)
        self._begun = None


class _MarkedBatch(NamedTuple):
    # A named tuple, because torch pins the memory of what is in one.
    data: Any
    mark: Any


class _Marking:
    """Collates in a worker, and adds how far its dataset is."""

    def __init__(self, collate: Callable[[Any], Any], dataset: MarkedDataset) -> None:
        self._collate = collate
        self._dataset = dataset

    def __call__(self, samples: Any) -> _MarkedBatch:
        worker = get_worker_info()
        dataset: Any = self._dataset if worker is None else worker.dataset
        return _MarkedBatch(self._collate(samples), dataset.mark())

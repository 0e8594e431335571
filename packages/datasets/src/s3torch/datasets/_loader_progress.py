"""How far a ``DataLoader`` is, seen from where its batches are used.

Workers are ahead of what was used. Where the order is a function of numbers alone, counting batches tells
which samples they had; where it is not, each batch brings along how far its worker was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch.utils.data import get_worker_info

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.sampler import S3Sampler
from s3torch.datasets.shard_state import ShardMark, ShardState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch.utils.data import DataLoader

    from s3torch.datasets.iterable import S3IterableDataset
    from s3torch.datasets.shards import S3ShardDataset


class LoaderProgress(Protocol):
    """What a ``ResumableLoader`` needs of a kind of dataset."""

    def begin(self) -> Iterator[Any]:
        """Starts an iteration of the loader."""
        ...

    def take(self, batch: Any) -> Any:
        """Counts what an iteration yielded and returns the batch."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tells how far the iteration is that was started last."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on where a state was saved."""
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


class MarkedBatches:
    """For an ``S3ShardDataset``: nobody but its workers knows how many samples a shard has."""

    def __init__(self, loader: DataLoader[Any], dataset: S3ShardDataset) -> None:
        self._loader = loader
        self._dataset = dataset
        self._state: ShardState | None = None

    def begin(self) -> Iterator[Any]:
        collate = self._loader.collate_fn
        self._loader.collate_fn = _Marking(collate, self._dataset)
        try:
            batches = iter(self._loader)
        finally:
            self._loader.collate_fn = collate
        self._state = ShardState.from_dict(self._dataset.begun(workers=self._loader.num_workers))
        return batches

    def take(self, batch: Any) -> Any:
        if not isinstance(batch, _MarkedBatch) or self._state is None:
            raise ConfigurationError("the loader was iterated before without its ResumableLoader")
        self._state.note(batch.mark)
        return batch.data

    def set_epoch(self, epoch: int) -> None:
        self._state = None if self._state is None or self._state.epoch != epoch else self._state
        self._dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return self._dataset.state_dict() if self._state is None else self._state.to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._dataset.load_state_dict(state)
        self._state = None


class _MarkedBatch(NamedTuple):
    # A named tuple, because torch pins the memory of what is in one.
    data: Any
    mark: ShardMark


class _Marking:
    """Collates in a worker, and adds how far its dataset is."""

    def __init__(self, collate: Callable[[Any], Any], dataset: S3ShardDataset) -> None:
        self._collate = collate
        self._dataset = dataset

    def __call__(self, samples: Any) -> _MarkedBatch:
        worker = get_worker_info()
        dataset: Any = self._dataset if worker is None else worker.dataset
        return _MarkedBatch(self._collate(samples), dataset.mark())

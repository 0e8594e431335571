"""A ``DataLoader`` that can be interrupted and goes on where it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.iterable import S3IterableDataset
from s3torch.datasets.sampler import S3Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.utils.data import DataLoader

__all__ = ["ResumableLoader"]


class ResumableLoader:
    """Counts the batches of a plain ``DataLoader``, so that its state can be saved in mid-epoch.

    The loader has an ``S3IterableDataset``, or any map dataset with an ``S3Sampler``. The state is that of
    all ranks together, provided that they take the same number of batches, as training in step does, and
    have the same number of workers; it has a few numbers, however many samples there are. It
    may be loaded with another number of ranks, workers, or another batch size: every sample comes once an
    epoch, and in the same global order.

    Batches have to come in order (``in_order=True``, torch's default). An iterable dataset that skips
    objects (``on_error="skip"``) is resumed exactly only by torchdata's ``StatefulDataLoader``.

    Args:
        loader: The loader; load a state before its first iteration if its workers are persistent.

    Raises:
        ConfigurationError: The loader has neither such a dataset nor such a sampler.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        part = loader.dataset if isinstance(loader.dataset, S3IterableDataset) else loader.sampler
        if not isinstance(part, S3IterableDataset | S3Sampler):
            raise ConfigurationError(
                f"expected a loader of an S3IterableDataset or with an S3Sampler, got {part!r}"
            )
        self._part = part
        self._batches = 0
        self._state: dict[str, Any] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration, also of persistent workers."""
        self._state = None if self._state is None or self._state["epoch"] != epoch else self._state
        self._part.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        self._state, self._batches = self._begin(), 0
        for batch in batches:
            self._batches += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Tells how far the iteration is that was started last."""
        if self._state is None:
            return self._part.state_dict()
        size = self.loader.batch_size or 1
        if isinstance(self._part, S3Sampler):
            return self._part.state_after(self._batches * size)
        workers = max(1, self.loader.num_workers) if self._part.enable_sharding else 1
        if workers != max(1, self.loader.num_workers):
            raise ConfigurationError("several workers without enable_sharding repeat every sample")
        return self._part.state_after(self._state, workers, size, self._batches)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on where a state was saved.

        Raises:
            ConfigurationError: The state does not fit, or persistent workers run already.
        """
        if self.loader.persistent_workers and getattr(self.loader, "_iterator", None) is not None:
            raise ConfigurationError("persistent workers run already: load the state into a new loader")
        self._part.load_state_dict(state)
        self._state, self._batches = None, 0

    def _begin(self) -> dict[str, Any]:
        if isinstance(self._part, S3Sampler):
            return self._part.state_after(0)
        # The workers have their copies by now; a later iteration has the whole epoch.
        return self._part.begun(workers=self.loader.num_workers)

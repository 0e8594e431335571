"""A ``DataLoader`` that can be interrupted and goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError
from s3torch.datasets._loader_progress import CountedBatches, MarkedBatches
from s3torch.datasets.iterable import S3IterableDataset
from s3torch.datasets.progress import merge_courses
from s3torch.datasets.sampler import S3Sampler
from s3torch.datasets.shard_state import ShardState
from s3torch.datasets.shards import S3ShardDataset

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.utils.data import DataLoader

    from s3torch.datasets._loader_progress import LoaderProgress

__all__ = ["ResumableLoader", "merge_states"]


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

    Of an ``S3IterableDataset`` that leaves objects out (``on_error="skip"``) the state is that of this rank
    as well, and to resume several ranks always takes the merged state of all.

    Args:
        loader: The loader, which nobody else iterates; load a state before its first iteration if its
            workers are persistent.

    Raises:
        ConfigurationError: The loader has neither such a dataset nor such a sampler.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self._progress = _progress_of(loader)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration, also of persistent workers."""
        self._progress.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._progress.begin():
            yield self._progress.take(batch)

    def state_dict(self) -> dict[str, Any]:
        """Tells how far the iteration is that was started last."""
        return self._progress.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on where a state was saved.

        Raises:
            ConfigurationError: The state does not fit, or persistent workers run already.
        """
        if self.loader.persistent_workers and getattr(self.loader, "_iterator", None) is not None:
            raise ConfigurationError("persistent workers run already: load the state into a new loader")
        self._progress.load_state_dict(state)


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Makes one state of those of all ranks, with which any number of ranks can go on.

    Each rank saves the state of its ``ResumableLoader`` with the checkpoint, or all exchange them
    (``torch.distributed.all_gather_object``). Of an ``S3ShardDataset``, the states may also be those of
    torchdata's ``StatefulDataLoader``; what is merged is loaded into the dataset then.

    Args:
        states: One of each rank, saved at the same point.

    Raises:
        ConfigurationError: They do not belong together.
    """
    found = list(states)
    if not found:
        raise ConfigurationError("expected the state of each rank, got none")
    shards = [ShardState.from_dict(part) for state in found for part in _shard_states(state)]
    if shards:
        return ShardState.merged(shards).to_dict()
    return merge_courses(found)


def _progress_of(loader: DataLoader[Any]) -> LoaderProgress:
    dataset = loader.dataset
    if isinstance(dataset, S3ShardDataset) or (isinstance(dataset, S3IterableDataset) and dataset.may_skip):
        return MarkedBatches(loader, dataset)
    part = dataset if isinstance(dataset, S3IterableDataset) else loader.sampler
    if not isinstance(part, S3IterableDataset | S3Sampler):
        raise ConfigurationError(
            "expected a loader of an S3IterableDataset or an S3ShardDataset, or one with an S3Sampler; "
            f"got {part!r}"
        )
    return CountedBatches(loader, part)


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

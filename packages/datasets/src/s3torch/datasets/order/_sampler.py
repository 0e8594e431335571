"""The order of a map dataset: shuffled by seed and epoch, shared out between ranks, resumable."""

from __future__ import annotations

from itertools import count as count_up
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch.utils.data import Sampler

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.order._epoch import Permutation, Uneven, check_uneven, even_length
from s3torch.datasets.order._places import Place, current_rank, given_place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sized


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
        self._ranks = 1
        self._taken = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration; a state that was loaded for another epoch is forgotten."""
        if epoch != self._epoch:
            self._start, self._resumed = 0, False
        self._epoch = epoch

    def __len__(self) -> int:
        place = self._place()
        left = max(0, len(self._source) - (self._start if self._resumed else 0))
        return len(range(place.index, even_length(left, place.size, self._uneven), place.size))

    def __iter__(self) -> Iterator[int]:
        # A state counts for one iteration; the next one has the whole order.
        self._start = self._start if self._resumed else 0
        self._resumed = False
        place = self._place()
        self._ranks, self._taken = place.size, 0
        return self._indices(place, self._start)

    def state_dict(self) -> dict[str, Any]:
        """Returns how far the last iteration is; the size does not depend on the number of samples."""
        return self.state_after(self._taken)

    def begun(self, *, workers: int) -> dict[str, Any]:  # noqa: ARG002 - the sampler is in the main process
        """Returns the state that a loader's iteration starts from, which has just been started."""
        return self.state_after(0)

    def counted(
        self,
        begun: Mapping[str, Any],  # noqa: ARG002
        *,
        workers: int,  # noqa: ARG002
        batch_size: int,
        batches: int,
    ) -> dict[str, Any]:
        """Returns the state of all ranks after each took so many batches."""
        return self.state_after(batches * batch_size)

    def state_after(self, samples: int) -> dict[str, Any]:
        """Returns where to go on when each rank has used this many samples of its iteration.

        Workers of a loader ask for indices long before their batches are used, so the loader's user
        counts, not the sampler.
        """
        start = self._start + samples * self._ranks
        return {"order": self._order(), "epoch": self._epoch, "start": start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on where a state was saved.

        Raises:
            ConfigurationError: It is no such state, or one of another seed, order or length.
        """
        try:
            order, epoch, start = dict(state["order"]), int(state["epoch"]), int(state["start"])
        except (KeyError, TypeError, ValueError) as exc:
            raise ConfigurationError(f"this is no state of an S3Sampler: {exc!r}") from exc
        if order != self._order():
            raise ConfigurationError(f"the state was saved with {order} and the sampler has {self._order()}")
        self._epoch, self._start, self._resumed = epoch, start, True
        self._taken = 0

    def _order(self) -> dict[str, Any]:
        order = {"shuffle": self._shuffle, "seed": self._seed, "count": len(self._source)}
        source = self._source
        return order | source.listing_identity() if isinstance(source, _Listed) else order

    def _place(self) -> Place:
        return self._given or current_rank() or Place()

    def _indices(self, place: Place, start: int) -> Iterator[int]:
        count = len(self._source)
        order = Permutation(count, seed=self._seed, epoch=self._epoch) if self._shuffle else range(count)
        left = max(0, count - start)
        length = even_length(left, place.size, self._uneven)
        for number, taken in zip(range(place.index, length, place.size), count_up(1), strict=False):
            self._taken = taken
            yield order[start + number % left]

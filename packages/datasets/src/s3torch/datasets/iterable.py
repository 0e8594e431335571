"""A dataset that streams its samples in order and shares them out between ranks and workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset

from s3torch.core.errors import ConfigurationError
from s3torch.datasets._dataset import S3Dataset, given, log_objects, log_prefix
from s3torch.datasets.placement import current_rank, current_worker
from s3torch.datasets.sharding import Place, Shard
from s3torch.datasets.sources import ObjectsSource, PrefixSource
from s3torch.datasets.transforms import identity

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator
    from typing import Self

    from s3torch.core import S3ClientConfig, S3Reader, S3ReaderConstructorProtocol
    from s3torch.datasets.sources import ObjectSource

__all__ = ["S3IterableDataset"]


class S3IterableDataset(S3Dataset, IterableDataset[Any]):
    """The objects of a listing, one after the other.

    Every epoch, that is every ``iter(dataset)``, lists anew and as far as it is read. While a transform
    runs, the downloads of the next objects are under way; with the default transform they are not, because
    its readers are handed out unread.

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
        prefetch: How many objects are fetched ahead in each worker, of each at most the first part until its
            turn comes; 0 fetches one after the other.
        rank: This rank, for jobs without a process group; needs ``enable_sharding`` and ``world_size``.
        world_size: The number of ranks.

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
        prefetch: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(
            region,
            get_dataset_objects,
            endpoint=endpoint,
            transform=transform,
            s3client_config=s3client_config,
            reader_constructor=reader_constructor,
            prefetch=prefetch,
        )
        self._enable_sharding = enable_sharding
        self._given_rank = _given_rank(rank, world_size)
        if self._given_rank is not None and not enable_sharding:
            raise ConfigurationError("rank and world_size need enable_sharding=True")
        self._seen_rank = current_rank()

    @classmethod
    def from_prefix(
        cls,
        s3_uri: str | os.PathLike[str],
        *,
        region: str | None = None,
        endpoint: str | None = None,
        transform: Callable[[S3Reader], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        prefetch: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
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
            **given(prefetch=prefetch, rank=rank, world_size=world_size),
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
        prefetch: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
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
            **given(prefetch=prefetch, rank=rank, world_size=world_size),
        )

    def __iter__(self) -> Iterator[Any]:
        # Decided now, not at the first sample: a group may be gone by then.
        shard = Shard(self._rank(), current_worker()) if self._enable_sharding else Shard()
        return self._samples(shard.select(self._list()))

    def __getstate__(self) -> dict[str, Any]:
        self._rank()
        return self.__dict__.copy()

    def _rank(self) -> Place:
        self._seen_rank = current_rank() or self._seen_rank
        return self._given_rank or self._seen_rank or Place()


def _given_rank(rank: int | None, world_size: int | None) -> Place | None:
    if rank is None and world_size is None:
        return None
    # A bool is no rank.
    if type(rank) is not int or type(world_size) is not int or not 0 <= rank < world_size:
        raise ConfigurationError(
            "rank and world_size are integers that are given together, with 0 <= rank < world_size; "
            f"got {rank!r} and {world_size!r}"
        )
    return Place(rank, world_size)

"""A dataset of shards, objects with many samples: tar archives, Parquet files, and formats of plugins."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset

from s3torch.core import S3ReaderConstructor
from s3torch.core.errors import ConfigurationError, NotFoundError, ObjectChangedError
from s3torch.datasets._sample_dataset import SampleDataset
from s3torch.datasets.damage import DamagedShardError
from s3torch.datasets.describe import describe_objects
from s3torch.datasets.formats import ShardFormat, ShardObject, ShardSource, format_for_key, named_format
from s3torch.datasets.ordering import Permutation
from s3torch.datasets.placement import current_rank, current_worker, given_place
from s3torch.datasets.sample_transform import transformed
from s3torch.datasets.shard_order import BlockProgress, Mixer
from s3torch.datasets.shard_pipeline import ShardPipeline
from s3torch.datasets.shard_state import ShardState
from s3torch.datasets.sharding import Place, Shard
from s3torch.datasets.sources import PrefixSource

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Self

    from s3torch.core import S3BucketKeyData, S3ClientConfig, S3ReaderConstructorProtocol
    from s3torch.datasets.describe import DatasetSummary
    from s3torch.datasets.formats import OpenedShard
    from s3torch.datasets.sources import ObjectSource

__all__ = ["S3ShardDataset"]

_log = logging.getLogger(__name__)


class S3ShardDataset(SampleDataset, IterableDataset[Any]):
    """The samples of all shards of a listing, streamed.

    A tar archive has samples by the naming of WebDataset: a ``dict`` with ``"__key__"``, ``"__url__"`` and
    the ``bytes`` of each file by its suffix. A row of a Parquet file is a ``dict`` by column.

    Shards are shared out between all DataLoader workers of all ranks: tar archives whole, Parquet files by
    row group. So there should be a multiple of workers in all of them; ranks may get numbers of samples that
    differ. While a shard is read, the downloads of the next ones are under way.

    With ``shuffle``, shards come in an order that seed and ``set_epoch`` decide, and each worker mixes its
    samples within blocks of ``shuffle_buffer``; the order depends on the numbers of ranks and workers.

    ``state_dict()`` has a few numbers and resumes exactly: no sample comes twice and none is lost. It is the
    state of one worker of one rank, so torchdata's ``StatefulDataLoader`` resumes with the same numbers of
    ranks and workers. Up to two blocks are read again then.

    Rank and world size are read as ``S3IterableDataset`` does. Every process lists once and keeps the list.

    Args:
        region: The region; ``None`` takes it from the usual AWS places.
        get_dataset_objects: Takes the client and returns the shards.
        format: ``"tar"``, ``"parquet"``, another name that a plugin has registered, or a format with its
            options; ``None`` finds it by the suffix of each key.
        endpoint: The URL of a store other than AWS.
        transform: Makes what the dataset yields of a sample.
        s3client_config: The settings of the client.
        reader_constructor: How shards are read; the default is sequential.
        shuffle: Shuffles shards and samples.
        shuffle_buffer: How many samples a worker keeps to mix them; 1 shuffles only the shards.
        seed: The same on all ranks.
        samples_per_worker: How many samples each worker yields an epoch, so that ranks get the same number
            and collectives do not hang: it stops there, or goes on with its shards from the beginning.
            ``None`` yields each sample once.
        shards_ahead: How many shards or row groups are fetched ahead in each worker while they fit in 128
            MiB, of a shard at most the first part until its turn comes.
        rank: This rank, for jobs without a process group; given together with ``world_size``.
        world_size: The number of ranks.
        on_error: ``"skip"`` leaves out shards that are missing, and the rest of those that changed or are
            damaged, with a warning in the log.
        cache_dir: A folder on a local disk where what was read is kept, for all processes of this machine, so
            that the second epoch reads from there; see ``DiskCache``.
        cache_limit: How many bytes the folder may have; ``None`` for half of what its disk has for it.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: ObjectSource,
        *,
        format: str | ShardFormat | None = None,  # noqa: A002 - the word that users know
        endpoint: str | None = None,
        transform: Callable[[Any], Any] | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        shuffle: bool = False,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        samples_per_worker: int | None = None,
        shards_ahead: int = 2,
        rank: int | None = None,
        world_size: int | None = None,
        on_error: str = "raise",
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | None = None,
    ) -> None:
        if on_error not in {"raise", "skip"}:
            raise ConfigurationError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        numbers = (
            ("shuffle_buffer", shuffle_buffer, 1),
            ("shards_ahead", shards_ahead, 0),
            ("samples_per_worker", 1 if samples_per_worker is None else samples_per_worker, 1),
        )
        for name, value, lowest in numbers:
            if type(value) is not int or value < lowest:
                raise ConfigurationError(f"{name} must be an integer from {lowest} on, got {value!r}")
        reader_type = S3ReaderConstructor.get_reader_type_string(reader_constructor)
        super().__init__(
            region,
            get_dataset_objects,
            agent=f"md/dataset#shards md/reader_type#{reader_type}",
            endpoint=endpoint,
            transform=transform,
            s3client_config=s3client_config,
            cache_dir=cache_dir,
            cache_limit=cache_limit,
        )
        self._format = named_format(format) if isinstance(format, str) else format
        self._reader_constructor = reader_constructor
        self._shuffle = shuffle
        self._buffer = shuffle_buffer if shuffle else 1
        self._seed = seed
        self._count = samples_per_worker
        self._ahead = shards_ahead
        self._skips = on_error == "skip"
        self._given_rank = given_place(rank, world_size)
        self._seen_rank = current_rank()
        # Shared memory, so that persistent workers see the epoch that is set in their parent.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._objects: list[S3BucketKeyData] | None = None
        self._saved: ShardState | None = None
        self._state: ShardState | None = None

    @classmethod
    def from_prefix(
        cls, s3_uri: str | os.PathLike[str], *, region: str | None = None, **options: Any
    ) -> Self:
        """Makes a dataset of all objects whose key begins with the key of the URI, in listing order.

        Keys that end with no suffix of the format, or of any without a ``format``, are left out, so sidecars
        may lie beside the shards. The other arguments are those of the class.

        Raises:
            ConfigurationError: The URI or another argument is wrong.
        """
        chosen = options.pop("format", None)
        chosen = named_format(chosen) if isinstance(chosen, str) else chosen
        source = ShardSource(
            PrefixSource.from_uri(s3_uri), None if chosen is None else tuple(chosen.suffixes)
        )
        return cls(region, source, format=chosen, **options)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration, also in workers that run already.

        A state that was loaded for another epoch is forgotten.
        """
        if self._saved is not None and self._saved.epoch != epoch:
            self._saved = None
        self._epoch[0] = epoch

    def describe(self, *, count_samples: bool = False) -> DatasetSummary:
        """Summarises the shards, from their listing.

        Args:
            count_samples: Reads the shard of median size, counts its samples and estimates from that how many
                there are in all.
        """
        objects = self._listing()
        known = sorted((item for item in objects if item.object_info), key=_size)
        if not (count_samples and known):
            return describe_objects(objects)
        probe = known[len(known) // 2]
        found = 0
        for piece in self._open(probe).pieces():
            with closing(piece):
                found += sum(1 for _ in piece.samples(0))
        total = sum(map(_size, known))
        return describe_objects(objects, estimated_samples=round(found * total / max(1, _size(probe))))

    def __iter__(self) -> Iterator[Any]:
        # Decided now, not at the first sample: a group may be gone by then.
        share = self._share()
        saved, self._saved = self._saved, None
        state = ShardState(int(self._epoch), share) if saved is None else replace(saved)
        if state.share != share:
            raise ConfigurationError(
                f"the state is that of {state.share}, and this is {share}: shards are resumed with the same "
                "numbers of ranks and workers"
            )
        self._state = state
        return self._run(state)

    def state_dict(self) -> dict[str, Any]:
        """Tells how far the iteration is that this process started last."""
        state = self._saved or self._state or ShardState(int(self._epoch), self._share())
        return state.to_dict(self._order())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on where a state was saved.

        Raises:
            ConfigurationError: It is no such state, or the dataset has another order.
        """
        self._saved = ShardState.from_dict(state, self._order())
        self._epoch[0] = self._saved.epoch

    def _order(self) -> dict[str, Any]:
        return {"shuffle": self._shuffle, "seed": self._seed if self._shuffle else 0, "buffer": self._buffer}

    def _run(self, state: ShardState) -> Iterator[Any]:
        objects = self._listing()
        shards = _digest(objects)
        if state.shards not in {"", shards}:
            raise ConfigurationError("the state was saved with other shards, or they have changed")
        state.shards = shards
        while True:
            begun = state.taken if state.progress == BlockProgress() else -1
            yield from self._turn(state, objects)
            if self._count is None or state.taken >= self._count:
                break
            if state.taken == begun:
                raise ConfigurationError(f"there are no samples for {state.share} of {len(objects)} shards")
            state.turn, state.progress = state.turn + 1, BlockProgress()
        if state.taken == 0:
            _log.warning("no samples for %s of %d shards: there are too few", state.share, len(objects))

    def _turn(self, state: ShardState, objects: Sequence[S3BucketKeyData]) -> Iterator[Any]:
        """Yields what is left of all samples of this worker, or of the number that was asked for."""
        order = Permutation(len(objects), seed=self._seed, epoch=state.epoch) if self._shuffle else None
        pipeline = ShardPipeline(
            len(objects),
            lambda place: self._open(objects[place if order is None else order[place]]),
            share=state.share,
            ahead=self._ahead,
            tolerate=self._tolerate,
        )
        mixer = Mixer(self._buffer, seed=self._seed, epoch=state.epoch, turn=state.turn, shard=state.share)
        left = None if self._count is None else max(0, self._count - state.taken)
        with closing(pipeline.samples(state.progress.begin)) as samples:
            for after, sample in islice(mixer.mix(samples, state.progress), left):
                made = transformed(self._transform, sample)
                state.progress = after
                state.taken += 1
                yield made

    def _open(self, item: S3BucketKeyData) -> OpenedShard:
        chosen = format_for_key(item.key) if self._format is None else self._format
        return chosen.open(ShardObject(self._client, item, self._reader_constructor, self._cache))

    def _tolerate(self, exc: Exception) -> bool:
        if not self._skips or not isinstance(exc, NotFoundError | ObjectChangedError | DamagedShardError):
            return False
        _log.warning("leaving out a shard, or the rest of it: %s", exc)
        return True

    def _listing(self) -> list[S3BucketKeyData]:
        if self._objects is None:
            self._objects = list(self._get_dataset_objects(self._client))
        return self._objects

    def _share(self) -> Shard:
        return Shard(self._rank(), current_worker())

    def _rank(self) -> Place:
        self._seen_rank = current_rank() or self._seen_rank
        return self._given_rank or self._seen_rank or Place()

    def __getstate__(self) -> dict[str, Any]:
        self._rank()
        return self.__dict__.copy()


def _size(item: S3BucketKeyData) -> int:
    return 0 if item.object_info is None else item.object_info.size


def _digest(objects: Iterable[S3BucketKeyData]) -> str:
    digest = blake2b(digest_size=8)
    for item in objects:
        etag = "" if item.object_info is None else item.object_info.etag
        digest.update(f"{item.bucket}/{item.key}\0{etag}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()

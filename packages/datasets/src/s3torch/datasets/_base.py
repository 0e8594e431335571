"""What datasets share: a client, a listing, settings, and for streams the place among ranks and workers."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic

import torch
from torch.utils.data import IterableDataset

from s3torch.core import S3Client, S3Reader, S3ReaderConstructor, UserAgent, parse_s3_uri
from s3torch.core.errors import ConfigurationError, NotFoundError, ObjectChangedError
from s3torch.datasets._opening import Opener, through
from s3torch.datasets._ranges import Hedging
from s3torch.datasets._settings import DatasetOptions, InputT, SampleT, Settings
from s3torch.datasets.cache._disk import DiskCache
from s3torch.datasets.order._places import Place, SharedCounter, current_rank, given_place
from s3torch.datasets.sources._manifest import Manifest, ManifestSource
from s3torch.datasets.sources._shared import SharedFolder, SharedListing
from s3torch.datasets.sources._sources import GlobSource, ObjectsSource, PrefixSource, subject_of, uri_of
from s3torch.datasets.sources._summary import describe_objects

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Self, Unpack

    from s3torch.core import S3BucketKeyData
    from s3torch.datasets.order._epoch import EpochPosition
    from s3torch.datasets.order._state import ShardState
    from s3torch.datasets.sources._sources import ObjectSource, Uris
    from s3torch.datasets.sources._summary import DatasetSummary
    from s3torch.datasets.sources._table import ObjectTable

_log = logging.getLogger(__name__)


class S3Dataset(Generic[InputT, SampleT]):
    """Base of all datasets; not for direct use."""

    _kind: ClassVar[str]
    _options: ClassVar[frozenset[str]]
    # Whether transforms get samples of shards and may be None, which keeps the samples.
    _of_samples: ClassVar[bool] = False
    client_class: ClassVar[type[S3Client]] = S3Client

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: ObjectSource,
        **options: Unpack[DatasetOptions[InputT, SampleT]],
    ) -> None:
        for name in options:
            if name not in self._options:
                raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {name!r}")
        if self._of_samples and options.get("transform") is None:
            options.pop("transform", None)
        settings: Settings[InputT, SampleT] = Settings(**options)
        if not callable(get_dataset_objects):
            raise ConfigurationError(f"get_dataset_objects must be callable, got {get_dataset_objects!r}")
        self._region = region
        self._get_dataset_objects = get_dataset_objects
        self._settings = settings
        # One cache for all readers, so that it warns once.
        self._cache: DiskCache | None = None
        if settings.cache_dir is not None:
            self._cache = DiskCache(settings.cache_dir, limit=settings.cache_limit)
        self._reader_constructor = through(self._cache, settings.reader_constructor)
        self._folder = SharedFolder(self._subject())
        self._shared_listing = SharedListing(self._folder)
        self._counter = SharedCounter()
        # It connects when it is first used, travels with pickles and forks, and may be replaced.
        self._client = self.client_class(
            region,
            endpoint=settings.endpoint,
            user_agent=UserAgent([self._agent()]),
            s3client_config=settings.s3client_config,
        )
        self._prepare()

    def _prepare(self) -> None:
        """Makes what a kind of dataset has of its own, once there are settings."""

    @classmethod
    def from_prefix(
        cls, s3_uri: Uris, *, region: str | None = None, **options: Unpack[DatasetOptions[InputT, SampleT]]
    ) -> Self:
        """Makes a dataset of all objects whose key begins with the key of the URI, in listing order.

        Datasets of shards leave out keys that end with no suffix of their format, or of any without a
        ``format``, so sidecars may lie beside the shards. The other arguments are those of the class.

        Raises:
            ConfigurationError: The URI or another argument is wrong.
        """
        _log.info("Building %s from_prefix s3_uri=%r", cls.__name__, s3_uri)
        return cls(region, cls._chosen_from(PrefixSource.from_uri(s3_uri), options), **options)

    @classmethod
    def from_objects(
        cls,
        object_uris: Uris,
        *,
        region: str | None = None,
        **options: Unpack[DatasetOptions[InputT, SampleT]],
    ) -> Self:
        """Makes a dataset of one URI or of several in their order; an iterator is consumed once, now.

        The other arguments are those of the class.

        Raises:
            ConfigurationError: A URI or another argument is wrong.
        """
        _log.info("Building %s from_objects", cls.__name__)
        return cls(region, ObjectsSource.from_uris(object_uris), **options)

    @classmethod
    def from_glob(
        cls,
        s3_uri: str | os.PathLike[str],
        *,
        region: str | None = None,
        **options: Unpack[DatasetOptions[InputT, SampleT]],
    ) -> Self:
        """Makes a dataset of all objects that match a pattern, in listing order.

        ``*`` and ``?`` match within a folder, ``**/`` any number of folders, ``[a-z]`` one character,
        ``{a,b}`` either, as in ``"s3://bucket/train/**/*.jpg"``; see ``s3torch.core.operations._globs``. Only what can
        match is listed. The other arguments are those of the class.

        Raises:
            ConfigurationError: The URI or another argument is wrong.
        """
        _log.info("Building %s from_glob s3_uri=%r", cls.__name__, s3_uri)
        return cls(region, GlobSource(parse_s3_uri(s3_uri)), **options)

    @classmethod
    def from_manifest(
        cls,
        manifest: str | os.PathLike[str] | Manifest,
        *,
        region: str | None = None,
        **options: Unpack[DatasetOptions[InputT, SampleT]],
    ) -> Self:
        """Makes a dataset of the objects of a manifest, in its order, without a listing.

        Every read is pinned to the ETag in the manifest: an object that was replaced since raises
        ``ObjectChangedError``, unless the manifest has its version, which is then read. States of the dataset
        can be resumed with the same manifest only.

        Args:
            manifest: The manifest, or where it was saved: an S3 URI or a local path, read at the first use.
            region: The region.
            options: The other arguments of the class.

        Raises:
            ConfigurationError: An argument is wrong.
        """
        _log.info("Building %s from_manifest", cls.__name__)
        return cls(region, ManifestSource(manifest), **options)

    def manifest(self, *, versions: bool = False) -> Manifest:
        """Lists the objects of this dataset, as they are now, for ``Manifest.save`` and ``from_manifest``.

        Args:
            versions: Keeps the version that each object has now, in buckets that keep versions.
        """
        source = self._get_dataset_objects
        if versions and isinstance(source, PrefixSource):
            return Manifest.build(
                lambda client: self._selected(source.latest_versions(client)), self._client, versions=True
            )
        return Manifest.build(lambda _: self._list_whole(), self._client, versions=versions)

    @property
    def client(self) -> S3Client:
        """The client that reads the objects."""
        return self._client

    @property
    def region(self) -> str | None:
        """The region that was given."""
        return self._region

    @property
    def endpoint(self) -> str | None:
        """The endpoint that was given."""
        return self._settings.endpoint

    def listing_identity(self) -> dict[str, str]:
        """What else decides which samples there are; part of what a state is compared by."""
        return {"manifest": self._listing().digest} if self._has_manifest else {}

    def close(self) -> None:
        """Closes the client of this process; may be called again."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @classmethod
    def _chosen_from(cls, source: PrefixSource, options: Mapping[str, Any]) -> ObjectSource:  # noqa: ARG003
        """Returns a source of those objects below some prefixes that belong to a dataset of this kind."""
        return source

    def _agent(self) -> str:
        reader_type = S3ReaderConstructor.get_reader_type_string(self._reader_constructor)
        return f"md/dataset#{self._kind} md/reader_type#{reader_type}"

    def _subject(self) -> str | None:
        """Names what is listed, where all ranks list the same."""
        settings = self._settings
        if settings.select is not None and settings.select.where is not None:
            return None
        place = (self._region, settings.endpoint, settings.s3client_config)
        return subject_of(self._get_dataset_objects, settings.select, place)

    def _list(self) -> Iterable[S3BucketKeyData]:
        return self._selected(self._get_dataset_objects(self._client))

    def _list_whole(self) -> Iterable[S3BucketKeyData]:
        source = self._get_dataset_objects
        if isinstance(source, PrefixSource):
            return self._selected(source.whole(self._client))
        return self._list()

    def _selected(self, objects: Iterable[S3BucketKeyData]) -> Iterable[S3BucketKeyData]:
        select = self._settings.select
        return objects if select is None else filter(select, objects)

    def _listing(self) -> ObjectTable:
        """All objects; listed once by all processes of the dataset together."""
        return self._shared_listing.get(self._list_whole)

    @property
    def _has_manifest(self) -> bool:
        return isinstance(self._get_dataset_objects, ManifestSource)


class ObjectDataset(S3Dataset[S3Reader, SampleT]):
    """Base of the datasets whose samples are objects; not for direct use."""

    def _prepare(self) -> None:
        super()._prepare()
        hedge_after, count = self._settings.hedge_after, partial(self._counter.add, "hedged")
        self._hedging = None if hedge_after is None else Hedging(hedge_after, count)
        self._prefetch = self._settings.prefetch if self._settings.reads_ahead else 0

    def describe(self) -> DatasetSummary:
        """Summarises the objects, from their listing: how many, how large, with which suffixes."""
        objects = self._listing()
        return describe_objects(objects, estimated_samples=len(objects))

    @property
    def skipped(self) -> int:
        """How many objects were missing or changed and were left out, by this process and its workers."""
        return self._counter.total("skipped")

    @property
    def hedged(self) -> int:
        """How many second requests were sent because an answer was late, by this process and its workers."""
        return self._counter.total("hedged")

    def _opener(self) -> Opener:
        return Opener(self._client, self._reader_constructor, self._prefetch, self._hedging)

    def _sample(self, reader: S3Reader) -> SampleT:
        return apply(self._settings.transform, reader, uri_of)

    def _samples(self, readers: Iterable[S3Reader]) -> Iterator[tuple[int, SampleT]]:
        """Yields the samples of readers in their order.

        With each comes how many readers were taken so far, those that were skipped included.
        """
        for taken, reader in enumerate(readers, 1):
            try:
                sample = self._sample(reader)
            except (NotFoundError, ObjectChangedError) as exc:
                if not self._settings.skips:
                    raise
                _log.warning("skipping %s: %s", uri_of(reader), exc)
                reader.close()
                self._counter.add("skipped")
                continue
            yield taken, sample


class StreamedDataset(S3Dataset[InputT, SampleT], IterableDataset[SampleT]):
    """Base of the datasets that ranks and workers share, and that resume; not for direct use."""

    def _prepare(self) -> None:
        super()._prepare()
        self._given_rank = given_place(self._settings.rank, self._settings.world_size)
        self._seen_rank = current_rank()
        # Shared memory, so that persistent workers see the epoch that is set in their parent.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._saved: EpochPosition | ShardState | None = None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration, also in workers that run already.

        A state that was loaded for another epoch is forgotten.
        """
        if self._saved is not None and self._saved.epoch != epoch:
            self._saved = None
        self._epoch[0] = epoch

    def _rank(self) -> Place:
        self._seen_rank = current_rank() or self._seen_rank
        return self._given_rank or self._seen_rank or Place()

    def __getstate__(self) -> dict[str, Any]:
        self._rank()
        return self.__dict__.copy()


def apply(transform: Callable[[InputT], SampleT], value: InputT, name_of: Callable[[InputT], str]) -> SampleT:
    """Returns the sample that a transform makes; errors get a note that names what they are about."""
    try:
        return transform(value)
    except StopIteration as exc:
        # A loader would take it for the end of the data and drop the rest silently.
        raise RuntimeError(f"the transform raised StopIteration for {name_of(value)}") from exc
    except Exception as exc:
        exc.add_note(f"while transforming {name_of(value)}")
        raise

"""What datasets share: settings, a client and a listing.

A new setting is one line in ``ReadOptions``, which types the keyword arguments, one in ``Settings``, and its
name in the datasets that have it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypedDict, TypeVar

from s3torch.core import S3Client, S3Reader, S3ReaderConstructor, UserAgent, parse_s3_uri
from s3torch.core.errors import ConfigurationError, NotFoundError, ObjectChangedError
from s3torch.datasets._cache import DiskCache, through
from s3torch.datasets._opening import Hedging, Opener, check_hedge_after, check_prefetch, identity
from s3torch.datasets.order._epoch import SharedCounter, check_uneven
from s3torch.datasets.sources._manifest import Manifest, ManifestSource
from s3torch.datasets.sources._shared import SharedFolder, SharedListing
from s3torch.datasets.sources._sources import (
    GlobSource,
    ObjectsSource,
    PrefixSource,
    Selection,
    list_whole,
    subject_of,
    uri_of,
)
from s3torch.datasets.sources._table import describe_objects

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Self, Unpack

    from typing_extensions import TypeVar as DefaultTypeVar

    from s3torch.core import S3BucketKeyData, S3ClientConfig, S3ReaderConstructorProtocol
    from s3torch.datasets.formats import ShardFormat
    from s3torch.datasets.order._epoch import Uneven
    from s3torch.datasets.sources._sources import ObjectSource, Uri, Uris
    from s3torch.datasets.sources._table import DatasetSummary, ObjectTable

    # The default transform returns the reader itself.
    SampleT = DefaultTypeVar("SampleT", default=S3Reader)
else:
    SampleT = TypeVar("SampleT")

_log = logging.getLogger(__name__)
# The names of keyword arguments: of all datasets, and of those whose samples are objects.
COMMON_OPTIONS = frozenset({"endpoint", "transform", "s3client_config", "cache_dir", "cache_limit"})
OBJECT_OPTIONS = COMMON_OPTIONS | {"reader_constructor", "prefetch", "on_error", "hedge_after", "select"}
InputT = TypeVar("InputT")
OnError = Literal["raise", "skip"]


class ReadOptions(TypedDict, total=False):
    """The keyword arguments of the datasets; each class says which of them it has."""

    prefetch: int | None
    on_error: OnError
    hedge_after: float | str | None
    select: Selection | None
    cache_dir: str | os.PathLike[str] | None
    cache_limit: int | None
    rank: int | None
    world_size: int | None
    shuffle: bool
    seed: int
    uneven: Uneven
    format: str | ShardFormat | None
    shuffle_buffer: int
    samples_per_worker: int | None
    shards_ahead: int
    index_location: str | os.PathLike[str] | None
    save_indexes: bool


class Options(ReadOptions, Generic[InputT, SampleT], total=False):
    """The same with those that are also positional, where only keywords are taken."""

    endpoint: str | None
    transform: Callable[[InputT], SampleT]
    s3client_config: S3ClientConfig | None
    reader_constructor: S3ReaderConstructorProtocol | None
    enable_sharding: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Generic[InputT, SampleT]):
    """The arguments of a dataset, checked."""

    endpoint: str | None = None
    transform: Callable[[InputT], SampleT] = identity  # type: ignore[assignment]
    s3client_config: S3ClientConfig | None = None
    reader_constructor: S3ReaderConstructorProtocol | None = None
    enable_sharding: bool = False
    prefetch: int | None = None
    on_error: OnError = "raise"
    hedge_after: float | str | None = None
    select: Selection | None = None
    cache_dir: str | os.PathLike[str] | None = None
    cache_limit: int | None = None
    rank: int | None = None
    world_size: int | None = None
    shuffle: bool = False
    seed: int = 0
    uneven: Uneven = "keep"
    format: str | ShardFormat | None = None
    shuffle_buffer: int = 1000
    samples_per_worker: int | None = None
    shards_ahead: int = 2
    index_location: str | os.PathLike[str] | None = None
    save_indexes: bool = False

    def __post_init__(self) -> None:
        if not callable(self.transform):
            raise ConfigurationError(f"transform must be callable, got {self.transform!r}")
        if self.on_error not in {"raise", "skip"}:
            raise ConfigurationError(f"on_error must be 'raise' or 'skip', got {self.on_error!r}")
        check_prefetch(self.prefetch)
        check_hedge_after(self.hedge_after)
        check_uneven(self.uneven)
        if self.select is not None and not isinstance(self.select, Selection):
            raise ConfigurationError(f"select must be a Selection, got {self.select!r}")
        if self.cache_limit is not None and self.cache_dir is None:
            raise ConfigurationError("cache_limit needs cache_dir")
        for name, lowest in (("shuffle_buffer", 1), ("shards_ahead", 0), ("samples_per_worker", 1)):
            value = getattr(self, name)
            if name == "samples_per_worker" and value is None:
                continue
            if type(value) is not int or value < lowest:
                raise ConfigurationError(f"{name} must be an integer from {lowest} on, got {value!r}")


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
        **options: Unpack[Options[InputT, SampleT]],
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
        """Makes what a kind of dataset has of its own."""

    @classmethod
    def from_prefix(
        cls, s3_uri: Uris, *, region: str | None = None, **options: Unpack[Options[InputT, SampleT]]
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
        cls, object_uris: Uris, *, region: str | None = None, **options: Unpack[Options[InputT, SampleT]]
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
        cls, s3_uri: Uri, *, region: str | None = None, **options: Unpack[Options[InputT, SampleT]]
    ) -> Self:
        """Makes a dataset of all objects that match a pattern, in listing order.

        ``*`` and ``?`` match within a folder, ``**/`` any number of folders, ``[a-z]`` one character,
        ``{a,b}`` either, as in ``"s3://bucket/train/**/*.jpg"``; see ``s3torch.core.Glob``. Only what can
        match is listed. The other arguments are those of the class.

        Raises:
            ConfigurationError: The URI or another argument is wrong.
        """
        _log.info("Building %s from_glob s3_uri=%r", cls.__name__, s3_uri)
        return cls(region, GlobSource(parse_s3_uri(s3_uri)), **options)

    @classmethod
    def from_manifest(
        cls,
        manifest: Uri | Manifest,
        *,
        region: str | None = None,
        **options: Unpack[Options[InputT, SampleT]],
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
        return Manifest.build(lambda _: self._list_whole(versions=versions), self._client, versions=versions)

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

    def _list_whole(self, *, versions: bool = False) -> Iterable[S3BucketKeyData]:
        return self._selected(list_whole(self._get_dataset_objects, self._client, versions=versions))

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
        # A reader that is handed out stays unread, so that it can be pickled and holds no memory.
        self._prefetch = 0 if self._settings.transform is identity else self._settings.prefetch

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
                if self._settings.on_error != "skip":
                    raise
                _log.warning("skipping %s: %s", uri_of(reader), exc)
                reader.close()
                self._counter.add("skipped")
                continue
            yield taken, sample


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

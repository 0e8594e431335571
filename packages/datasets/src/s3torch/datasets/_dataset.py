"""What both kinds of datasets share: a client, readers, and the transform that makes the samples."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from s3torch.core import S3Client, S3ReaderConstructor, UserAgent
from s3torch.core.errors import ConfigurationError, NotFoundError, ObjectChangedError
from s3torch.datasets._constructors import SourceConstructors
from s3torch.datasets._opening import Opener
from s3torch.datasets._tally import Tally
from s3torch.datasets.caching import make_cache, through
from s3torch.datasets.describe import describe_objects
from s3torch.datasets.hedging import Hedging
from s3torch.datasets.manifest import Manifest, ManifestSource
from s3torch.datasets.shared_listing import SharedFolder, SharedListing
from s3torch.datasets.sources import PrefixSource, subject_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from s3torch.core import S3BucketKeyData, S3Reader
    from s3torch.datasets._settings import Settings
    from s3torch.datasets.describe import DatasetSummary
    from s3torch.datasets.sources import ObjectSource
    from s3torch.datasets.table import ObjectTable

_log = logging.getLogger(__name__)


class S3Dataset(SourceConstructors):
    """Base of the datasets; not for direct use."""

    _kind: str
    client_class: ClassVar[type[S3Client]] = S3Client

    def __init__(self, region: str | None, get_dataset_objects: ObjectSource, settings: Settings) -> None:
        if not callable(get_dataset_objects):
            raise ConfigurationError(f"get_dataset_objects must be callable, got {get_dataset_objects!r}")
        # One cache for all readers, so that it warns once.
        cache = make_cache(settings.cache_dir, settings.cache_limit)
        settings = replace(settings, reader_constructor=through(cache, settings.reader_constructor))
        self._region = region
        self._get_dataset_objects = get_dataset_objects
        self._settings = settings
        self._folder = SharedFolder(self._subject())
        self._shared_listing = SharedListing(self._folder)
        self._tally = Tally()
        self._hedging: Hedging | None = None
        if settings.hedge_after is not None:
            self._hedging = Hedging(settings.hedge_after, partial(self._tally.add, "hedged"))
        reader_type = S3ReaderConstructor.get_reader_type_string(settings.reader_constructor)
        # It connects when it is first used, travels with pickles and forks, and may be replaced.
        self._client = self.client_class(
            region,
            endpoint=settings.endpoint,
            user_agent=UserAgent([f"md/dataset#{self._kind} md/reader_type#{reader_type}"]),
            s3client_config=settings.s3client_config,
        )

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

    def describe(self) -> DatasetSummary:
        """Summarises the objects, from their listing: how many, how large, with which suffixes."""
        objects = self._listing()
        return describe_objects(objects, estimated_samples=len(objects))

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

    @property
    def skipped(self) -> int:
        """How many objects were missing or changed and were left out, by this process and its workers."""
        return self._tally.total("skipped")

    @property
    def hedged(self) -> int:
        """How many second requests were sent because an answer was late, by this process and its workers."""
        return self._tally.total("hedged")

    def close(self) -> None:
        """Closes the client of this process; may be called again."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

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

    def listing_identity(self) -> dict[str, str]:
        """What else decides which samples there are; part of what a state is compared by."""
        return {"manifest": self._listing().digest} if self._has_manifest else {}

    @property
    def _has_manifest(self) -> bool:
        return isinstance(self._get_dataset_objects, ManifestSource)

    def _opener(self) -> Opener:
        return Opener(self._client, self._settings, self._hedging)

    def _sample(self, reader: S3Reader) -> Any:
        try:
            return self._settings.transform(reader)
        except StopIteration as exc:
            # A loader would take it for the end of the data and drop the rest in silence.
            raise RuntimeError(f"the transform raised StopIteration for {_uri(reader)}") from exc
        except Exception as exc:
            exc.add_note(f"while transforming {_uri(reader)}")
            raise

    def _samples(self, readers: Iterable[S3Reader]) -> Iterator[tuple[int, Any]]:
        """Yields the samples of readers in their order.

        With each comes how many readers were taken so far, those that were skipped included.
        """
        for taken, reader in enumerate(readers, 1):
            try:
                sample = self._sample(reader)
            except (NotFoundError, ObjectChangedError) as exc:
                if self._settings.on_error == "raise":
                    raise
                self._skip(reader, exc)
                continue
            yield taken, sample

    def _skip(self, reader: S3Reader, exc: Exception) -> None:
        _log.warning("skipping %s: %s", _uri(reader), exc)
        reader.close()
        self._tally.add("skipped")


def log_prefix(cls: type, s3_uri: object) -> None:
    """Tells that a dataset of a prefix is built."""
    _log.info("Building %s from_prefix s3_uri=%r", cls.__name__, s3_uri)


def log_objects(cls: type) -> None:
    """Tells that a dataset of given objects is built."""
    _log.info("Building %s from_objects", cls.__name__)


def _uri(reader: S3Reader) -> str:
    return f"s3://{reader.bucket}/{reader.key}"

"""What the datasets of shards share: a client, a cache, and the transform that makes the samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.core import S3Client, UserAgent
from s3torch.core.errors import ConfigurationError
from s3torch.datasets._constructors import SourceConstructors
from s3torch.datasets.caching import make_cache
from s3torch.datasets.shared_listing import SharedFolder, SharedListing
from s3torch.datasets.sources import ObjectsSource, subject_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from s3torch.core import S3ClientConfig
    from s3torch.datasets.sources import ObjectSource
    from s3torch.datasets.table import ObjectTable


class SampleDataset(SourceConstructors):
    """Base of the datasets of shards; not for direct use."""

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: ObjectSource,
        *,
        agent: str,
        endpoint: str | None,
        transform: Callable[[Any], Any] | None,
        s3client_config: S3ClientConfig | None,
        cache_dir: str | os.PathLike[str] | None,
        cache_limit: int | None,
    ) -> None:
        if not callable(get_dataset_objects) or not (transform is None or callable(transform)):
            raise ConfigurationError("get_dataset_objects and transform must be callable")
        self._get_dataset_objects = get_dataset_objects
        self._transform = transform
        self._cache = make_cache(cache_dir, cache_limit)
        subject = subject_of(get_dataset_objects, (region, endpoint, s3client_config))
        self._shared_listing = SharedListing(SharedFolder(subject))
        self._client = S3Client(
            region, endpoint=endpoint, user_agent=UserAgent([agent]), s3client_config=s3client_config
        )

    @classmethod
    def from_objects(
        cls,
        object_uris: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        region: str | None = None,
        **options: Any,
    ) -> Self:
        """Makes a dataset of the shards with these URIs, in their order.

        The other arguments are those of the class.

        Raises:
            ConfigurationError: A URI or another argument is wrong.
        """
        return cls(region, ObjectsSource.from_uris(object_uris), **options)

    @property
    def region(self) -> str | None:
        """The region that was given."""
        return self._client.region

    @property
    def endpoint(self) -> str | None:
        """The endpoint that was given."""
        return self._client.endpoint

    def _listing(self) -> ObjectTable:
        """All shards; listed once by all processes of the dataset together."""
        return self._shared_listing.get(lambda: self._get_dataset_objects(self._client))

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

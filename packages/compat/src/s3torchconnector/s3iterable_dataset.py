"""The dataset that streams, as s3torchconnector has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.datasets import S3IterableDataset as CoreIterableDataset
from s3torchconnector._s3client._s3client import S3Client
from s3torchconnector._s3dataset_common import identity
from s3torchconnector.s3reader.constructor import drop_in_constructor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

    from s3torch.core import S3BucketKeyData, S3ClientConfig, S3Reader
    from s3torchconnector.s3reader.protocol import S3ReaderConstructorProtocol

__all__ = ["S3IterableDataset"]


class S3IterableDataset(CoreIterableDataset):
    """The objects of a listing, one after the other.

    Args:
        region: The region.
        get_dataset_objects: Takes the client and returns the objects.
        endpoint: The URL of a store that speaks S3.
        transform: Makes a sample of an unread reader.
        s3client_config: All other settings.
        enable_sharding: Shares the objects out between ranks and workers.
        reader_constructor: How objects are read.
        options: What the class of the same name in ``s3torch.datasets`` also takes.
    """

    client_class = S3Client

    def __init__(
        self,
        region: str,
        get_dataset_objects: Callable[[S3Client], Iterable[S3BucketKeyData]],
        endpoint: str | None = None,
        transform: Callable[[S3Reader], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,  # noqa: FBT001, FBT002 - positional, as users know it
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            region,
            get_dataset_objects,  # type: ignore[arg-type]  # It is called with a client of client_class.
            endpoint,
            transform,
            s3client_config,
            enable_sharding,
            None if reader_constructor is None else drop_in_constructor(reader_constructor),
            **options,
        )

    @classmethod
    def from_prefix(  # type: ignore[override]
        cls,
        s3_uri: str,
        *,
        region: str,
        endpoint: str | None = None,
        transform: Callable[[S3Reader], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Any,
    ) -> Self:
        """Makes a dataset of all objects whose key begins with the key of the URI."""
        options |= {"endpoint": endpoint, "transform": transform, "s3client_config": s3client_config}
        options |= {"reader_constructor": reader_constructor, "enable_sharding": enable_sharding}
        return super().from_prefix(s3_uri, region=region, **options)

    @classmethod
    def from_objects(  # type: ignore[override]
        cls,
        object_uris: str | Iterable[str],
        *,
        region: str,
        endpoint: str | None = None,
        transform: Callable[[S3Reader], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Any,
    ) -> Self:
        """Makes a dataset of one URI or of several in their order."""
        options |= {"endpoint": endpoint, "transform": transform, "s3client_config": s3client_config}
        options |= {"reader_constructor": reader_constructor, "enable_sharding": enable_sharding}
        return super().from_objects(object_uris, region=region, **options)

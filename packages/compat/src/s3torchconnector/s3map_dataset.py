"""The dataset with a length, as s3torchconnector has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.datasets import S3MapDataset as CoreMapDataset
from s3torchconnector._s3client._s3client import S3Client
from s3torchconnector._s3dataset_common import identity
from s3torchconnector.s3reader.constructor import drop_in_constructor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

    from s3torch.core import S3BucketKeyData, S3ClientConfig, S3Reader
    from s3torchconnector.s3reader.protocol import S3ReaderConstructorProtocol

__all__ = ["S3MapDataset"]


class S3MapDataset(CoreMapDataset):
    """Objects of S3 by their number.

    Args:
        region: The region.
        get_dataset_objects: Takes the client and returns the objects.
        endpoint: The URL of a store that speaks S3.
        transform: Makes a sample of an unread reader.
        s3client_config: All other settings.
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
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            region,
            get_dataset_objects,  # type: ignore[arg-type]  # It is called with a client of client_class.
            endpoint,
            transform,
            s3client_config,
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
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Any,
    ) -> Self:
        """Makes a dataset of all objects whose key begins with the key of the URI."""
        options |= {"endpoint": endpoint, "transform": transform, "s3client_config": s3client_config}
        options |= {"reader_constructor": reader_constructor}
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
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Any,
    ) -> Self:
        """Makes a dataset of one URI or of several in their order."""
        options |= {"endpoint": endpoint, "transform": transform, "s3client_config": s3client_config}
        options |= {"reader_constructor": reader_constructor}
        return super().from_objects(object_uris, region=region, **options)

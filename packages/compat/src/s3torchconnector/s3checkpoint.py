"""Checkpoints as single objects, as s3torchconnector has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.core import S3Checkpoint as CoreCheckpoint
from s3torchconnector._s3client.s3client_config import drop_in_config
from s3torchconnector.s3reader.constructor import drop_in_constructor
from s3torchconnector.s3reader.sequential import SequentialS3Reader

if TYPE_CHECKING:
    from s3torch.core import S3ClientConfig

__all__ = ["S3Checkpoint"]


class S3Checkpoint(CoreCheckpoint):
    """Opens objects in S3 as files to save checkpoints to and to load them from.

    Args:
        region: The region of the buckets.
        endpoint: The URL of a store that speaks S3.
        s3client_config: All other settings.
    """

    def __init__(
        self,
        region: str,
        endpoint: str | None = None,
        s3client_config: S3ClientConfig | None = None,
    ) -> None:
        make = drop_in_constructor(SequentialS3Reader)
        super().__init__(region, endpoint, drop_in_config(s3client_config), reader_constructor=make)

"""How much one request of the control plane may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sized

# https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
MAX_KEYS = 1000


def check_deleted(keys: Sized, bucket: str) -> None:
    """Refuses to delete more than S3 does at a time."""
    if len(keys) > MAX_KEYS:
        raise ConfigurationError(
            f"one request deletes up to {MAX_KEYS} objects, got {len(keys)}", bucket=bucket
        )

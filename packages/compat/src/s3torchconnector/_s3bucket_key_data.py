"""Where an object is."""

from __future__ import annotations

from s3torch.core import S3BucketKeyData

__all__ = ["S3BucketKeyData"]

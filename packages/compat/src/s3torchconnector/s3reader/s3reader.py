"""What all readers share."""

from __future__ import annotations

from s3torch.core import S3Reader

__all__ = ["S3Reader"]

"""The reader for sparse reads."""

from __future__ import annotations

from s3torch.core import RangedS3Reader

__all__ = ["RangedS3Reader"]

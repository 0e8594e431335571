"""The reader for distributed checkpoints."""

from __future__ import annotations

from s3torch.dcp import DCPOptimizedS3Reader, ItemRange, RangeGroup

__all__ = ["DCPOptimizedS3Reader", "ItemRange", "RangeGroup"]

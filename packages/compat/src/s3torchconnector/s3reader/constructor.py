"""How readers are made."""

from __future__ import annotations

from s3torch.core import S3ReaderConstructor
from s3torch.dcp import DCPOptimizedConstructor

__all__ = ["DCPOptimizedConstructor", "S3ReaderConstructor"]

"""The file that an object is written through."""

from __future__ import annotations

from s3torch.core import S3Writer

__all__ = ["S3Writer"]

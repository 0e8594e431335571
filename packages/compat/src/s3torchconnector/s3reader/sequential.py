"""The default reader."""

from __future__ import annotations

from s3torch.core import SequentialS3Reader

__all__ = ["SequentialS3Reader"]

"""What the ``User-Agent`` header says."""

from __future__ import annotations

from s3torch.core import UserAgent

__all__ = ["UserAgent"]

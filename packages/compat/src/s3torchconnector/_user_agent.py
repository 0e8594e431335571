"""What requests say they come from."""

from __future__ import annotations

from s3torch.core import UserAgent

__all__ = ["UserAgent"]

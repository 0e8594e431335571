"""The one error class that code written against s3torchconnector catches."""

from __future__ import annotations

from s3torch.core import S3Error

__all__ = ["S3Exception"]

# An alias, so that one ``except`` catches what the drop-in raises and what s3torch raises.
S3Exception = S3Error

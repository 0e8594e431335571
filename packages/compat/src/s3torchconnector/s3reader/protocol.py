"""What a reader constructor is."""

from __future__ import annotations

from s3torch.core import GetStreamCallable, S3ReaderConstructorProtocol
from s3torch.dcp import DCPS3ReaderConstructorProtocol

__all__ = ["DCPS3ReaderConstructorProtocol", "GetStreamCallable", "S3ReaderConstructorProtocol"]

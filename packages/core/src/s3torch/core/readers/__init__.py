"""Readers: S3 objects as binary files. One reader, and a policy for each kind; the client makes them."""

from s3torch.core.readers._constructor import S3ReaderConstructor, S3ReaderConstructorProtocol
from s3torch.core.readers._kinds import RangedS3Reader, SequentialS3Reader
from s3torch.core.readers._reader import S3Reader

__all__ = [
    "RangedS3Reader",
    "S3Reader",
    "S3ReaderConstructor",
    "S3ReaderConstructorProtocol",
    "SequentialS3Reader",
]

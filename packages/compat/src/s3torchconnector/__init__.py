"""A drop-in for code written against s3torchconnector, on s3torch.

The names and signatures are those that such code imports; what they do is s3torch's. Importing it loads
neither Lightning nor torch's distributed checkpoints.
"""

from __future__ import annotations

import s3torchconnector._startup  # noqa: F401 - It has to come first, and acts at import.

# An alias, so that one ``except`` catches what the drop-in raises and what s3torch raises.
from s3torch.core import S3Error as S3Exception
from s3torch.core import S3Reader, S3Writer
from s3torchconnector._s3client.s3client_config import S3ClientConfig
from s3torchconnector._version import __version__
from s3torchconnector.s3checkpoint import S3Checkpoint
from s3torchconnector.s3iterable_dataset import S3IterableDataset
from s3torchconnector.s3map_dataset import S3MapDataset
from s3torchconnector.s3reader.constructor import S3ReaderConstructor

__all__ = [
    "S3Checkpoint",
    "S3ClientConfig",
    "S3Exception",
    "S3IterableDataset",
    "S3MapDataset",
    "S3Reader",
    "S3ReaderConstructor",
    "S3Writer",
    "__version__",
]

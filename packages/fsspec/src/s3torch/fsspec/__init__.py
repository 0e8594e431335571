"""An fsspec filesystem for Amazon S3, on the s3torch client and without aiobotocore.

Installed, it owns ``s3://`` and ``s3a://`` in fsspec: ``fsspec.open("s3://bucket/key")`` uses it.
"""

from __future__ import annotations

from s3torch.fsspec._files import DirectoryNotEmptyError, ObjectExistsError
from s3torch.fsspec._filesystem import S3FileSystem
from s3torch.fsspec._version import __version__

__all__ = ["DirectoryNotEmptyError", "ObjectExistsError", "S3FileSystem", "__version__"]

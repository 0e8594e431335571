"""An fsspec filesystem for Amazon S3, on the s3torch client and without aiobotocore.

Installed, it owns ``s3://`` and ``s3a://`` in fsspec: ``fsspec.open("s3://bucket/key")`` uses it.
"""

from __future__ import annotations

from s3torch.fsspec._version import __version__
from s3torch.fsspec.errors import DirectoryNotEmptyError, ObjectExistsError
from s3torch.fsspec.filesystem import S3FileSystem

__all__ = ["DirectoryNotEmptyError", "ObjectExistsError", "S3FileSystem", "__version__"]

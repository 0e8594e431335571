"""The error, under the name of the module that code for s3torchconnector often takes it from."""

from __future__ import annotations

from s3torchconnector import S3Exception, __version__

__all__ = ["S3Exception", "__version__"]

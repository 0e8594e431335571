"""The name of ``s3torch.core.readers`` at its former place."""

from s3torch.core.readers import S3Reader

__all__ = ["S3Reader"]

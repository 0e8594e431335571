"""What users import of the native package of s3torchconnector: its error, and a level of logging.

Nothing native is here: bytes are moved by the transports of s3torch.
"""

from __future__ import annotations

from s3torchconnector import S3Exception, __version__
from s3torchconnectorclient._logger_patch import TRACE as LOG_TRACE

__all__ = ["LOG_TRACE", "S3Exception", "__version__"]

"""What users import of the native package of s3torchconnector: its error, and a level of logging.

Nothing native is here: bytes are moved by the transports of s3torch.
"""

from __future__ import annotations

import logging

from s3torchconnector import S3Exception, __version__

__all__ = ["LOG_TRACE", "S3Exception", "__version__"]

LOG_TRACE = 5
"""The level below ``logging.DEBUG`` that is called TRACE."""

logging.addLevelName(LOG_TRACE, "TRACE")

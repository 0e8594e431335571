"""The variables with which s3torchconnector switches native logs on, as those of s3torch.

``S3_TORCH_CONNECTOR_DEBUG_LOGS`` is a level, or a list like ``debug,awscrt=off`` in which a level with a
target counts for that target alone. What is native here is awscrt, so its level is that of the target
``awscrt``, else the one without a target. ``S3_TORCH_CONNECTOR_LOGS_DIR_PATH`` is the folder for the files.
"""

from __future__ import annotations

import logging
import os

__all__ = ["native_level", "pass_on"]

_FILTER = "S3_TORCH_CONNECTOR_DEBUG_LOGS"
_FOLDER = "S3_TORCH_CONNECTOR_LOGS_DIR_PATH"
_LEVELS = {"off", "error", "warn", "info", "debug", "trace"}
_TARGET = "awscrt"

_log = logging.getLogger(__name__)


def native_level(filters: str) -> str:
    """Finds the level of awscrt in a list of filters.

    Raises:
        ValueError: The list is no list of levels and targets with levels.
    """
    levels = {"": "off"}
    for part in filter(None, (part.strip() for part in filters.split(","))):
        target, _, level = part.rpartition("=")
        if level.lower() not in _LEVELS:
            raise ValueError(f"{part!r} has none of the levels {', '.join(sorted(_LEVELS))}")
        levels[target.strip()] = level.lower()
    return levels.get(_TARGET, levels[""])


def pass_on() -> None:
    """Sets the variables of s3torch, which other processes inherit; those that are set already win."""
    filters = os.environ.get(_FILTER)
    if filters is None:
        return
    try:
        level = native_level(filters)
    except ValueError as exc:
        _log.warning("%s=%r is ignored: %s", _FILTER, filters, exc)
        return
    os.environ.setdefault("S3TORCH_CRT_LOG", level)
    folder = os.environ.get(_FOLDER)
    if folder:
        os.environ.setdefault("S3TORCH_CRT_LOG_DIR", folder)


pass_on()

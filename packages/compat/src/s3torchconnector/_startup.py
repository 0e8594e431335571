"""What importing the drop-in does, once: checks that it is alone, and turns on the logs that are asked for.

Other distributions have the import names ``s3torchconnector`` and ``s3torchconnectorclient``, too, and may
not be installed beside this one.

``S3_TORCH_CONNECTOR_DEBUG_LOGS`` is a level, or a list like ``debug,awscrt=off`` in which a level with a
target is for that target alone. The native library here is awscrt, so its level is that of the target
``awscrt``, or else the one without a target. ``S3_TORCH_CONNECTOR_LOGS_DIR_PATH`` is the folder for logs.
"""

from __future__ import annotations

import logging
import os
from importlib.metadata import PackageNotFoundError, version

# The distributions that own import names of this one.
_OTHERS = ("s3torchconnector", "s3torchconnectorclient")
_FILTER = "S3_TORCH_CONNECTOR_DEBUG_LOGS"
_FOLDER = "S3_TORCH_CONNECTOR_LOGS_DIR_PATH"
_LEVELS = {"off", "error", "warn", "info", "debug", "trace"}
_TARGET = "awscrt"

_log = logging.getLogger(__name__)


def check_alone() -> None:
    """Checks that the distributions that this one replaces are not installed as well.

    Raises:
        ImportError: One is; files of either may then be those of the other.
    """
    found = []
    for name in _OTHERS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if found:
        raise ImportError(
            f"s3torch-compat is installed beside {' and '.join(found)}, which it takes the place of; run: "
            f"pip uninstall {' '.join(_OTHERS)} && pip install --force-reinstall --no-deps s3torch-compat"
        )


def native_level(filters: str) -> str:
    """Returns the level of awscrt in a list of filters.

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


def set_log_variables() -> None:
    """Sets the variables of s3torch, which other processes inherit, where they are not set already."""
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


check_alone()
set_log_variables()

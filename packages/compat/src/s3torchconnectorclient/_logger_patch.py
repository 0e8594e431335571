"""A level of logging below ``logging.DEBUG``."""

from __future__ import annotations

import logging

__all__ = ["TRACE"]

TRACE = 5
"""The level below ``logging.DEBUG`` that is called TRACE."""

logging.addLevelName(TRACE, "TRACE")

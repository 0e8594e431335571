"""The level below ``logging.DEBUG`` that is called TRACE."""

from __future__ import annotations

import logging

__all__ = ["TRACE"]

TRACE = 5

logging.addLevelName(TRACE, "TRACE")

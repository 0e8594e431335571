"""Many small objects, which several questions read."""

from __future__ import annotations

import os
from typing import Any

from servers import put_objects

COUNT = int(os.environ.get("BENCH_OBJECTS", "1000"))
SIZE = 100 * 1024
PREFIX = "small/"


def prepare(boto: Any) -> None:
    """Puts them."""
    put_objects(boto, [(PREFIX, COUNT, SIZE)])

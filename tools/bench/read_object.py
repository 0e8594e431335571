"""One large object, which several questions read."""

from __future__ import annotations

import io
from typing import Any

from libraries import BUCKET
from states import MIB, size_from_environment

SIZE = size_from_environment(256 * MIB)
KEY = "large"


def prepare(boto: Any) -> None:
    """Puts it."""
    boto.upload_fileobj(io.BytesIO(bytes(range(256)) * (SIZE // 256)), BUCKET, KEY)

"""Which of the listed objects belong to a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core import S3BucketKeyData

__all__ = ["Selection"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A filter of objects; all conditions have to hold.

    To work in spawned workers, ``where`` has to be picklable.

    Attributes:
        suffix: What the key ends with, or several of which it ends with one.
        min_size: The least bytes.
        max_size: The most bytes.
        where: Called with each ``S3BucketKeyData``; true for those that belong to the dataset.
        skip_markers: Leaves out what folders are marked with: empty objects whose key ends in ``/``.
    """

    suffix: str | tuple[str, ...] | None = None
    min_size: int | None = None
    max_size: int | None = None
    where: Callable[[S3BucketKeyData], object] | None = None
    skip_markers: bool = False

    def __post_init__(self) -> None:
        suffixes = self.suffix if isinstance(self.suffix, tuple) else (self.suffix or "",)
        if not all(isinstance(suffix, str) for suffix in suffixes):
            raise ConfigurationError(f"suffix must be a string or a tuple of strings, got {self.suffix!r}")
        if self.where is not None and not callable(self.where):
            raise ConfigurationError(f"where must be callable, got {self.where!r}")

    def __call__(self, item: S3BucketKeyData) -> bool:
        """Tells whether an object belongs to the dataset.

        Raises:
            ConfigurationError: Sizes are asked for and the source does not tell them.
        """
        if self.suffix is not None and not item.key.endswith(self.suffix):
            return False
        if self.min_size is not None or self.max_size is not None:
            if item.object_info is None:
                raise ConfigurationError(
                    f"no size is known of s3://{item.bucket}/{item.key}; a prefix and a manifest have sizes"
                )
            size = item.object_info.size
            if size < (self.min_size or 0) or (self.max_size is not None and size > self.max_size):
                return False
        # Where the size is unknown, the name alone has to do.
        empty = item.object_info is None or item.object_info.size == 0
        if self.skip_markers and empty and item.key.endswith("/"):
            return False
        return self.where is None or bool(self.where(item))

"""Errors that only a filesystem has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.core import PreconditionFailedError, S3Error

if TYPE_CHECKING:
    from typing import Self

__all__ = ["DirectoryNotEmptyError", "ObjectExistsError"]


class ObjectExistsError(PreconditionFailedError, FileExistsError):
    """There is something with this name already, and it was to be created."""

    @classmethod
    def from_precondition(cls, error: S3Error) -> Self:
        """Returns the same facts as ``error``, which said that the object is there already."""
        return cls(
            "the object exists already",
            operation=error.operation,
            bucket=error.bucket,
            key=error.key,
            code=error.code,
            status=error.status,
            request_id=error.request_id,
            host_id=error.host_id,
        )


class DirectoryNotEmptyError(S3Error, OSError):
    """A directory with objects in it was to be removed without them."""

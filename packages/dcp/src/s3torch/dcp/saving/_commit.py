"""How a checkpoint becomes visible: by one atomic PUT, in the place of a predecessor that is known.

The metadata of a checkpoint names all its files, and no file of a visible checkpoint is ever written over. So
at any moment there is the old checkpoint or the new one, whole. When two jobs save to one path, each commit
takes the place of one that it has seen, and only the files of that one are removed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from s3torch.core.errors import ConflictError, NotFoundError, PreconditionFailedError, S3Error
from s3torch.dcp._filesystem import join_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from s3torch.core import PutOptions
    from s3torch.dcp._filesystem import S3FileSystem

# What torch's own writer says.
EXISTS = "Checkpoint already exists and self.overwrite=False."
_PAGE = 1000
_ATTEMPTS = 10
_NOT_IMPLEMENTED = 501


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What was at the path of a checkpoint before the save.

    Attributes:
        committed: There is a checkpoint.
        taken: There are files with the names that this save would use, of a save that was not completed.
    """

    committed: bool
    taken: bool

    @property
    def is_fresh(self) -> bool:
        """Tells whether files can have their plain names."""
        return not self.committed and not self.taken

    @classmethod
    def look(
        cls, fs: S3FileSystem, path: str, *, metadata_name: str, prefixes: Iterable[str], suffix: str
    ) -> Surroundings:
        """Lists the path, with one request in all usual cases.

        Args:
            fs: The file system.
            path: The URI of the checkpoint.
            metadata_name: The name of the object that makes it visible.
            prefixes: What the names of the files begin with.
            suffix: What they end with.
        """
        names = list(islice(fs.walk(path), _PAGE))
        committed = metadata_name in names
        if not committed and len(names) == _PAGE:
            committed = fs.exists(join_path(path, metadata_name))
        beginnings = tuple(prefix.lstrip("/") for prefix in prefixes)
        taken = any(name.startswith(beginnings) and name.endswith(suffix) for name in names)
        return cls(committed, taken)


def is_refused(error: S3Error) -> bool:
    """Tells whether a conditional PUT failed for its condition, or because the store knows no conditions."""
    return isinstance(error, PreconditionFailedError | ConflictError) or error.status == _NOT_IMPLEMENTED


@dataclass(frozen=True, slots=True)
class Committed:
    """The metadata of a checkpoint as it is stored."""

    etag: str | None
    body: bytes


class CommitObject:
    """The object whose PUT makes a checkpoint visible.

    Args:
        fs: The file system.
        uri: Where it is.
        options: How it is stored.
    """

    def __init__(self, fs: S3FileSystem, uri: str, options: PutOptions) -> None:
        self._fs = fs
        self._uri = uri
        self._options = options

    def read(self) -> Committed | None:
        """Reads what is there now."""
        try:
            with self._fs.create_stream(self._uri, "rb") as stream:
                body = bytes(stream.read())
                return Committed(getattr(stream, "etag", None), body)
        except NotFoundError:
            return None

    def put(self, body: bytes, *, overwrite: bool, is_new: bool) -> Committed | None:
        """Commits, and returns what was there before.

        Args:
            body: The new metadata.
            overwrite: It may take the place of what is there.
            is_new: There was nothing when the save began, so nothing is read first.

        Raises:
            RuntimeError: Something is there, and ``overwrite`` is false.
        """
        if overwrite:
            return self.replace(body, is_new=is_new)
        if not self.create(body):
            raise RuntimeError(EXISTS)
        return None

    def create(self, body: bytes) -> bool:
        """Commits where nothing is; returns ``False`` where another job was first."""
        try:
            self._put(body, replace(self._options, if_none_match="*"))
        except (PreconditionFailedError, ConflictError):
            # Or the PUT has succeeded, its answer was lost, and it was repeated.
            present = self.read()
            return present is not None and present.body == body
        return True

    def replace(self, body: bytes, *, is_new: bool) -> Committed | None:
        """Commits in the place of what is there, and returns that.

        Args:
            body: The new metadata.
            is_new: There was nothing when the save began, so nothing is read first.
        """
        previous = None if is_new else self.read()
        for _ in range(_ATTEMPTS):
            try:
                self._put(body, self._conditions(previous))
            except S3Error as exc:
                if not is_refused(exc) and not (previous is not None and isinstance(exc, NotFoundError)):
                    raise
                if exc.status == _NOT_IMPLEMENTED:
                    break
                present = self.read()
                if present is not None and present.body == body:
                    return previous
                if present == previous and isinstance(exc, PreconditionFailedError):
                    # The condition does hold: the store does not know it.
                    break
                previous = present
            else:
                return previous
        self._put(body, self._options)
        return previous

    def _conditions(self, previous: Committed | None) -> PutOptions:
        if previous is None:
            return replace(self._options, if_none_match="*")
        return replace(self._options, if_match=previous.etag)

    def _put(self, body: bytes, options: PutOptions) -> None:
        with self._fs.create_stream(self._uri, "wb", put_options=options) as stream:
            stream.write(body)


def remove_replaced(
    fs: S3FileSystem, path: str, list_old: Callable[[], set[str]], *, kept: Collection[str]
) -> None:
    """Removes the files of the old checkpoint that the new one does not have.

    What cannot be removed stays, with a warning: the new checkpoint is whole without that.

    Args:
        fs: The file system.
        path: The URI of the checkpoint.
        list_old: Returns the names of the files of the old one.
        kept: The names of the files that stay.
    """
    try:
        stale = list_old() - set(kept)
        fs.rm_files(join_path(path, name) for name in sorted(stale))
    except S3Error as exc:
        warnings.warn(
            f"the new checkpoint in {path} is complete, but files of the old one were left: {exc}",
            stacklevel=2,
        )

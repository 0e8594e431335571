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
class ExistingFiles:
    """What was at the path of a checkpoint before the save.

    Attributes:
        committed: There is a checkpoint.
        taken: There are files with the names that this save would use, of a save that was not completed.
    """

    committed: bool
    taken: bool

    @property
    def is_fresh(self) -> bool:
        """Whether files can have their plain names."""
        return not self.committed and not self.taken


def find_existing(
    fs: S3FileSystem,
    path: str,
    *,
    metadata_name: str,
    prefixes: Iterable[str],
    suffix: str,
    overwrite: bool,
) -> ExistingFiles:
    """Lists the path of a checkpoint, with one request in all usual cases.

    Raises:
        RuntimeError: There is one, and ``overwrite`` is false.
    """
    names = list(islice(fs.walk(path), _PAGE))
    committed = metadata_name in names
    if not committed and len(names) == _PAGE:
        committed = fs.exists(join_path(path, metadata_name))
    if committed and not overwrite:
        raise RuntimeError(EXISTS)
    beginnings = tuple(prefix.lstrip("/") for prefix in prefixes)
    taken = any(name.startswith(beginnings) and name.endswith(suffix) for name in names)
    return ExistingFiles(committed, taken)


def is_refused(error: S3Error) -> bool:
    """Whether a conditional PUT failed for its condition, or because the store knows no conditions."""
    return isinstance(error, PreconditionFailedError | ConflictError) or error.status == _NOT_IMPLEMENTED


@dataclass(frozen=True, slots=True)
class _Stored:
    """The metadata of a checkpoint as it is stored."""

    etag: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """The PUT that makes a checkpoint visible."""

    fs: S3FileSystem
    path: str
    name: str
    options: PutOptions
    names_in: Callable[[bytes], set[str]]

    def run(self, body: bytes, *, overwrite: bool, is_new: bool, kept: Collection[str]) -> None:
        """Commits, and removes the files of the old checkpoint that the new one does not have.

        Files that cannot be removed stay, with a warning: the new checkpoint is whole without that.

        Args:
            body: The new metadata.
            overwrite: It may take the place of what is there.
            is_new: There was nothing when the save began, so nothing is read first.
            kept: The names of the files of the new checkpoint.

        Raises:
            RuntimeError: Something is there, and ``overwrite`` is false.
        """
        if not overwrite:
            if not self._create(body):
                raise RuntimeError(EXISTS)
            return
        previous = self._replace(body, None if is_new else self._read())
        if previous is None:
            return
        try:
            replaced = self.names_in(previous.body) - set(kept)
            self.fs.rm_files(join_path(self.path, name) for name in sorted(replaced))
        except S3Error as exc:
            warnings.warn(
                f"the new checkpoint in {self.path} is complete, but files of the old one were left: {exc}",
                stacklevel=2,
            )

    def _create(self, body: bytes) -> bool:
        """Commits where nothing is; returns ``False`` where another job was first."""
        try:
            self._put(body, replace(self.options, if_none_match="*"))
        except (PreconditionFailedError, ConflictError):
            return self._is_ours(self._read(), body)
        return True

    def _replace(self, body: bytes, previous: _Stored | None) -> _Stored | None:
        """Commits in the place of what is there, and returns that."""
        for _ in range(_ATTEMPTS):
            condition = {"if_match": previous.etag} if previous is not None else {"if_none_match": "*"}
            try:
                self._put(body, replace(self.options, **condition))
            except S3Error as exc:
                if not is_refused(exc) and not (previous is not None and isinstance(exc, NotFoundError)):
                    raise
                if exc.status == _NOT_IMPLEMENTED:
                    break
                present = self._read()
                if self._is_ours(present, body):
                    return previous
                if present == previous and isinstance(exc, PreconditionFailedError):
                    # The condition does hold: the store does not know it.
                    break
                previous = present
            else:
                return previous
        self._put(body, self.options)
        return previous

    @staticmethod
    def _is_ours(present: _Stored | None, body: bytes) -> bool:
        """Whether a refused commit was ambiguous: the PUT succeeded, its answer was lost, it was repeated."""
        return present is not None and present.body == body

    def _read(self) -> _Stored | None:
        try:
            with self.fs.create_stream(join_path(self.path, self.name), "rb") as stream:
                body = bytes(stream.read())
                return _Stored(getattr(stream, "etag", None), body)
        except NotFoundError:
            return None

    def _put(self, body: bytes, options: PutOptions) -> None:
        uri = join_path(self.path, self.name)
        with self.fs.create_stream(uri, "wb", put_options=options) as stream:
            stream.write(body)

"""New files of a checkpoint, under names that no visible checkpoint uses."""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from s3torch.core.errors import S3Error
from s3torch.dcp.committing import is_refused
from s3torch.dcp.metadata import FileFacts
from s3torch.dcp.paths import join_path

if TYPE_CHECKING:
    import io
    from collections.abc import Callable

    from s3torch.core import PutOptions
    from s3torch.dcp.filesystem import S3FileSystem
    from s3torch.dcp.plan import FilePlan

__all__ = ["NewFiles"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


class NewFiles:
    """Writes files beside those that are there; many threads may do so.

    Where nothing is, files have their plain names, and S3 is asked to refuse a name that is taken, as it is
    when another job saves to the same path. Then, and wherever there was something before, the names contain
    an id of this save. So no file that a checkpoint may name is written over.

    Args:
        fs: The file system.
        path: The URI of the checkpoint.
        options: How the files are stored.
        plain: Nothing is there that has the plain names.
    """

    def __init__(self, fs: S3FileSystem, path: str, *, options: PutOptions, plain: bool) -> None:
        self._fs = fs
        self._path = path
        self._options = options
        self._plain = plain
        self._save_id = uuid.uuid4().hex[:16]

    def write(self, file: FilePlan, fill: Callable[[io.IOBase, FilePlan], T]) -> tuple[T, FileFacts]:
        """Writes one file, and returns what ``fill`` has returned, and size and checksum.

        Args:
            file: The file with its plain name.
            fill: Writes the content into a stream; it is told the file with its name, and called again where
                that is another one.
        """
        if self._plain:
            try:
                return self._write(file, fill, replace(self._options, if_none_match="*"))
            except S3Error as exc:
                if not is_refused(exc):
                    raise
                _log.debug("%s gets another name: %s", file.name, exc)
                self._plain = False
        return self._write(file.named_for(self._save_id), fill, self._options)

    def _write(
        self, file: FilePlan, fill: Callable[[io.IOBase, FilePlan], T], options: PutOptions
    ) -> tuple[T, FileFacts]:
        uri = join_path(self._path, file.name)
        with self._fs.create_stream(uri, "wb", put_options=options) as stream:
            result = fill(stream, file)
        return result, FileFacts(stream.tell(), getattr(stream, "checksum", None))

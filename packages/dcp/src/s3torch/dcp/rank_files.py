"""The files that one rank writes in one save, under names that no visible checkpoint uses."""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from s3torch.core.errors import S3Error
from s3torch.dcp.committing import is_refused
from s3torch.dcp.metadata import FileFacts, note_facts
from s3torch.dcp.paths import join_path
from s3torch.dcp.saving import write_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch.distributed.checkpoint.planner import SavePlanner
    from torch.distributed.checkpoint.storage import WriteResult

    from s3torch.core import PutOptions
    from s3torch.dcp.filesystem import S3FileSystem
    from s3torch.dcp.plan import FilePlan

__all__ = ["RankFiles"]

_log = logging.getLogger(__name__)


class RankFiles:
    """Writes files, and notes the size and the checksum of each.

    Where nothing is, files have their plain names, and S3 is asked to refuse a name that is taken, as it is
    when another job saves to the same path. Then, and wherever there was something before, the names contain
    an id of this save. So no file that a checkpoint may name is written over.

    Args:
        fs: The file system.
        path: The URI of the checkpoint.
        planner: Gives the data.
        transforms: The extensions of torch's writer.
        options: How the files are stored.
        plain: Nothing is there that has the plain names.
        copy_ahead: How many bytes are copied ahead from an accelerator, for each file.
    """

    def __init__(
        self,
        fs: S3FileSystem,
        path: str,
        planner: SavePlanner,
        transforms: Any,
        *,
        options: PutOptions,
        plain: bool,
        copy_ahead: int,
    ) -> None:
        self._fs = fs
        self._path = path
        self._planner = planner
        self._transforms = transforms
        self._options = options
        self._plain = plain
        self._copy_ahead = copy_ahead
        self._save_id = uuid.uuid4().hex[:16]

    def write(self, file: FilePlan, check: Callable[[], None]) -> list[WriteResult]:
        """Writes one file. Many threads may do so.

        Args:
            file: What to write.
            check: Called between the items, to be stopped there.
        """
        if self._plain:
            try:
                return self._write(file, check, replace(self._options, if_none_match="*"))
            except S3Error as exc:
                if not is_refused(exc):
                    raise
                _log.debug("%s gets another name: %s", file.name, exc)
                self._plain = False
        return self._write(file.named_for(self._save_id), check, self._options)

    def _write(self, file: FilePlan, check: Callable[[], None], options: PutOptions) -> list[WriteResult]:
        uri = join_path(self._path, file.name)
        with self._fs.create_stream(uri, "wb", put_options=options) as stream:
            results = write_file(
                stream, file, self._planner, self._transforms, check, copy_ahead=self._copy_ahead
            )
        note_facts(results[0].storage_data, FileFacts(stream.tell(), getattr(stream, "checksum", None)))
        return results

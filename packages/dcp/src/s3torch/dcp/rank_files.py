"""The files that one rank writes in one save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.dcp.metadata import note_facts
from s3torch.dcp.saving import write_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch.distributed.checkpoint.planner import SavePlanner
    from torch.distributed.checkpoint.storage import WriteResult

    from s3torch.dcp.new_files import NewFiles
    from s3torch.dcp.plan import FilePlan

__all__ = ["RankFiles"]


class RankFiles:
    """Writes files, and notes the size and the checksum of each.

    Args:
        files: Gives them names that no checkpoint uses.
        planner: Gives the data.
        transforms: The extensions of torch's writer.
        copy_ahead: How many bytes are copied ahead from an accelerator, for each file.
    """

    def __init__(self, files: NewFiles, planner: SavePlanner, transforms: Any, *, copy_ahead: int) -> None:
        self._files = files
        self._planner = planner
        self._transforms = transforms
        self._copy_ahead = copy_ahead

    def write(self, file: FilePlan, check: Callable[[], None]) -> list[WriteResult]:
        """Writes one file. Many threads may do so.

        Args:
            file: What to write.
            check: Called between the items, to be stopped there.
        """
        results, facts = self._files.write(
            file,
            lambda stream, named: write_file(
                stream, named, self._planner, self._transforms, check, copy_ahead=self._copy_ahead
            ),
        )
        note_facts(results[0].storage_data, facts)
        return results

"""What sharded checkpoints need of ``s3torch.dcp``, which is imported with this module and not before."""

from __future__ import annotations

from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint import save

from s3torch.core import PutOptions
from s3torch.dcp import AsyncSaver, S3StorageReader, S3StorageWriter
from s3torch.lightning._shared_load import told_by_rank_0

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.storage import WriteResult

    from s3torch.core import S3Uri
    from s3torch.lightning._background import BackgroundSaves
    from s3torch.lightning._checkpoint_io import S3LightningCheckpoint

__all__ = ["S3StorageReader", "ShardsSaves", "ShardsWriter", "save"]


class ShardsWriter(S3StorageWriter):
    """Writes a checkpoint with the client of a plugin, and other files beside the shards.

    Args:
        plugin: The plugin of the trainer.
        uri: The checkpoint.
        beside: The content of the other files by name, on the rank that commits the checkpoint.
    """

    def __init__(
        self, plugin: S3LightningCheckpoint, uri: S3Uri, *, beside: Mapping[str, memoryview]
    ) -> None:
        options = PutOptions(storage_class=plugin._storage_class)
        super().__init__(plugin.region, str(uri), s3_client=plugin._client, put_options=options)
        self._uri, self._options, self._beside = uri, options, beside

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Stores the other files, and then commits the checkpoint."""
        for name, content in self._beside.items():
            place = self._uri.bucket, f"{self._uri.key}/{name}"
            with self.fs.client.put_object(*place, options=self._options) as writer:
                writer.write(content)
        super().finish(metadata, results)


class ShardsSaves:
    """Saves of shards in the background, as many at a time as a plugin may have in memory.

    Args:
        background: The other saves of the plugin, which learn of these.
    """

    def __init__(self, background: BackgroundSaves) -> None:
        self._background = background
        # The one that was used last is the last.
        self._savers = [AsyncSaver() for _ in range(background.max_pending)]
        self._saves: dict[AsyncSaver, Future[None]] = {}

    def save(self, uri: S3Uri, state: dict[str, Any], writer: S3StorageWriter) -> None:
        """Takes a copy of a state and returns; all ranks have to call it.

        Raises:
            BaseException: What could not be copied, or what an earlier save has failed with, on all ranks. In
                the latter case this one is carried out, nevertheless.
        """
        if self._background.is_pending(uri):
            # The older one would take the place of this one, if it were slower.
            self._background.wait()
        saver = self._savers.pop(told_by_rank_0(self._next))
        self._savers.append(saver)
        if saver in self._saves:
            # Then its failure is known, which the saver would otherwise raise instead of saving.
            wait([self._saves[saver]])
        started: Any = saver.save(state, storage_writer=writer)
        self._saves[saver] = self._background.follow(uri, started.result)
        told_by_rank_0(self._background.raise_failures)

    def _next(self) -> int:
        """Returns the place of a saver that has ended, or of the one that will end first."""
        saves = [self._saves.get(saver) for saver in self._savers]
        ended = [place for place, save in enumerate(saves) if save is None or save.done()]
        return ended[-1] if ended else 0

    def close(self) -> None:
        """Gives the memory back; the saves have ended."""
        for saver in self._savers:
            saver.close()

"""Which checkpoints a run on S3 keeps and goes on from.

Lightning's own callback takes names in an S3 listing for local files, so ``ckpt_path="last"`` finds nothing,
and it never asks whether a checkpoint on S3 is its own before it removes it.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs

from s3torch.core import ConfigurationError
from s3torch.lightning._checkpoint_io import s3_plugin
from s3torch.lightning._paths import METADATA, check_folders, checkpoint_uri, is_on_s3, repaired, resumed_uri
from s3torch.lightning.plugin import lightning_class

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
else:
    ModelCheckpoint = lightning_class(
        "ModelCheckpoint", "lightning.pytorch.callbacks", "pytorch_lightning.callbacks"
    )


class S3ModelCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint`` for folders on S3; it takes the same arguments.

    * ``Trainer.fit(ckpt_path="last")`` finds the last checkpoint of the folder, also a sharded one.
    * It removes only checkpoints that are in its folder, and never the one that the run was resumed from, as
      the callback does on a local disk.
    * ``save_last="link"`` copies the checkpoint within S3, under the name of the last one. That does not go
      with ``AsyncCheckpointIO``, where the checkpoint may not be there yet, and not with sharded ones. With
      ``S3LightningCheckpoint(async_save=True)`` the copy is made when the checkpoint is complete.
    * A folder whose URI has lost a slash in a ``pathlib.Path`` is repaired; one of the trainer or a logger is
      refused before the first epoch, because everything would go to a local folder ``s3:``.

    For a folder that is not on S3 it is the callback of Lightning.

    Args:
        dirpath: The folder, as in ``"s3://bucket/run"``; ``None`` is ``checkpoints`` in that of the logger or
            the trainer.
        filename: As in ``ModelCheckpoint``.
        options: All other arguments of ``ModelCheckpoint``.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(None if dirpath is None else repaired(dirpath), filename, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses folders that would be local by mistake.

        Raises:
            ConfigurationError: A folder has lost a slash, or ``save_last="link"`` does not work here.
        """
        check_folders(trainer)
        save_last = self.save_last
        if save_last == "link" and self._may_be_on_s3(trainer):
            _check_links(trainer)
            # Lightning would refuse it.
            self.save_last = True
        super().setup(trainer, pl_module, stage)
        self.save_last = save_last

    def file_exists(self, filepath: str | Path, trainer: Trainer) -> bool:
        """Whether there is such a checkpoint, or will be when a save in the background is done."""
        plugin = s3_plugin(trainer.strategy)
        if plugin is None or not is_on_s3(filepath):
            return super().file_exists(filepath, trainer)
        found = False
        if trainer.is_global_zero:
            found = plugin._is_pending(checkpoint_uri(filepath)) or self._fs.exists(os.fspath(filepath))
        return trainer.strategy.reduce_boolean_decision(found, all=False)

    def _may_be_on_s3(self, trainer: Trainer) -> bool:
        folders = [self.dirpath, trainer.default_root_dir, *(one.save_dir for one in trainer.loggers)]
        return any(str(folder).startswith("s3://") for folder in folders)

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        # Lightning asks before it has set the callback up.
        folder = repaired(self._ModelCheckpoint__resolve_ckpt_dir(trainer))  # type: ignore[attr-defined]
        self._fs, path = url_to_fs(folder)
        if "file" in self._fs.protocol:
            return super()._find_last_checkpoints(trainer)
        self._fs.invalidate_cache(path)
        try:
            entries = self._fs.ls(path, detail=True)
        except FileNotFoundError:
            return set()
        found = [one for entry in entries if (one := self._last_checkpoint(entry)) is not None]
        # One, because times are whole seconds, and Lightning would choose any of those that are as new.
        return {max(found)[2]} if found else set()

    def _last_checkpoint(self, entry: dict[str, Any]) -> tuple[datetime, int, str] | None:
        """Returns time, version and URI of a checkpoint; ``None`` if it is none of the last ones."""
        name = PurePosixPath(entry["name"])
        match = re.match(rf"{self.CHECKPOINT_NAME_LAST}(?:-v?(\d+))?", name.stem)
        if match is None or name.suffix != self.FILE_EXTENSION:
            return None
        uri = self._fs.unstrip_protocol(entry["name"].rstrip("/"))
        if entry["type"] == "directory":
            # It is complete if it has metadata, of which alone fsspec can tell Lightning the time.
            uri = f"{uri}/{METADATA}"
        try:
            return entry.get("LastModified") or self._fs.modified(uri), int(match[1] or 0), uri
        except FileNotFoundError:
            return None

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        if not str(previous).startswith("s3://"):
            return super()._should_remove_checkpoint(trainer, previous, current)
        kept = [current] if trainer.ckpt_path is None else [current, trainer.ckpt_path]
        uri = checkpoint_uri(previous)
        if any(is_on_s3(path) and uri == resumed_uri(path) for path in kept):
            return False
        folder = repaired(self.dirpath or "").rstrip("/")
        return str(previous).startswith(f"{folder}/") and is_on_s3(folder)

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        if not str(linkpath).startswith("s3://"):
            ModelCheckpoint._link_checkpoint(trainer, filepath, linkpath)
            return
        if trainer.is_global_zero and filepath != linkpath:
            plugin = s3_plugin(trainer.strategy)
            if plugin is not None:
                plugin._copy(checkpoint_uri(filepath), checkpoint_uri(linkpath))
            else:
                filesystem, source = url_to_fs(filepath)
                filesystem.cp_file(source, linkpath)
        trainer.strategy.barrier()


def _check_links(trainer: Trainer) -> None:
    strategy: Any = trainer.strategy
    if type(strategy.checkpoint_io).__name__ == "AsyncCheckpointIO":
        raise ConfigurationError(
            "save_last='link' does not work with AsyncCheckpointIO; use save_last=True, or "
            "S3LightningCheckpoint(async_save=True) without it"
        )
    is_sharded = getattr(strategy, "_save_distributed_checkpoint", False)
    if is_sharded or getattr(strategy, "_state_dict_type", "full") == "sharded":
        raise ConfigurationError("save_last='link' does not work with sharded checkpoints; use True")

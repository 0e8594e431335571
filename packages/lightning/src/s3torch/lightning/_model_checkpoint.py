"""Which checkpoints a run on S3 keeps and goes on from.

Lightning's own callback takes names in an S3 listing for local files, so ``ckpt_path="last"`` finds nothing,
and it never asks whether a checkpoint on S3 is its own before it removes it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs

from s3torch.core import ConfigurationError, parse_s3_uri
from s3torch.lightning.plugin import lightning_class

# What ``pathlib`` and ``os.path`` make of a URI: a slash is lost, and a folder may stand before it.
_MANGLED = re.compile(r"(?:.*/)?s3:/(?=[^/])")


if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
else:
    ModelCheckpoint = lightning_class(
        "ModelCheckpoint", "lightning.pytorch.callbacks", "pytorch_lightning.callbacks"
    )


class S3ModelCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint`` for folders on S3; it takes the same arguments.

    * ``Trainer.fit(ckpt_path="last")`` finds the last checkpoint of the folder.
    * It removes only checkpoints that are in its folder, and never the one that the run was resumed from, as
      the callback does on a local disk.
    * ``save_last="link"`` copies the checkpoint within S3, under the name of the last one. That does not go
      with ``AsyncCheckpointIO``, where the checkpoint may not be there yet.
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
        folder = None if dirpath is None else _MANGLED.sub("s3://", os.fspath(dirpath), count=1)
        super().__init__(folder, filename, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses folders that would be local by mistake.

        Raises:
            ConfigurationError: A folder has lost a slash, or ``save_last="link"`` does not work here.
        """
        folders: dict[str, str | None] = {"default_root_dir": trainer.default_root_dir}
        folders |= {f"the folder of {type(one).__name__}": one.save_dir for one in trainer.loggers}
        for name, folder in folders.items():
            if folder is not None and _MANGLED.match(os.fspath(folder)):
                raise ConfigurationError(
                    f"{name} is {os.fspath(folder)!r}, a local folder; give the URI as a string, not a Path"
                )
        save_last = self.save_last
        if save_last == "link" and self._may_be_on_s3(trainer):
            if type(trainer.strategy.checkpoint_io).__name__ == "AsyncCheckpointIO":
                raise ConfigurationError("save_last='link' does not work with AsyncCheckpointIO; use True")
            # Lightning would refuse it.
            self.save_last = True
        super().setup(trainer, pl_module, stage)
        self.save_last = save_last

    def _may_be_on_s3(self, trainer: Trainer) -> bool:
        folders = [self.dirpath, trainer.default_root_dir, *(one.save_dir for one in trainer.loggers)]
        return any(str(folder).startswith("s3://") for folder in folders)

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        # Lightning asks before it has set the callback up.
        folder = self._ModelCheckpoint__resolve_ckpt_dir(trainer)  # type: ignore[attr-defined]
        self._fs = url_to_fs(str(folder))[0]
        found = super()._find_last_checkpoints(trainer)
        return found if "file" in self._fs.protocol else set(map(self._fs.unstrip_protocol, found))

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        if not str(previous).startswith("s3://"):
            return super()._should_remove_checkpoint(trainer, previous, current)
        kept = [current] if trainer.ckpt_path is None else [current, trainer.ckpt_path]
        bucket, key = parse_s3_uri(previous)
        if any((bucket, key) == _split(path) for path in kept):
            return False
        folder = _split(self.dirpath or "")
        return folder is not None and (bucket, key[: len(folder[1]) + 1]) == (folder[0], f"{folder[1]}/")

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        if not str(linkpath).startswith("s3://"):
            ModelCheckpoint._link_checkpoint(trainer, filepath, linkpath)
            return
        if trainer.is_global_zero and filepath != linkpath:
            filesystem, source = url_to_fs(filepath)
            filesystem.cp_file(source, linkpath)
        trainer.strategy.barrier()


def _split(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Returns the bucket and the key of a path, without the slash of a folder; ``None`` if it is no URI."""
    text = _MANGLED.sub("s3://", os.fspath(path), count=1)
    if not text.startswith("s3://"):
        return None
    bucket, key = parse_s3_uri(text)
    return bucket, key.rstrip("/")

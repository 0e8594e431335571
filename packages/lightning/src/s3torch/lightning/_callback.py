"""A callback that Lightning adds to each trainer: what the plugin alone cannot know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.lightning._loader_state import begin_epoch, note_loader_states
from s3torch.lightning._paths import check_folders
from s3torch.lightning.plugin import lightning_class

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
else:
    Callback = lightning_class("Callback", "lightning.pytorch.callbacks", "pytorch_lightning.callbacks")


class S3TrainerCallback(Callback):
    """Refuses folders that are local by mistake, and helps the plugin and the loaders of s3torch.

    * A folder of the trainer, a logger or a callback whose URI has lost a slash is refused before the first
      epoch.
    * While the trainer restores a checkpoint, all ranks load it together: one downloads it.
    * What is saved of the loader counts only batches that were trained on.

    It does nothing for a trainer that has nothing on S3.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        check_folders(trainer)
        _let_all_ranks_load(trainer, together=True)

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        _let_all_ranks_load(trainer, together=False)

    on_train_start = on_validation_start = on_test_start = on_predict_start = on_sanity_check_start

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        begin_epoch(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        _let_all_ranks_load(trainer, together=False)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        _let_all_ranks_load(trainer, together=False)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        note_loader_states(trainer, checkpoint)


def callbacks() -> list[Callback]:
    """Lightning calls this for each trainer."""
    return [S3TrainerCallback()]


def _let_all_ranks_load(trainer: Any, *, together: bool) -> None:
    plugin = trainer.strategy.checkpoint_io
    plugin = getattr(plugin, "checkpoint_io", plugin)
    # Asked like this, because other trainers need not import the plugin.
    if hasattr(plugin, "_all_ranks_load"):
        plugin._all_ranks_load = together

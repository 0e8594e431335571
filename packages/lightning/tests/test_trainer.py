"""A trainer whose folder is on S3."""

from __future__ import annotations

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch.utils.data import DataLoader, TensorDataset

from s3torch.lightning import S3LightningCheckpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*LeafSpec.*is deprecated:FutureWarning"),
]


class Line(lightning.LightningModule):
    """A straight line through points."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch):
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.layer(x), y)
        self.log("loss", loss)
        self.log("epoch_number", float(self.current_epoch))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.rate)


def points():
    x = torch.linspace(-1, 1, 16).reshape(-1, 1)
    return DataLoader(TensorDataset(x, 2 * x + 1), batch_size=8)


def trainer(folder, io, *, epochs, logger=False, **checkpoint):
    return lightning.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        limit_train_batches=2,
        plugins=[io],
        callbacks=[ModelCheckpoint(f"{folder}/checkpoints", **checkpoint)],
        logger=logger,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )


@pytest.fixture
def checkpoints(names):
    start = "checkpoints/"
    return lambda: [name.removeprefix(start) for name in names() if name.startswith(start)]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_train_keep_the_best_and_resume(seaweedfs, folder, checkpoints, asynchronous):
    io = S3LightningCheckpoint(seaweedfs.region, endpoint=seaweedfs.endpoint)
    plugin = AsyncCheckpointIO(io) if asynchronous else io
    best = {"monitor": "epoch_number", "mode": "max", "save_top_k": 2, "filename": "{epoch}"}
    model = Line()
    first = trainer(folder, plugin, epochs=4, **best)
    first.fit(model, points())
    assert first.default_root_dir == folder
    assert checkpoints() == ["epoch=2.ckpt", "epoch=3.ckpt"]
    weights = io.load_checkpoint(f"{folder}/checkpoints/epoch=3.ckpt")["state_dict"]
    assert torch.equal(weights["layer.weight"], model.layer.weight)

    resumed = trainer(folder, plugin, epochs=6, **best)
    again = Line()
    resumed.fit(again, points(), ckpt_path=f"{folder}/checkpoints/epoch=3.ckpt")
    assert resumed.current_epoch == 6
    assert resumed.global_step == 12
    assert "epoch=5.ckpt" in checkpoints()
    # This one does not go through the plugin, but through fsspec.
    loaded = Line.load_from_checkpoint(f"{folder}/checkpoints/epoch=5.ckpt", weights_only=True)
    assert torch.equal(loaded.layer.weight, again.layer.weight)


def test_loggers_and_hyperparameters_go_to_the_folder(seaweedfs, folder, client, checkpoints):
    io = S3LightningCheckpoint(seaweedfs.region, endpoint=seaweedfs.endpoint)
    logger = CSVLogger(folder, name="log", version=0, flush_logs_every_n_steps=1)
    run = trainer(folder, io, epochs=2, logger=logger, save_top_k=-1, filename="{epoch}")
    run.fit(Line(), points())
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    metrics = client.get_object(bucket, f"{prefix}/log/version_0/metrics.csv").read()
    assert len(metrics.decode().splitlines()) == 5
    assert client.get_object(bucket, f"{prefix}/log/version_0/hparams.yaml").read() == b"rate: 0.1\n"
    assert checkpoints() == ["epoch=0.ckpt", "epoch=1.ckpt"]
    run.strategy.remove_checkpoint(f"{folder}/checkpoints/epoch=0.ckpt")
    assert checkpoints() == ["epoch=1.ckpt"]

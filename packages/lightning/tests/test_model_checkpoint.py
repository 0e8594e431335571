"""Which checkpoints a run on S3 keeps and goes on from."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch.utils.data import DataLoader, TensorDataset

from s3torch.core import ConfigurationError, S3Client
from s3torch.lightning import S3LightningCheckpoint, S3ModelCheckpoint
from s3torch.testing import Fault

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
]


class Line(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch):
        self.log("number", float(self.current_epoch))
        return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def fit(seaweedfs):
    """A function that runs a trainer with a callback and returns it."""

    def run(
        folder, callback, *, epochs, ckpt_path=None, plugin=lambda io: io, logger=False, async_save=False
    ):
        io = S3LightningCheckpoint(seaweedfs.region, endpoint=seaweedfs.endpoint, async_save=async_save)
        trainer = lightning.Trainer(
            default_root_dir=folder,
            max_epochs=epochs,
            plugins=[plugin(io)],
            callbacks=[callback],
            logger=logger,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        x = torch.linspace(-1, 1, 16).reshape(-1, 1)
        model = Line()
        trainer.fit(model, DataLoader(TensorDataset(x, x), batch_size=8), ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.mark.parametrize("dirpath", [True, False], ids=["dirpath", "default_root_dir"])
def test_last_is_found(names, folder, fit, dirpath):
    def callback():
        return S3ModelCheckpoint(f"{folder}/checkpoints" if dirpath else None, save_last=True)

    fit(folder, callback(), epochs=2)
    assert "checkpoints/last.ckpt" in names()
    resumed = fit(folder, callback(), epochs=5, ckpt_path="last")
    assert resumed.ckpt_path == f"{folder}/checkpoints/last.ckpt"
    assert resumed.global_step == 10
    assert resumed.fit_loop.epoch_progress.current.completed == 5


def test_nothing_is_found_where_nothing_is(folder, fit):
    with pytest.warns(UserWarning, match="no last checkpoint"):
        fit(folder, S3ModelCheckpoint(f"{folder}/checkpoints", save_last=True), epochs=1, ckpt_path="last")


@pytest.mark.promise(9)
def test_the_checkpoint_that_was_resumed_from_stays(names, folder, fit):
    def callback():
        return S3ModelCheckpoint(
            f"{folder}/run", "{epoch}", monitor="number", mode="max", save_top_k=1, save_last=False
        )

    fit(folder, callback(), epochs=2)
    assert names() == ["run/epoch=1.ckpt"]
    fit(folder, callback(), epochs=4, ckpt_path=f"{folder}/run/epoch=1.ckpt")
    # Of those of this run, one.
    assert names() == ["run/epoch=1.ckpt", "run/epoch=3.ckpt"]


@pytest.mark.promise(9)
@pytest.mark.parametrize("other", ["other", "run2", "run-old/run"])
def test_checkpoints_of_other_folders_stay(folder, fit, other):
    callback = S3ModelCheckpoint(f"{folder}/run", "{epoch}", monitor="number", mode="max", save_top_k=1)
    trainer = fit(folder, callback, epochs=1)
    current = f"{folder}/run/epoch=0.ckpt"
    assert not callback._should_remove_checkpoint(trainer, f"{folder}/{other}/epoch=0.ckpt", current)
    assert not callback._should_remove_checkpoint(trainer, current, current)
    assert callback._should_remove_checkpoint(trainer, f"{folder}/run/epoch=7.ckpt", current)


def test_the_last_one_as_a_copy_within_s3(names, folder, fit):
    callback = S3ModelCheckpoint(f"{folder}/run", "{epoch}", save_last="link")
    fit(folder, callback, epochs=2)
    assert names() == ["run/epoch=1.ckpt", "run/last.ckpt"]
    resumed = fit(folder, S3ModelCheckpoint(f"{folder}/run", save_last="link"), epochs=3, ckpt_path="last")
    assert resumed.global_step == 6
    with pytest.raises(ConfigurationError, match="AsyncCheckpointIO"):
        fit(folder, S3ModelCheckpoint(f"{folder}/run", save_last="link"), epochs=1, plugin=AsyncCheckpointIO)


def test_the_last_one_as_a_copy_of_one_that_is_still_uploaded(names, folder, fit):
    callback = S3ModelCheckpoint(f"{folder}/run", "{epoch}", save_last="link")
    fit(folder, callback, epochs=3, async_save=True)
    assert names() == ["run/epoch=2.ckpt", "run/last.ckpt"]
    trainer = fit(folder, S3ModelCheckpoint(f"{folder}/run"), epochs=3, ckpt_path="last")
    assert trainer.global_step == 6


def test_the_checkpoint_of_a_job_that_was_requeued_is_found(names, folder, fit):
    first = fit(f"{folder}/", S3ModelCheckpoint(f"{folder}/run"), epochs=1)
    path = first._checkpoint_connector.hpc_save_path(first.default_root_dir)
    first.save_checkpoint(path)
    assert "hpc_ckpt_1.ckpt" in names()
    again = fit(f"{folder}/", S3ModelCheckpoint(f"{folder}/run"), epochs=2, ckpt_path="hpc")
    assert again.global_step == 4


def test_a_name_is_taken_while_its_checkpoint_is_uploaded(folder, fit, proxy, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    callback = S3ModelCheckpoint(f"{folder}/run", "{epoch}")
    io = S3LightningCheckpoint(None, endpoint=proxy.endpoint, async_save=True)
    trainer = fit(folder, callback, epochs=1, plugin=lambda _: io)
    proxy.add(Fault.stall(0.5), method="PUT")
    trainer.save_checkpoint(f"{folder}/run/next.ckpt")
    assert callback.file_exists(f"{folder}/run/next.ckpt", trainer)
    assert not callback.file_exists(f"{folder}/run/other.ckpt", trainer)
    io.teardown()


def test_a_bucket_as_a_folder(seaweedfs, folder, fit):
    bucket = seaweedfs.create_bucket()
    callback = S3ModelCheckpoint(f"s3://{bucket}", "{epoch}", monitor="number", mode="max", save_top_k=1)
    fit(folder, callback, epochs=2)
    with S3Client(seaweedfs.region) as client:
        found = [info.key for page in client.list_objects(bucket, "") for info in page.object_info]
    assert found == ["epoch=1.ckpt"]


@pytest.mark.parametrize("mangle", [Path, lambda uri: Path.cwd() / uri])
def test_a_folder_that_has_lost_a_slash_is_repaired(names, folder, fit, mangle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(folder, S3ModelCheckpoint(mangle(f"{folder}/run"), "{epoch}"), epochs=1)
    assert names() == ["run/epoch=0.ckpt"]
    assert list(tmp_path.iterdir()) == []


def test_folders_that_would_be_local_by_mistake_are_refused(folder, fit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"default_root_dir .* as a string"):
        fit(Path(folder), S3ModelCheckpoint(f"{folder}/run"), epochs=1)
    with pytest.raises(ConfigurationError, match=r"CSVLogger .* as a string"):
        fit(folder, S3ModelCheckpoint(f"{folder}/run"), epochs=1, logger=CSVLogger(Path(folder)))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_local_folders_are_those_of_lightning(fit, tmp_path, folder):
    callback = S3ModelCheckpoint(tmp_path / "run", "{epoch}", save_last=True)
    io = S3LightningCheckpoint.__mro__[1]
    assert io.__name__ == "CheckpointIO"
    trainer = lightning.Trainer(default_root_dir=tmp_path, max_epochs=1, logger=False, callbacks=[callback])
    assert not callback._should_remove_checkpoint(trainer, str(tmp_path / "other/a.ckpt"), "b.ckpt")

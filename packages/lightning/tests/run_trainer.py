"""A training run on S3; a test runs it as a program, kills it, and runs it again."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from s3torch.core import ConfigurationError
from s3torch.datasets import ResumableLoader, S3MapDataset, S3Sampler

warnings.simplefilter("ignore")
STEPS, BATCH = 4, 2
# "lightning.pytorch" or "pytorch_lightning", imported before the classes that derive from its own.
pl = import_module(sys.argv[1])
loggers = import_module(f"{sys.argv[1]}.loggers")

from s3torch.lightning import S3LightningCheckpoint, S3ModelCheckpoint  # noqa: E402


def number_of(reader):
    return torch.tensor([float(reader.read())])


class Numbers(pl.LightningDataModule):
    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def train_dataloader(self):
        dataset = S3MapDataset.from_prefix(f"{self.folder}/data/", region=None, transform=number_of)
        return ResumableLoader(DataLoader(dataset, batch_size=BATCH, sampler=S3Sampler(dataset, seed=5)))

    test_dataloader = predict_dataloader = train_dataloader


class Model(pl.LightningModule):
    def __init__(self, killed_at=0):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch):
        if self.global_step and self.global_step == self.hparams.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.extend(int(number) for number in batch.flatten())
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        self.log("step_number", float(self.global_step))
        return loss

    def test_step(self, batch):
        self.log("mean", self.layer(batch).mean())

    def predict_step(self, batch):
        return self.layer(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.001)


def trainer_for(folder, *, logger=True, callbacks=None):
    best = {"monitor": "step_number", "mode": "max", "every_n_train_steps": 1, "filename": "{step}"}
    return pl.Trainer(
        default_root_dir=folder,
        max_epochs=3,
        plugins=[S3LightningCheckpoint(None, async_save=True)],
        callbacks=[S3ModelCheckpoint(f"{folder}/run", save_last=True, **best)]
        if callbacks is None
        else callbacks,
        logger=loggers_for(folder) if logger else False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )


def loggers_for(folder):
    csv = loggers.CSVLogger(folder, flush_logs_every_n_steps=1)
    return [csv, loggers.TensorBoardLogger(folder, name="board")]


def refused(folder):
    """Whether paths that have lost a slash are refused before anything was trained."""
    checkpoint = import_module(f"{sys.argv[1]}.callbacks").ModelCheckpoint
    found = []
    for root, callback in [
        (Path(folder), checkpoint()),
        (str(Path.cwd() / Path(folder)), checkpoint()),
        (folder, checkpoint(Path(folder))),
    ]:
        model = Model()
        try:
            trainer_for(root, logger=False, callbacks=[callback]).fit(model, datamodule=Numbers(folder))
        except ConfigurationError:
            found.append(not model.seen)
        else:
            found.append(False)
    return found


def main(folder, killed_at):
    assert find_spec("s3fs") is None
    model, numbers = Model(int(killed_at)), Numbers(folder)
    trainer = trainer_for(folder)
    trainer.fit(model, datamodule=numbers, ckpt_path="last")
    best = trainer.checkpoint_callback.best_model_path
    loaded = Model.load_from_checkpoint(f"{folder}/run/last.ckpt", weights_only=True)
    assert torch.equal(loaded.layer.weight, model.layer.weight)
    tested = trainer_for(folder, logger=False).test(
        Model(), datamodule=numbers, ckpt_path=best, verbose=False
    )
    predicted = trainer.predict(ckpt_path="best", datamodule=numbers)
    result = {
        "seen": model.seen,
        "resumed": trainer.ckpt_path,
        "best": best,
        "mean": tested[0]["mean"],
        "predicted": float(torch.cat(predicted).mean()),
        "refused": refused(folder),
        "left": sorted(str(path) for path in Path.cwd().rglob("*")),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(*sys.argv[2:])

"""Trains with Lightning, and keeps the checkpoints in S3. See README.md."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from s3torch.lightning import S3LightningCheckpoint, S3ModelCheckpoint


class Regression(LightningModule):
    """Learns to double a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Returns the loss of a batch."""
        (numbers,) = batch
        return nn.functional.mse_loss(self.layer(numbers), numbers * 2)

    def configure_optimizers(self) -> Any:
        """Returns the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main() -> None:
    """Trains up to an epoch, from the last checkpoint if there is one."""
    options = parse_arguments()
    torch.manual_seed(1)
    keeper = S3ModelCheckpoint(f"{options.root}/checkpoints", save_last=True, save_top_k=1)
    trainer = Trainer(
        max_epochs=options.epochs,
        plugins=[S3LightningCheckpoint(region=None)],
        callbacks=[keeper],
        default_root_dir=options.root,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    data = DataLoader(TensorDataset(torch.randn(64, 1)), batch_size=16)
    trainer.fit(Regression(), data, ckpt_path="last" if options.resume else None)
    print(f"epochs: {trainer.current_epoch}, last checkpoint: {keeper.last_model_path}")


def parse_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="the folder of the run, as in s3://my-bucket/examples/lightning")
    parser.add_argument("--epochs", type=int, default=2, help="up to which epoch")
    parser.add_argument("--no-resume", dest="resume", action="store_false", help="start from the beginning")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""What several ranks do; a test runs it as a program, and Lightning starts the other ranks."""

from __future__ import annotations

import json
import sys
import warnings

import lightning
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from s3torch.lightning import (
    S3LightningCheckpoint,
    S3ModelCheckpoint,
    S3ModelParallelStrategy,
)
from s3torch.lightning._callback import S3TrainerCallback

warnings.simplefilter("ignore")


class Line(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(4, 6)
        self.other = torch.nn.Linear(6, 1)

    def training_step(self, batch):
        return torch.nn.functional.mse_loss(self.other(self.layer(batch[0])), batch[1])

    def validation_step(self, batch):
        self.training_step(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def train_dataloader(self):
        x = torch.arange(64.0).reshape(16, 4) / 64
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)

    val_dataloader = train_dataloader


class SharedLine(Line):
    def configure_model(self):
        if not isinstance(self.layer.weight, DTensor):
            for part in (self.layer, self.other, self):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])


def strategy_of(kind, ranks):
    if kind == "ddp":
        return "ddp"
    sizes = {"data_parallel_size": ranks, "tensor_parallel_size": 1}
    return S3ModelParallelStrategy(**sizes, save_distributed_checkpoint=kind == "sharded")


def run(kind, folder, ranks, *, epochs, ckpt_path=None):
    """Trains, or with 0 epochs only loads, and returns what has come of it."""
    # In an environment where the package is installed, Lightning adds the callback itself.
    callbacks = [S3ModelCheckpoint(f"{folder}/{kind}", "{epoch}", save_last=True), S3TrainerCallback()]
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        strategy=strategy_of(kind, ranks),
        devices=ranks,
        accelerator="cpu",
        plugins=[S3LightningCheckpoint(None, async_save=True)],
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model = Line() if kind == "ddp" else SharedLine()
    if epochs:
        trainer.fit(model, ckpt_path=ckpt_path)
    else:
        trainer.validate(model, ckpt_path=ckpt_path, verbose=False)
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {
        "step": trainer.global_step,
        "weights": [round(float(number), 6) for value in weights.values() for number in value.flatten()],
        "from": str(trainer.ckpt_path),
    }


def main(folder, ranks, *runs):
    found = []
    for one in runs:
        kind, epochs, ckpt_path = one.split("=")
        found.append(run(kind, folder, int(ranks), epochs=int(epochs), ckpt_path=ckpt_path or None))
    if torch.distributed.get_rank() == 0:
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Training that goes on in mid-epoch, with the samples that it would have had."""

from __future__ import annotations

import io
import tarfile

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from s3torch.datasets import (
    ResumableLoader,
    S3IterableDataset,
    S3MapDataset,
    S3Sampler,
    S3ShardDataset,
)
from s3torch.lightning._callback import S3TrainerCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
]

COUNT, BATCH, EPOCHS = 11, 2, 3


@pytest.fixture
def data(folder, put):
    """A folder with objects and with archives whose samples are numbers."""
    for number in range(COUNT):
        put(f"objects/{number:02}", b"%d" % number)
    for shard in range(3):
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for number in range(shard, COUNT, 3):
                body = b"%d" % number
                member = tarfile.TarInfo(f"{number}.cls")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
        put(f"shards/{shard}.tar", archive.getvalue())
    return folder


def number_of(reader):
    return int(reader.read())


def number_in(sample):
    return int(sample["cls"])


class Numbers(lightning.LightningDataModule):
    """Gives the loader of one kind of dataset."""

    def __init__(self, kind, data, server, workers):
        super().__init__()
        self.kind, self.data, self.server, self.workers = kind, data, server, workers

    def train_dataloader(self):
        place = {"region": self.server.region, "endpoint": self.server.endpoint}
        options = {"batch_size": BATCH, "num_workers": self.workers}
        if self.kind == "map":
            dataset = S3MapDataset.from_prefix(f"{self.data}/objects/", transform=number_of, **place)
            return ResumableLoader(DataLoader(dataset, sampler=S3Sampler(dataset, seed=3), **options))
        place |= {"shuffle": True, "seed": 3}
        if self.kind == "iterable":
            place |= {"transform": number_of, "enable_sharding": True}
            return ResumableLoader(
                DataLoader(S3IterableDataset.from_prefix(f"{self.data}/objects/", **place), **options)
            )
        dataset = S3ShardDataset.from_prefix(f"{self.data}/shards/", transform=number_in, **place)
        return ResumableLoader(DataLoader(dataset, **options))


class Listener(lightning.LightningModule):
    """Notes what it is trained on, and saves a checkpoint before and after some steps."""

    def __init__(self, folder, moments=()):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []
        self.folder, self.moments = folder, moments

    def training_step(self, batch):
        self.seen.extend(batch.tolist())
        return self.layer(batch.float().reshape(-1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_train_batch_end(self, *_):
        if len(self.seen) in self.moments:
            self.trainer.save_checkpoint(f"{self.folder}/{len(self.seen)}.ckpt")

    def on_train_epoch_end(self):
        if self.moments:
            self.trainer.save_checkpoint(f"{self.folder}/epoch-{self.current_epoch}-{len(self.seen)}.ckpt")


def train(model, data, **options):
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        logger=False,
        callbacks=[S3TrainerCallback()],
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data, **options)
    assert trainer.current_epoch == EPOCHS
    return model.seen


@pytest.mark.parametrize(("kind", "workers"), [("map", 0), ("iterable", 0), ("iterable", 2), ("shards", 0)])
def test_training_goes_on_with_the_next_sample(seaweedfs, data, tmp_path, kind, workers):
    numbers = Numbers(kind, data, seaweedfs, workers)
    # In the first epoch, at its end, and in the second one.
    moments = {6, COUNT, COUNT + 4}
    whole = train(Listener(tmp_path, moments), numbers)
    epochs = [whole[start : start + COUNT] for start in range(0, len(whole), COUNT)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(COUNT))] * EPOCHS
    assert epochs[0] != epochs[1] != epochs[2]
    for path in sorted(tmp_path.iterdir()):
        seen = int(path.stem.rpartition("-")[2])
        left, expected = train(Listener(tmp_path), numbers, ckpt_path=path), whole[seen:]
        if kind == "iterable" and workers:
            # The workers share what is left of the epoch out anew.
            rest = -seen % COUNT
            left[:rest], expected[:rest] = sorted(left[:rest]), sorted(expected[:rest])
        assert (path.name, left) == (path.name, expected)

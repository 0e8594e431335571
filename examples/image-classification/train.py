"""Trains on images under a prefix, and resumes in mid-epoch. See README.md."""

from __future__ import annotations

import argparse
import random

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from s3torch.core import S3Checkpoint, S3Client, parse_s3_uri
from s3torch.datasets import ResumableLoader, S3MapDataset, S3Sampler
from s3torch.datasets.transforms import ClassIndex, ImageTensor, PathLabel, WithLabel

CLASSES = ("cross", "square")
SIDE = 16


def main() -> None:
    """Trains for some epochs, from where the last run was stopped."""
    options = parse_arguments()
    make_images(options.root, options.images)
    transform = WithLabel(ImageTensor("L"), PathLabel(), ClassIndex(CLASSES))
    dataset = S3MapDataset.from_prefix(f"{options.root}/train/", transform=transform)
    sampler = S3Sampler(dataset, seed=1)
    loader = ResumableLoader(DataLoader(dataset, 32, sampler=sampler, num_workers=options.workers))

    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 64), nn.ReLU(), nn.Linear(64, len(CLASSES)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    checkpoint, path = S3Checkpoint(), f"{options.root}/checkpoints/last.pt"

    first = 0
    if checkpoint.exists(path):
        state = checkpoint.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]
        if state["loader"] is None:
            loader.set_epoch(first)
        else:
            loader.load_state_dict(state["loader"])
        print(f"resumed in epoch {first}")
    for epoch in range(first, options.epochs):
        if epoch > first:
            loader.set_epoch(epoch)
        right = seen = 0
        for step, (pixels, labels) in enumerate(loader, 1):
            scores = model(pixels / 255)
            loss = nn.functional.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += int((scores.argmax(dim=1) == labels).sum())
            seen += len(labels)
            if step % options.save_every == 0:
                save(checkpoint, path, model, optimizer, epoch, loader.state_dict())
        save(checkpoint, path, model, optimizer, epoch + 1, None)
        if seen:
            print(f"epoch {epoch}: {right / seen:.0%} of {seen} right")


def save(
    checkpoint: S3Checkpoint,
    path: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    position: dict[str, object] | None,
) -> None:
    """Saves all that a run needs to go on; ``position`` is ``None`` at the start of an epoch."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoint.save({**state, "epoch": epoch, "loader": position}, path)


def make_images(root: str, count: int) -> None:
    """Stores pictures of crosses and squares, unless there are some."""
    bucket, prefix = parse_s3_uri(root)
    with S3Client() as client:
        if any(client.walk(bucket, f"{prefix}/train/")):
            return
        draw = random.Random(0)  # noqa: S311 - Not for secrets.
        for number in range(count):
            name = CLASSES[number % len(CLASSES)]
            with client.put_object(bucket, f"{prefix}/train/{name}/{number:05}.png") as writer:
                picture(name, draw).save(writer, format="PNG")


def picture(name: str, draw: random.Random) -> Image.Image:
    """Draws one picture with some noise."""
    image = Image.new("L", (SIDE, SIDE))
    x, y, half = draw.randrange(5, 11), draw.randrange(5, 11), draw.randrange(2, 5)
    for step in range(-half, half + 1):
        if name == "cross":
            points = [(x + step, y), (x, y + step)]
        else:
            points = [(x + step, y - half), (x + step, y + half), (x - half, y + step), (x + half, y + step)]
        for point in points:
            image.putpixel(point, 255)
    for _ in range(10):
        image.putpixel((draw.randrange(SIDE), draw.randrange(SIDE)), draw.randrange(256))
    return image


def parse_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "root", help="where the data and checkpoints are, as in s3://my-bucket/examples/images"
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=1000, help="how many are made; default: %(default)s")
    parser.add_argument("--save-every", type=int, default=10, help="steps; default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Trains small LoRA adapters on a frozen model, and saves only what changed. See README.md."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from s3torch.core import S3Checkpoint
from s3torch.dcp import S3StorageReader, S3StorageWriter
from s3torch.dcp.manage import latest_checkpoint


class LoRALinear(nn.Module):
    """A frozen linear layer, and a trainable change of low rank beside it."""

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(requires_grad=False)
        self.down = nn.Parameter(torch.randn(rank, frozen.in_features) / rank)
        # Zero, so that training starts from the frozen model.
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        """Applies the layer and its change."""
        return self.frozen(data) + data @ self.down.T @ self.up.T


def main() -> None:
    """Trains the adapters from the last checkpoint on, and publishes them."""
    options = parse_arguments()
    torch.manual_seed(1)
    width = options.width
    model = nn.Sequential(
        LoRALinear(nn.Linear(width, width), options.rank),
        nn.ReLU(),
        LoRALinear(nn.Linear(width, width), options.rank),
    )
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3)

    begin = resume(model, optimizer, f"{options.root}/runs")
    for step in range(begin + 1, options.steps + 1):
        loss = train_step(model, optimizer, width)
        if step % options.every == 0:
            print(
                f"step {step}: loss {loss:.3f}, {save(model, optimizer, f'{options.root}/runs/step-{step}')}"
            )
    publish(model, f"{options.root}/adapters.pt")


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, width: int) -> float:
    """Takes one step: the model learns to shift its input by one place."""
    data = torch.randn(16, width)
    loss = nn.functional.mse_loss(model(data), data.roll(1, dims=1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def save(model: nn.Module, optimizer: torch.optim.Optimizer, path: str) -> str:
    """Saves a whole checkpoint, of which only what changed is sent; returns how much that was."""
    weights, moments = get_state_dict(model, optimizer)
    writer = S3StorageWriter(region=None, path=path, reuse="latest")
    dcp.save({"model": weights, "optimizer": moments}, storage_writer=writer)
    report = writer.report
    assert report is not None  # noqa: S101 - With reuse, every save has one.
    why = "".join(f" ({reason})" for reason in report.why_sent)
    return f"sent {report.sent_bytes / 1e6:.1f} MB, S3 copied {report.copied_bytes / 1e6:.1f} MB{why}"


def resume(model: nn.Module, optimizer: torch.optim.Optimizer, root: str) -> int:
    """Loads the last complete checkpoint; returns its step, or 0 where there is none."""
    found = latest_checkpoint(root)
    if found is None:
        return 0
    weights, moments = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": moments}
    dcp.load(state, storage_reader=S3StorageReader(region=None, path=found.uri))
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    print(f"resumed from {found.name}")
    return found.step or 0


def publish(model: nn.Module, uri: str) -> None:
    """Stores the adapters alone, for whoever has the frozen model."""
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    weights = model.state_dict()
    S3Checkpoint().save({name: weights[name] for name in names}, uri)
    size = sum(weights[name].nbytes for name in names)
    print(f"{uri}: {len(names)} tensors, {size / 1e6:.1f} MB")


def parse_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="where everything goes, as in s3://my-bucket/examples/lora")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=20, help="steps between two checkpoints")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()

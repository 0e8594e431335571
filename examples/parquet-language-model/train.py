"""Trains a character-level language model on text in Parquet files. See README.md."""

from __future__ import annotations

import argparse
import itertools
import random
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from s3torch.core import S3Client, parse_s3_uri
from s3torch.datasets import ParquetFormat, S3ShardDataset

if TYPE_CHECKING:
    from collections.abc import Iterator

LENGTH = 32
BYTES = 256


def main() -> None:
    """Trains for some steps, and writes a line."""
    options = parse_arguments()
    make_text(options.root, files=options.files)
    columns = ParquetFormat(columns=["text"], batch_rows=64)
    texts = S3ShardDataset.from_prefix(f"{options.root}/", format=columns, shuffle=True, shuffle_buffer=16)
    loader = DataLoader(Windows(texts), batch_size=16, num_workers=options.workers)
    torch.manual_seed(1)
    model = LanguageModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # Epoch after epoch, as many as the steps take.
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, batch in enumerate(itertools.islice(batches, options.steps), 1):
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == options.steps:
            print(f"step {step}: loss {loss.item():.2f}")
    print(model.continued(b"the ", 40))


class Windows(IterableDataset[torch.Tensor]):
    """Pieces of ``LENGTH`` + 1 bytes of all texts, one after the other."""

    def __init__(self, texts: S3ShardDataset[pa.RecordBatch]) -> None:
        self.texts = texts

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yields the pieces; the rest of a batch of rows that is too short is left out."""
        for rows in self.texts:
            data = "\n".join(rows.column("text").to_pylist()).encode()
            pieces = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
            yield from pieces[: len(pieces) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)


class LanguageModel(nn.Module):
    """A recurrent network over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, 32)
        self.recur = nn.GRU(32, 64, batch_first=True)
        self.head = nn.Linear(64, BYTES)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        """Returns the scores of the byte after each byte."""
        hidden, _ = self.recur(self.embed(data))
        return self.head(hidden)  # type: ignore[no-any-return]

    def continued(self, start: bytes, count: int) -> str:
        """Writes on, with the most likely byte each time."""
        text = bytearray(start)
        with torch.no_grad():
            for _ in range(count):
                scores = self(torch.tensor([list(text[-LENGTH:])]))
                text.append(int(scores[0, -1].argmax()))
        return text.decode(errors="replace")


def make_text(root: str, *, files: int) -> None:
    """Stores files with sentences, unless there are some."""
    bucket, prefix = parse_s3_uri(root)
    draw = random.Random(0)  # noqa: S311 - Not for secrets.
    things, verbs = ["the model", "the data", "the store"], ["reads", "keeps", "loads"]
    with S3Client() as client:
        if any(client.walk(bucket, f"{prefix}/")):
            return
        for number in range(files):
            words = [(draw.choice(things), draw.choice(verbs), draw.choice(things)) for _ in range(400)]
            lines = list(map(" ".join, words))
            table = pa.table({"text": lines, "source": ["made"] * len(lines)})
            with client.put_object(bucket, f"{prefix}/{number:03}.parquet") as writer:
                pq.write_table(table, writer, row_group_size=100)


def parse_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="where the files are, as in s3://my-bucket/examples/text")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--files", type=int, default=4, help="how many are made; default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    main()

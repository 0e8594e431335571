"""A format of someone else, as an unpacked distribution on ``sys.path``."""

from __future__ import annotations

import os
import subprocess
import sys
from textwrap import dedent

LINES = '''
"""Texts with a sample on each line."""

from s3torch.core.plugins import hookimpl


class Lines:
    suffixes = (".lines", ".lines.tar")

    def __init__(self, upper=False):
        self.upper = upper

    def open(self, shard):
        return Opened(shard, self.upper)


class Opened:
    def __init__(self, shard, upper):
        self.shard, self.upper = shard, upper

    def pieces(self):
        return [Piece(self.shard, self.upper)]

    def close(self):
        pass


class Piece:
    size = 0

    def __init__(self, shard, upper):
        self.reader, self.upper = shard.open(), upper

    def prefetch(self):
        self.reader.prefetch()

    def samples(self, position):
        self.reader.seek(position)
        for line in self.reader:
            text = line.decode().strip()
            yield self.reader.tell(), text.upper() if self.upper else text

    def close(self):
        self.reader.close()


@hookimpl
def s3torch_shard_formats():
    return {"lines": Lines}
'''

USE = """
from s3torch.core import S3ClientConfig
from s3torch.testing import MemoryStore
from s3torch.datasets import S3ShardDataset
from s3torch.datasets.formats import named_format

store = MemoryStore.at("http://lines.memory")
store.create_bucket("data")
store.put("data", "a.lines", b"one\\ntwo\\n")
store.put("data", "b.lines.tar", b"three\\n")
options = {"s3client_config": S3ClientConfig(transport="memory", endpoint="http://lines.memory")}
dataset = S3ShardDataset.from_prefix("s3://data/", **options)
samples = iter(dataset)
first = next(samples)
again = S3ShardDataset.from_prefix("s3://data/", **options)
again.load_state_dict(dataset.state_dict())
print(first, *again)
print(*S3ShardDataset.from_prefix("s3://data/", format=named_format("lines", upper=True), **options))
"""


def test_it_is_found_by_suffix_and_by_name(tmp_path):
    (tmp_path / "thirdparty_lines.py").write_text(dedent(LINES))
    info = tmp_path / "thirdparty_lines-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty_lines\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[s3torch.plugins]\nlines = thirdparty_lines\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", USE], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["one two three", "ONE TWO THREE"]

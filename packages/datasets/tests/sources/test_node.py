"""Ranks of one machine that list once together, without a word about it."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from functools import partial

import pytest

from s3torch.core import S3BucketKeyData
from s3torch.datasets import Manifest, S3IterableDataset, S3MapDataset, S3ShardDataset, Selection
from s3torch.datasets.shards._dataset import ShardSource
from s3torch.datasets.sources._shared import SharedFolder, common_name, launch_on_node, shared_pages
from s3torch.datasets.sources._sources import ObjectsSource, PrefixSource, subject_of

KEYS = [f"train/{number:02}" for number in range(11)]

SCRIPT = """
import json
import sys
from operator import attrgetter
from pathlib import Path

import torch.distributed as dist
from torch.utils.data import DataLoader

from s3torch.datasets import S3IterableDataset, S3MapDataset, S3ShardDataset


def main(uri, options, folder):
    dist.init_process_group("gloo")
    options["transform"] = attrgetter("key")
    table = S3MapDataset.from_prefix(uri, **options)
    stream = S3IterableDataset.from_prefix(uri, enable_sharding=True, **options)
    seen = {"table": len(table), "streams": []}
    for workers in (0, 0, 2, 2):
        start = {"multiprocessing_context": "fork"} if workers else {}
        loader = DataLoader(stream, batch_size=None, num_workers=workers, **start)
        seen["streams"].append(sorted(loader))
        # All epochs of all ranks begin together, as in training.
        dist.barrier()
    (Path(folder) / f"{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
"""


def test_the_ranks_of_a_node_list_once(server, proxy, tmp_path, monkeypatch):
    script, temporary = tmp_path / "train.py", tmp_path / "tmp"
    script.write_text(SCRIPT)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    options = server.options | {"endpoint": proxy.endpoint}
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    arguments = [server.uri("train/"), json.dumps(options), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *run, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen == {"table": 11, "streams": [KEYS[rank::2]] * 4}
    # One for the map dataset, and one for each epoch of the other.
    assert sum("list-type" in request.query for request in proxy.requests("GET")) == 5
    assert list(temporary.glob("s3torch-*")) == []


@pytest.fixture
def node(tmp_path, monkeypatch):
    """What the system and torchrun tell of this process; changes to it are those of a test."""
    agent = tmp_path / str(os.getppid())
    agent.mkdir()
    (agent / "environ").write_bytes(b"PATH=/bin\0HOME=/\0")
    (agent / "stat").write_text(f"7 (a (b) c) S {' '.join(map(str, range(18)))} 4711 0 0")
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("boot\n")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    return tmp_path


def test_a_launch_has_its_own_name(node, monkeypatch):
    assert launch_on_node(node) == f"boot/{os.getppid()}/4711/3"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert launch_on_node(node) is None
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert launch_on_node(node) is None


@pytest.mark.parametrize("environment", [b"LOCAL_RANK=0\0A=b\0", b"A=b\0LOCAL_RANK=1\0"])
def test_what_a_rank_has_started_is_no_rank(node, environment):
    (node / str(os.getppid()) / "environ").write_bytes(environment)
    assert launch_on_node(node) is None


def test_a_system_that_does_not_tell_has_no_neighbours(node):
    (node / "sys/kernel/random/boot_id").unlink()
    assert launch_on_node(node) is None
    assert launch_on_node(node / "none") is None


@pytest.fixture
def launch(monkeypatch, tmp_path):
    """This process is one of several ranks."""
    monkeypatch.setattr("s3torch.datasets.sources._shared.launch_on_node", lambda: "a launch")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("s3torch.datasets.sources._shared._made", type(common_name.__globals__["_made"])())


def another_rank(monkeypatch, subject):
    """The folder of a neighbour, which has made as many datasets."""
    monkeypatch.setattr("s3torch.datasets.sources._shared._made", type(common_name.__globals__["_made"])())
    return SharedFolder(subject)


def test_the_second_of_a_kind_is_another(launch, monkeypatch):
    first, second, other = SharedFolder("a"), SharedFolder("a"), SharedFolder("b")
    assert len({first.path, second.path, other.path}) == 3
    assert another_rank(monkeypatch, "a").path == first.path
    assert SharedFolder().path != SharedFolder().path
    assert not SharedFolder().spans_ranks


def test_only_what_is_the_same_on_all_ranks_is_shared(launch, memory, tmp_path):
    prefix = PrefixSource.from_uri("s3://data/a")
    assert subject_of(prefix)
    assert subject_of(prefix) != subject_of(PrefixSource.from_uri("s3://data/b"))
    assert subject_of(ShardSource(prefix, (".tar",)))
    for source in (ObjectsSource.from_uris("s3://data/a"), lambda client: (), Manifest([])):
        assert subject_of(source) is None
        assert subject_of(ShardSource(source)) is None

    def shares(dataset):
        return dataset._folder.spans_ranks

    make = partial(S3MapDataset.from_prefix, "s3://data/a", s3client_config=memory)
    assert shares(make())
    assert shares(make(select=Selection(suffix=".jpg")))
    assert not shares(make(select=Selection(where=lambda item: True)))
    assert not shares(S3MapDataset.from_objects("s3://data/a"))
    assert shares(S3IterableDataset.from_glob("s3://data/*.jpg"))
    assert shares(S3MapDataset.from_manifest("s3://data/a.jsonl"))
    assert not shares(S3MapDataset.from_manifest(Manifest([])))
    assert S3ShardDataset.from_prefix("s3://data/a")._shared_listing._folder.spans_ranks


def test_the_last_rank_takes_the_folder_along(launch, monkeypatch, tmp_path):
    first, second = SharedFolder("a"), another_rank(monkeypatch, "a")
    # They are of one process here, so the other one has to be told from it.
    second._owner = os.getppid()
    for folder in (first, second):
        with folder.locked("lock"):
            pass
    path = first.path
    del first
    gc.collect()
    assert path.exists()
    (path / f"user-{os.getppid()}").unlink()
    third = another_rank(monkeypatch, "a")
    with third.locked("lock"):
        pass
    del third
    gc.collect()
    assert not path.exists()


@pytest.mark.promise(9)
def test_a_folder_of_somebody_else_is_not_read(launch, memory, fill, caplog, tmp_path):
    fill(*KEYS)
    dataset = S3MapDataset.from_prefix("s3://data/train/", s3client_config=memory)
    dataset._folder.path.mkdir(mode=0o755)
    (dataset._folder.path / "listing").write_bytes(b"not what it seems")
    assert len(dataset) == 11
    assert "other users can access it" in caplog.text


class Pages:
    """A source of three pages."""

    def page(self, client, cursor):
        number = int(cursor or 0)
        return [S3BucketKeyData("data", f"{number}{letter}") for letter in "ab"], (
            str(number + 1) if number < 2 else None
        )


def test_a_folder_that_goes_away_hurts_nobody(launch, monkeypatch, caplog):
    folder = SharedFolder("a")
    begun, later = (shared_pages(folder, "1", Pages(), None) for _ in range(2))
    keys = [next(begun).key, next(begun).key]
    assert next(later).key == "0a"
    for path in folder.path.iterdir():
        path.unlink()
    folder.path.rmdir()
    monkeypatch.setattr("pathlib.Path.mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
    keys += [item.key for item in begun]
    assert keys == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert "gone" in caplog.text
    assert [item.key for item in later] == ["0b", "1a", "1b", "2a", "2b"]

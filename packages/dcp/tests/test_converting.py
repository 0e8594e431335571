"""Each kind of checkpoint made of each other, on S3 and on a disk, and loaded by others."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from s3torch.core.errors import ConfigurationError, NotFoundError, S3Error
from s3torch.dcp import CheckpointError, save_file
from s3torch.dcp.converting import _sources, _targets, convert_checkpoint
from s3torch.dcp.manage import verify_checkpoint

MODEL = {
    "wide": torch.arange(30_000.0).reshape(300, 100),
    "half": torch.linspace(0, 1, 7).bfloat16(),
    "scalar": torch.tensor(5),
    "empty": torch.empty(0, 3),
    "deep.bias": torch.ones(3, dtype=torch.float64),
}
STATE = {"model": MODEL, "step": 7, "groups": [{"lr": 0.1, "exp": torch.full((4,), 2.0)}, {"lr": 0.2}]}
KINDS = ("dcp", "torch", "safetensors", "safetensors file")


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    # So that the tensors are read and written in several parts.
    monkeypatch.setattr(_targets, "WINDOW", 10_000)


@pytest.fixture
def client(place):
    with place.client() as client:
        yield client


@pytest.fixture
def where(place, tmp_path):
    def where(name, *, on_s3):
        return place.uri(name) if on_s3 else str(tmp_path / name)

    return where


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            same(value, other[key])
    elif isinstance(one, list):
        for pair in zip(one, other, strict=True):
            same(*pair)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


def loaded_by_torch(folder):
    dcp_to_torch_save(folder, f"{folder}.pt")
    return torch.load(f"{folder}.pt")


def target(where, kind, name, *, on_s3):
    ends = {"torch": ".pt", "safetensors file": ".safetensors"}
    return where(f"{name}{ends.get(kind, '')}", on_s3=on_s3)


@pytest.mark.parametrize(("from_s3", "to_s3"), list(itertools.product([False, True], repeat=2)))
def test_a_training_state_through_dcp_and_back(client, where, from_s3, to_s3):
    begin, middle, end = (
        where("begin.pt", on_s3=False),
        where("middle", on_s3=from_s3),
        where("end.pt", on_s3=to_s3),
    )
    torch.save(STATE, begin)
    convert_checkpoint(begin, middle, to="dcp", client=client)
    if from_s3:
        assert verify_checkpoint(middle, depth="bytes", client=client).is_whole
    else:
        same(loaded_by_torch(middle), STATE)
    convert_checkpoint(middle, end, to="torch", client=client)
    if to_s3:
        again = where("again", on_s3=False)
        convert_checkpoint(end, again, to="dcp", client=client)
        same(loaded_by_torch(again), STATE)
    else:
        same(torch.load(end), STATE)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))
@pytest.mark.parametrize("on_s3", [False, True])
def test_a_model_of_each_kind_from_each_other(client, where, first, second, on_s3):
    """From a disk to S3 or the other way, and at last to a file that stock torch loads."""
    begin, last = where("begin.safetensors", on_s3=False), where("last.pt", on_s3=False)
    safetensors.torch.save_file(MODEL, begin)
    one, two = target(where, first, "one", on_s3=on_s3), target(where, second, "two", on_s3=not on_s3)
    convert_checkpoint(begin, one, to=first.split()[0], client=client, max_shard_size=1000)
    convert_checkpoint(one, two, to=second.split()[0], client=client)
    convert_checkpoint(two, last, to="torch", client=client)
    same(dict(sorted(torch.load(last).items())), dict(sorted(MODEL.items())))


def test_a_part_of_a_training_state(client, place, where):
    state = {"model": {"weight": torch.ones(3), "bias": torch.zeros(2)}, "step": 1}
    torch.save(state, where("state.pt", on_s3=False))
    convert_checkpoint(where("state.pt", on_s3=False), place.uri("checkpoint"), to="dcp", client=client)
    end = where("model.safetensors", on_s3=False)
    with pytest.raises(CheckpointError, match=r"only tensors.*step.*with a prefix"):
        convert_checkpoint(place.uri("checkpoint"), end, to="safetensors", client=client)
    convert_checkpoint(place.uri("checkpoint"), end, to="safetensors", prefix="model.", client=client)
    same(dict(sorted(safetensors.torch.load_file(end).items())), dict(sorted(state["model"].items())))
    with pytest.raises(CheckpointError, match=r"no name begins with 'm\.'; there are model\.bias"):
        convert_checkpoint(place.uri("checkpoint"), end, to="torch", prefix="m.", client=client)


def test_sharded_files_have_an_index(client, place, where):
    save_file(MODEL, place.uri("model.safetensors"), client=client)
    convert_checkpoint(
        place.uri("model.safetensors"), place.uri("out"), to="safetensors", max_shard_size=500, client=client
    )
    assert place.plain("out/") == [
        "out/model-00001-of-00002.safetensors",
        "out/model-00002-of-00002.safetensors",
        "out/model.safetensors.index.json",
    ]
    assert verify_checkpoint(place.uri("out"), client=client).is_whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_s3", [False, True])
@pytest.mark.promise(9)
def test_what_is_there_is_replaced_only_when_told(client, place, where, kind, on_s3):
    save_file({"new": torch.ones(2)}, place.uri("new.safetensors"), client=client)
    save_file({"old": torch.ones(2)}, place.uri("old.safetensors"), client=client)
    end = target(where, kind, "end", on_s3=on_s3)
    convert_checkpoint(place.uri("old.safetensors"), end, to=kind.split()[0], client=client)
    with pytest.raises((FileExistsError, RuntimeError, S3Error)):
        convert_checkpoint(place.uri("new.safetensors"), end, to=kind.split()[0], client=client)
    last = where("last.pt", on_s3=False)
    convert_checkpoint(end, last, to="torch", client=client)
    assert list(torch.load(last)) == ["old"]
    with pytest.warns(UserWarning, match="existing checkpoint") if kind == "dcp" and on_s3 else nullcontext():
        convert_checkpoint(
            place.uri("new.safetensors"), end, to=kind.split()[0], overwrite=True, client=client
        )
    convert_checkpoint(end, last, to="torch", overwrite=True, client=client)
    assert list(torch.load(last)) == ["new"]


def test_a_checkpoint_that_is_none(client, place, tmp_path):
    for missing in (place.uri("nothing"), str(tmp_path / "nothing")):
        with pytest.raises(NotFoundError, match="nothing"):
            convert_checkpoint(missing, tmp_path / "end.pt", to="torch", client=client)
    (tmp_path / "text").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match=r"text cannot be read as a file of torch\.save"):
        convert_checkpoint(tmp_path / "text", tmp_path / "end", to="dcp", client=client)
    with pytest.raises(ConfigurationError, match="dcp, torch or safetensors"):
        convert_checkpoint(tmp_path / "text", tmp_path / "end", to="onnx", client=client)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]


@pytest.mark.promise(10)
def test_what_is_in_a_checkpoint_does_not_run(client, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    for evil in (tmp_path / "evil.pt", folder):
        with pytest.raises(CheckpointError):
            convert_checkpoint(evil, tmp_path / "end.pt", to="torch", client=client)
    assert not (tmp_path / "run").exists()


@pytest.mark.promise(1)
def test_a_failure_leaves_nothing(client, place, tmp_path, monkeypatch):
    torch.save(STATE, tmp_path / "begin.pt")

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(_targets, "_send", fail)
    for end in (place.uri("end.pt"), str(tmp_path / "end.pt")):
        with pytest.raises(OSError, match="full"):
            convert_checkpoint(tmp_path / "begin.pt", end, to="torch", client=client)
    assert place.listed() == []
    assert [path.name for path in tmp_path.iterdir()] == ["begin.pt"]


MEMORY = """
import resource, sys
from s3torch.core import S3Client
from s3torch.dcp.converting import convert_checkpoint
import s3torch.dcp.converting._targets

client = S3Client("us-east-1")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert_checkpoint(*sys.argv[1:3], to="torch", client=client)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.promise(9)
@pytest.mark.parametrize("kind", ["dcp", "safetensors"])
def test_other_files_in_a_folder_are_not_replaced(client, tmp_path, kind):
    safetensors.torch.save_file(MODEL, tmp_path / "begin.safetensors")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        convert_checkpoint(
            tmp_path / "begin.safetensors", tmp_path / "out", to=kind, overwrite=True, client=client
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begin.safetensors", "out"]
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.promise(1)
@pytest.mark.parametrize("kind", ["dcp", "safetensors"])
@pytest.mark.parametrize("on_s3", [False, True])
def test_a_failure_keeps_the_old_folder(client, place, where, kind, on_s3, monkeypatch):
    """The second half of the new one cannot be read."""
    torch.save({"old": torch.ones(2)}, where("old.pt", on_s3=False))
    torch.save({f"{n}": torch.ones(200) for n in range(9)}, where("new.pt", on_s3=False))
    end = where("end", on_s3=on_s3)
    convert_checkpoint(where("old.pt", on_s3=False), end, to=kind, client=client)
    files = place.listed() if on_s3 else sorted(path.name for path in Path(end).iterdir())
    read, calls = _sources._Mapped.read, []

    def fail_late(self, bands):
        calls.append(bands)
        if len(calls) > 5:
            raise OSError("a bad sector")
        return read(self, bands)

    monkeypatch.setattr(_sources._Mapped, "read", fail_late)
    with warnings.catch_warnings(), pytest.raises(OSError, match="bad sector"):
        warnings.simplefilter("ignore")
        convert_checkpoint(
            where("new.pt", on_s3=False), end, to=kind, overwrite=True, max_shard_size=1000, client=client
        )
    assert files == (place.listed() if on_s3 else sorted(path.name for path in Path(end).iterdir()))
    monkeypatch.undo()
    convert_checkpoint(end, where("last.pt", on_s3=False), to="torch", client=client)
    assert list(torch.load(where("last.pt", on_s3=False))) == ["old"]


@pytest.mark.promise(3)
def test_memory_does_not_grow_with_the_checkpoint(client, tmp_path, monkeypatch):
    """Of 320 MiB a few windows of 32 MiB are in memory at a time."""
    monkeypatch.undo()
    torch.save({"w": torch.ones(80, 2**20)}, tmp_path / "begin.pt")
    convert_checkpoint(tmp_path / "begin.pt", tmp_path / "folder", to="dcp", client=client)
    command = [sys.executable, "-c", MEMORY, tmp_path / "folder", tmp_path / "end.pt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 160
    assert torch.load(tmp_path / "end.pt", mmap=True)["w"][79, 5] == 1

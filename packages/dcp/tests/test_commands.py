"""``s3torch checkpoint``, and what interrupted saves have left for ``s3torch gc``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner

from s3torch.core.cli._application import application
from s3torch.core.observers import TransferCounters, observe
from s3torch.dcp import save_file
from s3torch.testing import Fault

WEIGHT = torch.arange(30_000.0).reshape(300, 100)


@dataclass
class Ran:
    out: str
    err: str

    @property
    def documents(self):
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def command(place):
    where = ("--region", "us-east-1", "--transport", "memory", "--endpoint", place.config.endpoint)

    def run(*arguments, code=0):
        result = CliRunner().invoke(application, [*map(str, arguments), *where])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return Ran(result.stdout, result.stderr)

    return run


@pytest.fixture
def save(place):
    def save(path, **changes):
        state = {"model": {"weight": WEIGHT, "bias": torch.ones(5).half()}, "step": 7} | changes
        dcp.save(state, storage_writer=place.writer(path, overwrite=False), no_dist=True)

    return save


@pytest.fixture(autouse=True)
def _one_process(recwarn):
    """torch warns that there is only one."""


pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_ls(command, save, place):
    save("runs/step-10")
    save("runs/step-20")
    place.put("runs/step-30/__0_0.distcp", b"not complete")
    out = command("checkpoint", "ls", place.uri("runs")).out
    assert "step-10" in out
    assert [one["step"] for one in command("checkpoint", "ls", "--json", place.uri("runs")).documents] == [
        10,
        20,
    ]
    assert "step-30" not in out


def test_inspect_reads_the_metadata_alone(command, save, place):
    save("a")
    with observe(TransferCounters()) as counters:
        out = command("checkpoint", "inspect", place.uri("a")).out
    assert counters.snapshot().bytes_read < 5000
    rows = [line.split() for line in out.splitlines()]
    assert ["model.bias", "float16", "[5]", "10", "B", "1"] in rows
    assert ["model.weight", "float32", "[300,", "100]", "117", "KiB", "1"] in rows
    assert rows[-1][:2] == ["3", "values,"]
    (step,) = command("checkpoint", "inspect", "--json", "--match", "step", place.uri("a")).documents[:1]
    assert (step["name"], step["dtype"]) == ("step", None)
    assert command("checkpoint", "inspect", place.uri("nothing"), code=3).err.startswith("Error: there is no")


def test_inspect_safetensors(command, place):
    with place.client() as client:
        save_file({"w": WEIGHT}, place.uri("model.safetensors"), client=client)
    assert "[300, 100]" in command("checkpoint", "inspect", place.uri("model.safetensors")).out


def test_verify(command, save, place):
    save("a")
    assert "is whole (1 file" in command("checkpoint", "verify", place.uri("a")).out
    key = place.key("a/__0_0.distcp")
    data = bytearray(place.get(key))
    data[len(data) // 2] ^= 1
    place.put(key, bytes(data))
    ran = command("checkpoint", "verify", place.uri("a"), "--depth", "bytes", code=1)
    assert "is damaged: 1 problem" in ran.out
    assert command("checkpoint", "verify", "--json", place.uri("a"), code=1).documents[-1]["whole"] is False


def test_equal_checkpoints_are_compared_without_reading_tensors(command, save, place):
    save("a")
    save("b")
    with observe(TransferCounters()) as counters:
        assert "0 differences" in command("checkpoint", "diff", place.uri("a"), place.uri("b")).err
    assert counters.snapshot().bytes_read < 10_000


def test_diff(command, save, place):
    changed = WEIGHT.clone()
    changed[299, 99] = float("nan")
    save("a")
    save("b", model={"weight": changed, "bias": torch.ones(6).half(), "more": torch.ones(1)}, step=8)
    found = command("checkpoint", "diff", "--json", place.uri("a"), place.uri("b"), code=1).documents
    assert {one["name"]: one["kind"] for one in found} == {
        "model.bias": "shape",
        "model.more": "added",
        "model.weight": "content",
        "step": "content",
    }
    lines = command("checkpoint", "diff", place.uri("b"), place.uri("a"), code=1).out.splitlines()
    assert "removed  model.more  float32[1]" in lines
    assert "shape    model.bias  float16[6] -> float16[5]" in lines


def test_diff_of_other_kinds(command, save, place):
    """What has no common checksums is read, and compared byte by byte."""
    save("a", model={"weight": WEIGHT, "nan": torch.full((3,), float("nan"))})
    with place.client() as client:
        save_file(
            {"weight": WEIGHT, "nan": torch.full((3,), float("nan"))},
            place.uri("b.safetensors"),
            client=client,
        )
    command("checkpoint", "convert", place.uri("a"), place.uri("c"), "--to", "dcp", "--prefix", "model.")
    assert "0 differences" in command("checkpoint", "diff", place.uri("b.safetensors"), place.uri("c")).err


@pytest.mark.promise(9)
def test_rm(command, save, place):
    save("a")
    place.put("a/log.txt", b"stays")
    assert "--yes" in command("checkpoint", "rm", place.uri("a"), code=2).err
    command("checkpoint", "rm", "--dry-run", place.uri("a"))
    assert len(place.listed("a/")) == 3
    command("checkpoint", "rm", "--yes", place.uri("a"))
    assert place.listed("a/") == ["a/log.txt"]
    command("checkpoint", "rm", "--yes", place.uri("a"), code=3)


def test_prune(command, save, place):
    for step in (10, 20, 30, 40):
        save(f"runs/step-{step}")
    arguments = ("checkpoint", "prune", place.uri("runs"), "--keep-last", 1, "--keep-every", 20)
    assert "Would delete 2 checkpoints" in command(*arguments, "-n", "--protect", place.uri("runs/none")).out
    assert len(command("checkpoint", "ls", "--json", place.uri("runs")).documents) == 4
    assert "--yes" in command(*arguments, code=2).err
    command(*arguments, "--yes", "--protect", place.uri("runs/step-10"))
    steps = [one["step"] for one in command("checkpoint", "ls", "--json", place.uri("runs")).documents]
    assert steps == [10, 20, 40]


def test_convert(command, save, place, tmp_path):
    save("a")
    end = tmp_path / "model.safetensors"
    ran = command("checkpoint", "convert", place.uri("a"), end, "--to", "safetensors", code=1)
    assert "with a prefix, such as 'model.'" in ran.err
    command("checkpoint", "convert", place.uri("a"), end, "--to", "safetensors", "--prefix", "model.")
    assert "--overwrite" in command("checkpoint", "convert", place.uri("a"), end, "--to", "torch", code=2).err
    command("checkpoint", "convert", end, place.uri("out"), "--to", "safetensors", "--max-shard-size", "1k")
    assert len(place.listed("out/")) == 3
    command("checkpoint", "convert", end, place.uri("dcp"), "--to", "dcp")
    ran = command("checkpoint", "convert", end, place.uri("dcp"), "--to", "dcp", code=1)
    assert ran.err == "Error: Checkpoint already exists and self.overwrite=False.\n"
    assert (
        "is not a size"
        in command(
            "checkpoint", "convert", end, place.uri("x"), "--to", "torch", "--max-shard-size", "many", code=2
        ).err
    )


@pytest.mark.promise(9)
def test_what_saves_have_left_is_found_by_gc(command, save, place):
    save("runs/a")
    place.put("runs/a/__0_0-0123456789abcdef.distcp", b"left")
    place.put("runs/b/__1_0-0123456789abcdef.distcp", b"left")
    place.put("runs/b/notes.distcp.txt", b"not ours")
    place.put("runs/b/.metadata.txt", b"not ours")
    before = place.listed("runs/")
    assert "Found 0 uploads and 2 files" in command("gc", "-n", "--older-than", "0m", place.uri("runs")).out
    assert place.listed("runs/") == before
    assert "Found 0 uploads and 0 files" in command("gc", "-n", place.uri("runs")).out
    command("gc", "-y", "--older-than", "0m", place.uri("runs"))
    assert set(before) - set(place.listed("runs/")) == {
        "runs/a/__0_0-0123456789abcdef.distcp",
        "runs/b/__1_0-0123456789abcdef.distcp",
    }
    assert "is whole" in command("checkpoint", "verify", place.uri("runs/a")).out


@pytest.mark.promise(1)
@pytest.mark.parametrize("kind", ["torch", "dcp"])
def test_ctrl_c_in_a_conversion_leaves_nothing(seaweed_place, fault_proxy, seaweedfs, tmp_path, kind):
    """The upload is slow, and is interrupted when its first bytes move."""
    proxy = fault_proxy(seaweedfs)
    proxy.add(Fault(bandwidth=2e6), method="PUT")
    torch.save({"w": torch.ones(20, 2**20)}, tmp_path / "begin.pt")
    command = [sys.executable, "-m", "s3torch.core.cli", "checkpoint", "convert", tmp_path / "begin.pt"]
    target = seaweed_place.uri("end")
    started = subprocess.Popen(
        [*command, target, "--to", kind],
        env={**os.environ, **seaweedfs.at(proxy.endpoint).environment(), "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not proxy.requests("PUT") and started.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 130, errors
    assert "Traceback" not in errors
    assert seaweed_place.listed() == []
    with seaweed_place.client() as client:
        assert list(client.list_multipart_uploads(seaweed_place.bucket)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["begin.pt"]

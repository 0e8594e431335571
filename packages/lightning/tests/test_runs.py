"""Whole runs, in processes of their own: trained, killed, resumed, tested."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("run_trainer.py")
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
COUNT = 8


@pytest.fixture
def numbers(folder, put):
    for number in range(COUNT):
        put(f"data/{number}", b"%d" % number)
    return folder


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes the package one that is installed, with the entry points that it has now."""
    import tomllib

    project = tomllib.loads(PROJECT.read_text())["project"]
    metadata = tmp_path / "installed" / "s3torch_lightning-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: s3torch-lightning\nVersion: 0.1.0\n")
    path = os.pathsep.join([str(metadata.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)


def run(package, folder, killed_at, cwd):
    command = [sys.executable, str(PROGRAM), package, folder, str(killed_at)]
    return subprocess.run(command, capture_output=True, text=True, timeout=140, check=False, cwd=cwd)


@pytest.mark.promise(1)
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("installed")
def test_a_run_that_is_killed_goes_on_where_it_was(names, numbers, tmp_path):
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    killed = run("pytorch_lightning", numbers, 6, cwd)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-4000:]
    done = run("lightning.pytorch", numbers, 0, cwd)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["best"] == f"{numbers}/run/step=12.ckpt"
    # Steps 1 to 5 have been saved, of which the last ones may not have been complete.
    assert 2 * 6 <= len(result["seen"]) <= 2 * 11
    epochs = [result["seen"][-COUNT:], result["seen"][-2 * COUNT : -COUNT]]
    assert sorted(epochs[0]) == list(range(COUNT))
    assert len(set(epochs[1])) == len(epochs[1])
    assert result["mean"] == pytest.approx(result["predicted"], rel=1e-5)
    found = set(names())
    assert {"run/last.ckpt", "run/step=12.ckpt"} <= found
    assert {f"lightning_logs/version_{number}/metrics.csv" for number in (0, 1)} <= found
    assert any(name.startswith("board/version_1/events.out.tfevents") for name in found)
    assert result["refused"] == [True, True, True]
    assert result["left"] == []

"""Several ranks, in processes of their own, and models that they share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from s3torch.core import ConfigurationError
from s3torch.lightning import S3FSDPStrategy, S3LightningCheckpoint, S3ModelParallelStrategy

PROGRAM = Path(__file__).with_name("run_ranks.py")


@pytest.fixture
def run_ranks(monkeypatch, proxy, folder):
    """A function that runs the program and returns what its first rank says."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(ranks, *runs):
        command = [sys.executable, str(PROGRAM), folder, str(ranks), *runs]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.parametrize(
    "strategy",
    [S3ModelParallelStrategy(), S3FSDPStrategy(state_dict_type="sharded")],
    ids=lambda strategy: type(strategy).__name__,
)
def test_they_need_the_plugin_for_paths_on_s3(strategy):
    with pytest.raises(ConfigurationError, match="needs Trainer"):
        strategy.save_checkpoint({"state_dict": {}}, "s3://bucket/a.ckpt")
    with pytest.raises(ConfigurationError, match="needs Trainer"):
        strategy.load_checkpoint("s3://bucket/a.ckpt/.metadata")


def test_a_checkpoint_of_both_kinds_is_refused(seaweedfs, folder):
    io = S3LightningCheckpoint(seaweedfs.region)
    strategy = S3ModelParallelStrategy()
    strategy.checkpoint_io = io
    io.save_checkpoint({}, f"{folder}/a.ckpt")
    io.save_checkpoint({}, f"{folder}/a.ckpt/.metadata")
    with pytest.raises(ConfigurationError, match="delete one of them"):
        strategy.load_checkpoint(f"{folder}/a.ckpt")
    io.teardown()


@pytest.mark.timeout(420)
def test_ranks_save_and_resume_and_so_do_other_numbers_of_them(names, proxy, run_ranks):
    kinds = ["ddp", "sharded", "full"]
    runs = [f"{kind}={epochs}" for kind in kinds for epochs in ("2=", "3=last")]
    results = dict(zip(runs, run_ranks(2, *runs), strict=True))
    for kind in kinds:
        assert results[f"{kind}=3=last"]["step"] == 6
        assert results[f"{kind}=3=last"]["weights"] == results["ddp=3=last"]["weights"]
    found = set(names())
    assert {"ddp/last.ckpt", "full/last.ckpt"} <= found
    assert "sharded/last.ckpt/.metadata" in found
    assert sum(name.startswith("sharded/last.ckpt/") for name in found) == 4
    # One rank has read for both.
    for kind in ("ddp", "full"):
        assert len([one for one in proxy.requests("GET", key=f"/{kind}/last.ckpt") if one.status < 300]) == 1
    alone = run_ranks(1, *(f"{kind}=0=last" for kind in kinds[1:]), "sharded=4=last")
    for result, kind in zip(alone, kinds[1:], strict=False):
        assert result["weights"] == results[f"{kind}=3=last"]["weights"]
    assert alone[-1]["step"] == 10

"""Several ranks, in processes of their own, and models that they share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from s3torch.core import ConfigurationError, S3Client
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


def names(seaweedfs, folder):
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    with S3Client(seaweedfs.region) as client:
        pages = client.list_objects(bucket, f"{prefix}/")
        return sorted(info.key.removeprefix(f"{prefix}/") for page in pages for info in page.object_info)


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
def test_ranks_save_and_resume_and_so_do_other_numbers_of_them(seaweedfs, folder, proxy, run_ranks):
    runs = ["ddp=2=", "ddp=3=last", "sharded=2=", "sharded=3=last", "full=2=", "full=3=last"]
    results = dict(zip(runs, run_ranks(2, *runs), strict=True))
    assert [results[f"{kind}=3=last"]["step"] for kind in ("ddp", "sharded", "full")] == [6, 6, 6]
    assert results["sharded=3=last"]["weights"] == results["full=3=last"]["weights"]
    assert results["sharded=3=last"]["weights"] == results["ddp=3=last"]["weights"]
    found = names(seaweedfs, folder)
    assert {"ddp/last.ckpt", "full/last.ckpt", "sharded/last.ckpt/.metadata"} <= set(found)
    assert sum(name.startswith("sharded/last.ckpt/") for name in found) == 4
    # One rank has read for both.
    for kind in ("ddp", "full"):
        assert len([one for one in proxy.requests("GET", key=f"{kind}/last.ckpt") if one.status < 300]) == 1
    alone = run_ranks(1, "sharded=0=last", "full=0=last", "sharded=4=last")
    for result, kind in zip(alone, ("sharded", "full"), strict=False):
        assert result["weights"] == results[f"{kind}=3=last"]["weights"]
    assert alone[2]["step"] == 10

"""The programs in ``examples`` run, small, and do what their READMEs say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from tests.documents import ROOT, ScriptRunner

EXAMPLES = ROOT / "examples"
FOLDERS = sorted(path.parent.name for path in EXAMPLES.glob("*/README.md"))


@pytest.fixture(scope="module")
def runner():
    runner = ScriptRunner()
    yield runner
    runner.close()


@pytest.fixture
def environment(seaweedfs):
    return {**os.environ, **seaweedfs.environment(), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def bucket(seaweedfs):
    return seaweedfs.create_bucket()


@pytest.fixture
def run(runner, bucket, environment, tmp_path):
    """Runs the script of an example on a prefix of its own, and returns what it printed."""

    def run(script, *arguments, **variables):
        root = f"s3://{bucket}/{script.partition('/')[0]}"
        code, output = runner.run(
            EXAMPLES / script,
            folder=tmp_path,
            environment={**environment, **variables},
            arguments=[root, *arguments],
        )
        assert code == 0, output
        return output

    return run


@pytest.fixture
def torchrun(bucket, environment):
    """Runs the script of an example on two ranks, and returns what they printed."""

    def torchrun(script, *arguments):
        root = f"s3://{bucket}/{script.partition('/')[0]}"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        result = subprocess.run(
            [*command, EXAMPLES / script, root, *arguments], env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return torchrun


def test_every_example_is_listed():
    listed = re.findall(r"\((\S+)/README\.md\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == FOLDERS


def test_image_classification_resumes(run):
    small = ["--images=100", "--workers=1", "--save-every=2"]
    assert "epoch 0: " in run("image-classification/train.py", "--epochs=1", *small)
    output = run("image-classification/train.py", "--epochs=4", *small)
    assert "resumed in epoch 1" in output
    assert re.findall(r"epoch (\d): \d+% of 100 right", output) == ["1", "2", "3"]


def test_tar_shards(run):
    output = run("tar-shards/train.py", "--workers=1", "--shards=2", "--samples=60", "--epochs=2")
    assert re.findall(r"epoch (\d): \d+% of 120 right", output) == ["0", "1"]


def test_language_model_learns(run):
    output = run("parquet-language-model/train.py", "--steps=30", "--workers=0", "--files=2")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", output)]
    assert losses[-1] < losses[0] < 5


# What torchrun sets for a rank that is alone; port 0 takes one that is free.
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def test_ddp_resumes_with_other_ranks(torchrun, run):
    assert "world size 2: 16 samples, 16 different" in torchrun("ddp/train.py", "--objects=24", "--steps=2")
    assert "world size 1: 8 samples, 8 different" in run("ddp/train.py", "--steps=10", **ALONE)


def test_fsdp2_is_resharded(torchrun, run):
    saved = torchrun("fsdp2-dcp/train.py", "save", "--steps=2")
    loaded = run("fsdp2-dcp/train.py", "load", **ALONE)
    assert saved.startswith("save: world size 2")
    assert "load: world size 1" in loaded
    assert saved.split()[-1] == loaded.split()[-1]


def test_async_dcp(run):
    output = run("async-dcp/train.py", "--steps=6", "--every=2")
    assert "newest: step-6, removed: ['step-2']" in output


def test_lora_sends_only_what_changed(run):
    small = ["--every=1", "--width=1280", "--rank=2"]
    saves = r"sent ([\d.]+) MB, S3 copied ([\d.]+) MB"
    first, second = re.findall(saves, run("lora/train.py", "--steps=2", *small))
    assert (float(first[0]) > 13, first[1]) == (True, "0.0")
    assert second == ("0.1", "13.1")
    output = run("lora/train.py", "--steps=3", *small)
    assert "resumed from step-2" in output
    assert re.findall(saves, output) == [("0.1", "13.1")]
    assert "adapters.pt: 4 tensors, 0.0 MB" in output


def test_lightning_resumes(run):
    assert "epochs: 1, " in run("lightning/train.py", "--epochs=1")
    output = run("lightning/train.py", "--epochs=2")
    assert "epochs: 2, " in output
    assert "Restored all states" in output


def test_hugging_face(run):
    output = run("hugging-face/convert.py")
    assert "both are the same" in output
    assert "model.safetensors.index.json" in output
    assert output.count(".safetensors\n") == 2


def test_the_notebook_runs_from_top_to_bottom(runner, tmp_path):
    notebook = json.loads((EXAMPLES / "notebook" / "checkpoints.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    script = tmp_path / "notebook.py"
    script.write_text("\n".join(cells), encoding="utf-8")
    code, output = runner.run(script, folder=tmp_path, environment=dict(os.environ))
    assert code == 0, output
    assert "64 requests" in output


def test_the_local_server_of_the_examples():
    """It has the bucket, and ends with the command."""
    listing = "from s3torch.core import S3Client; print(list(S3Client().walk('my-bucket')))"
    command = [sys.executable, EXAMPLES / "with_local_s3.py", sys.executable, "-c", listing]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr

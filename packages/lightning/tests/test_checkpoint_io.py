"""The plugin by itself: what it saves, loads and removes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO

import s3torch.lightning
from s3torch.core import (
    ChecksumMismatchError,
    ConfigurationError,
    NotFoundError,
    S3ClientConfig,
    S3ReaderConstructor,
)
from s3torch.core.errors import S3Error
from s3torch.lightning import S3LightningCheckpoint
from s3torch.lightning.plugin import s3torch_user_agent
from s3torch.testing import Fault

STATE = {"epoch": 3, "weights": torch.arange(10_000, dtype=torch.float32)}


@pytest.fixture
def io(seaweedfs):
    plugin = S3LightningCheckpoint(seaweedfs.region, None, seaweedfs.endpoint)
    yield plugin
    plugin.teardown()


class Unpicklable:
    def __reduce__(self):
        raise ArithmeticError("cannot be saved")


def test_round_trip(io, folder):
    io.save_checkpoint(STATE, f"{folder}/a.ckpt")
    loaded = io.load_checkpoint(f"{folder}/a.ckpt")
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["weights"], STATE["weights"])
    onto = io.load_checkpoint(f"{folder}/a.ckpt", map_location="meta", weights_only=True)
    assert onto["weights"].device.type == "meta"


def test_path_objects_are_repaired(io, folder):
    path = Path(f"{folder}/a.ckpt")
    io.save_checkpoint(STATE, path)
    assert io.load_checkpoint(path)["epoch"] == 3
    io.remove_checkpoint(path)
    with pytest.raises(NotFoundError):
        io.load_checkpoint(f"{folder}/a.ckpt")


@pytest.mark.promise(2)
def test_a_flipped_byte_is_fetched_again(io, seaweedfs, fault_proxy, folder):
    proxy = fault_proxy(seaweedfs)
    state = {"weights": torch.arange(3_000_000)}
    io.save_checkpoint(state, f"{folder}/a.ckpt")
    reader = S3LightningCheckpoint(seaweedfs.region, S3ClientConfig(part_size=5 * 1024**2), proxy.endpoint)
    rule = proxy.add(Fault.flip(1_000_000), method="GET", skip=1, times=1)
    assert torch.equal(reader.load_checkpoint(f"{folder}/a.ckpt")["weights"], state["weights"])
    assert rule.hits == 1
    proxy.add(Fault.flip(1_000_000), method="GET")
    with pytest.raises(ChecksumMismatchError):
        reader.load_checkpoint(f"{folder}/a.ckpt")
    reader.teardown()


@pytest.mark.promise(1)
def test_a_save_that_fails_leaves_the_old_checkpoint(io, names, folder):
    io.save_checkpoint(STATE, f"{folder}/a.ckpt")
    with pytest.raises(ArithmeticError):
        io.save_checkpoint({"large": STATE["weights"], "bad": Unpicklable()}, f"{folder}/a.ckpt")
    assert io.load_checkpoint(f"{folder}/a.ckpt")["epoch"] == 3
    with pytest.raises(ArithmeticError):
        io.save_checkpoint({"bad": Unpicklable()}, f"{folder}/b.ckpt")
    assert names() == ["a.ckpt"]


@pytest.mark.promise(10)
def test_weights_only_is_passed_to_torch(io, folder):
    io.save_checkpoint({"path": Path("x")}, f"{folder}/a.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        io.load_checkpoint(f"{folder}/a.ckpt")
    assert io.load_checkpoint(f"{folder}/a.ckpt", weights_only=False) == {"path": Path("x")}


def test_removing(io, names, folder):
    io.save_checkpoint(STATE, f"{folder}/a.ckpt")
    io.remove_checkpoint(f"{folder}/a.ckpt")
    io.remove_checkpoint(f"{folder}/a.ckpt")
    assert names() == []


@pytest.mark.promise(9)
def test_removing_a_sharded_checkpoint_removes_all_of_it(io, names, folder):
    files = [".metadata", "deep/__0_0.distcp", "__1_0-0123456789abcdef.distcp", "meta.pt"]
    for name in (*(f"sharded.ckpt/{name}" for name in files), "sharded.ckpt2"):
        io.save_checkpoint({}, f"{folder}/{name}")
    io.remove_checkpoint(f"{folder}/sharded.ckpt")
    assert names() == ["sharded.ckpt2"]


@pytest.mark.promise(9)
def test_removing_leaves_what_is_not_of_the_checkpoint(io, names, folder):
    others = ["run/a.ckpt", "run/logs/events.1", "run/next.ckpt/.metadata", "run/next.ckpt/__0_0.distcp"]
    for name in others:
        io.save_checkpoint({}, f"{folder}/{name}")
    fresh = S3LightningCheckpoint(io.region)
    fresh.remove_checkpoint(f"{folder}/run")
    assert names() == others
    for name in ("run/.metadata", "run/__0_0.distcp"):
        io.save_checkpoint({}, f"{folder}/{name}")
    fresh.remove_checkpoint(f"{folder}/run")
    assert names() == others
    fresh.teardown()


@pytest.mark.parametrize("path", ["/local/a.ckpt", "s3://", "s3://bucket", "s3://bucket/", "s3://bucket//"])
def test_a_path_that_is_no_checkpoint_is_refused(io, path):
    for call in (io.load_checkpoint, io.remove_checkpoint, lambda path: io.save_checkpoint({}, path)):
        with pytest.raises(ConfigurationError):
            call(path)


def test_storage_options(io, names, folder):
    with pytest.raises(ConfigurationError, match="unknown storage_options acl"):
        io.save_checkpoint(STATE, f"{folder}/a.ckpt", storage_options={"acl": "private"})
    assert names() == []
    io.save_checkpoint({}, f"{folder}/a.ckpt", storage_options={"storage_class": "STANDARD_IA"})
    assert names() == ["a.ckpt"]


@pytest.mark.promise(5)
def test_it_goes_on_after_teardown_and_after_pickling(io, folder):
    io.save_checkpoint(STATE, f"{folder}/a.ckpt")
    io.teardown()
    io.teardown()
    assert io.load_checkpoint(f"{folder}/a.ckpt")["epoch"] == 3
    assert pickle.loads(pickle.dumps(io)).load_checkpoint(f"{folder}/a.ckpt")["epoch"] == 3


def test_another_reader(seaweedfs, folder):
    made = S3ReaderConstructor.range_based()
    io = S3LightningCheckpoint(seaweedfs.region, endpoint=seaweedfs.endpoint, reader_constructor=made)
    io.save_checkpoint(STATE, f"{folder}/a.ckpt")
    assert torch.equal(io.load_checkpoint(f"{folder}/a.ckpt")["weights"], STATE["weights"])
    io.teardown()


@pytest.mark.promise(7)
def test_async_saves_and_their_errors(io, folder):
    asynchronous = AsyncCheckpointIO(io)
    asynchronous.save_checkpoint(STATE, f"{folder}/a.ckpt")
    asynchronous.teardown()
    assert io.load_checkpoint(f"{folder}/a.ckpt")["epoch"] == 3
    # By the save itself, if its thread has been quick, or else at the end.
    with pytest.raises(NotFoundError), ExitStack() as at_the_end:
        at_the_end.callback(asynchronous.teardown)
        asynchronous.save_checkpoint(STATE, "s3://no-such-bucket-here/a.ckpt")


def test_nothing_is_sent_before_it_is_used():
    io = S3LightningCheckpoint("us-east-1", S3ClientConfig(max_attempts=1), "http://127.0.0.1:9")
    assert io.region == "us-east-1"
    with pytest.raises(ConfigurationError, match="invalid S3 endpoint"):
        S3LightningCheckpoint("us-east-1", None, "nowhere")


def test_a_server_that_is_down_is_an_error_of_ours(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    config = S3ClientConfig(max_attempts=1, transport="http", connect_timeout=1)
    io = S3LightningCheckpoint("us-east-1", config, "http://127.0.0.1:9")
    with pytest.raises(S3Error):
        io.load_checkpoint("s3://bucket/a.ckpt")


def test_the_package_and_its_plugin_are_light():
    code = (
        "import sys, s3torch.lightning.plugin; "
        "print([name for name in sys.modules if name in ('torch', 'lightning', 'awscrt', 'boto3')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    assert s3torch_user_agent().startswith("md/lightning#2.")
    with pytest.raises(AttributeError):
        _ = s3torch.lightning.nothing


def test_it_is_a_plugin_of_both_distributions():
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "import lightning_fabric.plugins.io.checkpoint_io as first\n"
        "from s3torch.lightning import S3LightningCheckpoint\n"
        "assert issubclass(S3LightningCheckpoint, first.CheckpointIO)\n"
        "assert 'lightning.fabric' not in sys.modules\n"
        "import lightning.fabric.plugins.io.checkpoint_io as second\n"
        "assert isinstance(S3LightningCheckpoint('us-east-1'), second.CheckpointIO)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pytorch_lightning_alone_is_enough():
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); sys.modules['lightning'] = None\n"
        "from s3torch.lightning import S3LightningCheckpoint\n"
        "assert S3LightningCheckpoint('us-east-1').region == 'us-east-1'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

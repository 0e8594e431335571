"""Small programs written against s3torchconnector; they run as they are."""

from __future__ import annotations

import operator
import pickle
from functools import partial

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._extension import ExtensionRegistry, ZStandard
from torch.distributed.checkpoint.api import CheckpointException
from torch.utils.data import DataLoader

from s3torch.datasets import Selection
from s3torch.dcp.manage import delete_checkpoint
from s3torchconnector import (
    S3Checkpoint,
    S3ClientConfig,
    S3Exception,
    S3IterableDataset,
    S3MapDataset,
    S3ReaderConstructor,
)
from s3torchconnector._s3client import MockS3Client, S3Client
from s3torchconnector.dcp import RoundRobinPrefixStrategy, S3FileSystem, S3StorageReader, S3StorageWriter

REGION = "us-east-1"
MIB = 1024 * 1024

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninit:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*os.fork.*:DeprecationWarning"),
]


@pytest.fixture
def images(folder):
    client = S3Client(REGION)
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    for number in range(6):
        with client.put_object(bucket, f"{prefix}/images/{number}.bin") as writer:
            writer.write(bytes([number]) * 100)
    client.close()
    return f"{folder}/images/"


def load_image(reader):
    return reader.key.rpartition("/")[2], len(reader.read())


def test_map_dataset_in_a_loader(images):
    dataset = S3MapDataset.from_prefix(images, region=REGION, transform=load_image)
    assert len(dataset) == 6
    assert dataset[-1] == ("5.bin", 100)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, shuffle=True)
    names = [name for batch in loader for name in batch[0]]
    assert sorted(names) == [f"{number}.bin" for number in range(6)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_iterable_dataset_with_sharding_in_a_loader(images, method):
    dataset = S3IterableDataset.from_prefix(
        images,
        region=REGION,
        enable_sharding=True,
        s3client_config=S3ClientConfig(throughput_target_gbps=5.0, part_size=5 * MIB),
        reader_constructor=S3ReaderConstructor.range_based(buffer_size=MIB),
        # What a spawned worker calls has to be importable there.
        transform=operator.methodcaller("read"),
    )
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=method)
    assert sorted(loader) == [bytes([number]) * 100 for number in range(6)]


def bytes_of(reader):
    return reader.read()


def test_datasets_from_objects(images):
    uris = [f"{images}{number}.bin" for number in (4, 2)]
    dataset = S3MapDataset.from_objects(uris, region=REGION)
    assert [reader.read(1) for reader in dataset] == [b"\4", b"\2"]
    assert (dataset.region, dataset.endpoint) == (REGION, None)
    stream = S3IterableDataset.from_objects(uris[0], region=REGION)
    assert [reader.key for reader in stream] == [uris[0].removeprefix("s3://").partition("/")[2]]


def test_options_of_s3torch_work_under_the_old_names(images, tmp_path):
    options = {"region": REGION, "transform": bytes_of, "prefetch": 3, "hedge_after": "p95"}
    dataset = S3MapDataset.from_prefix(images, select=Selection(suffix=("1.bin", "4.bin")), **options)
    assert [dataset[index] for index in range(2)] == [b"\1" * 100, b"\4" * 100]
    dataset.manifest().save(tmp_path / "list.jsonl")
    stream = S3IterableDataset.from_manifest(tmp_path / "list.jsonl", shuffle=True, **options)
    assert type(stream) is S3IterableDataset
    assert sorted(stream) == list(dataset)
    with pytest.raises(TypeError, match="prefech"):
        S3MapDataset.from_prefix(images, region=REGION, prefech=3)


@pytest.mark.promise(6)
def test_an_error_in_a_worker_keeps_its_class_and_text(folder):
    dataset = S3MapDataset.from_objects([f"{folder}/none"], region=REGION, transform=bytes_of)
    with pytest.raises(S3Exception, match="Service error: The key does not exist"):
        list(DataLoader(dataset, num_workers=1))


def test_checkpoints(folder):
    model = torch.nn.Linear(100, 10)
    checkpoint = S3Checkpoint(region=REGION)
    with checkpoint.writer(f"{folder}/epoch0.ckpt") as writer:
        torch.save(model.state_dict(), writer)
    with checkpoint.reader(f"{folder}/epoch0.ckpt") as reader:
        state = torch.load(reader, weights_only=True)
    assert torch.equal(state["weight"], model.weight)
    again = pickle.loads(pickle.dumps(checkpoint))
    with again.reader(f"{folder}/epoch0.ckpt") as reader:
        assert reader.read(2) == b"PK"


@pytest.mark.parametrize("thread_count", [1, 3])
def test_distributed_checkpoints(folder, thread_count):
    state = {"model": {"weight": torch.rand(64, 64), "bias": torch.rand(64)}, "step": 7}
    writer = S3StorageWriter(
        REGION,
        f"{folder}/dcp/",
        thread_count=thread_count,
        prefix_strategy=RoundRobinPrefixStrategy(["shard0", "shard1"], epoch_num=1),
    )
    dcp.save(state, storage_writer=writer)
    fresh = {"model": {"weight": torch.zeros(64, 64), "bias": torch.zeros(64)}, "step": 0}
    reader = S3StorageReader(
        region=REGION,
        path=f"{folder}/dcp",
        reader_constructor=S3ReaderConstructor.dcp_optimized(max_gap_size=MIB),
    )
    dcp.load(fresh, storage_reader=reader)
    assert fresh["step"] == 7
    assert torch.equal(fresh["model"]["weight"], state["model"]["weight"])
    files = S3FileSystem(REGION).ls(f"{folder}/dcp/shard0/epoch_1")
    assert files
    assert all(file.rpartition("/")[2].startswith("__0_") for file in files)


@pytest.mark.filterwarnings("ignore:Detected an existing checkpoint")
def test_each_rank_writes_as_many_files_as_it_has_threads(folder):
    path = f"{folder}/dcp"
    fs = S3FileSystem(REGION)
    for value in (1, 2):
        writer = S3StorageWriter(REGION, path, thread_count=4)
        dcp.save({"one": torch.full((3,), value)}, storage_writer=writer)
        files = {file.rpartition("/")[2] for file in fs.ls(path)}
        assert {name.partition("-")[0] for name in files} == {"__0_0", "__0_1", "__0_2", "__0_3", ".metadata"}
    loaded = {"one": torch.zeros(3)}
    dcp.load(loaded, storage_reader=S3StorageReader(REGION, path))
    assert loaded["one"].tolist() == [2, 2, 2]
    delete_checkpoint(path, client=S3Client(REGION))
    assert fs.ls(path) == []


class Settings:
    """Something that only planners of torch load, which run what is in it."""


def test_objects_are_loaded_as_by_torch_but_not_in_the_place_of_tensors(folder):
    path = f"{folder}/dcp"
    dcp.save({"settings": Settings()}, storage_writer=S3StorageWriter(REGION, path))
    loaded = {"settings": None}
    dcp.load(loaded, storage_reader=S3StorageReader(REGION, path))
    assert isinstance(loaded["settings"], Settings)
    with pytest.raises(CheckpointException, match="settings is a tensor in the state dict, but an object"):
        dcp.load({"settings": torch.zeros(1)}, storage_reader=S3StorageReader(REGION, path))
    with pytest.raises(CheckpointException, match="Settings, which is not known to be harmless"):
        dcp.load(loaded, storage_reader=S3StorageReader(REGION, path, weights_only=True))


def test_compressed_checkpoints(folder):
    path, state = f"{folder}/dcp", {"weight": torch.rand(64, 64)}
    dcp.save(state, storage_writer=S3StorageWriter(REGION, path, _extensions=[ZStandard()]))
    fresh = {"weight": torch.zeros(64, 64)}
    reader = S3StorageReader(REGION, path, thread_count=2, _extension_registry=ExtensionRegistry())
    dcp.load(fresh, storage_reader=reader)
    assert torch.equal(fresh["weight"], state["weight"])
    with pytest.raises(TypeError, match="unexpected keyword argument 'no_such'"):
        S3StorageReader(REGION, path, no_such=1)


def test_a_trainer(folder):
    lightning = pytest.importorskip("lightning")
    from s3torchconnector.lightning import S3LightningCheckpoint

    plugin = S3LightningCheckpoint(REGION)
    assert isinstance(plugin, lightning.pytorch.plugins.io.CheckpointIO)
    plugin.save_checkpoint({"epoch": 1}, f"{folder}/a.ckpt", storage_options={"ignored": True})
    assert plugin.load_checkpoint(f"{folder}/a.ckpt") == {"epoch": 1}
    plugin.remove_checkpoint(f"{folder}/a.ckpt")
    plugin.remove_checkpoint(f"{folder}/a.ckpt")
    with pytest.raises(S3Exception, match="The key does not exist"):
        plugin.load_checkpoint(f"{folder}/a.ckpt")
    plugin.teardown()


def test_paths_of_the_lightning_plugin_are_strings(tmp_path):
    pytest.importorskip("lightning")
    from s3torchconnector.lightning import S3LightningCheckpoint

    plugin = S3LightningCheckpoint(REGION)
    text = "'PosixPath' is not a supported type for 'path'. Must be a string formatted as an S3 uri."
    save = partial(plugin.save_checkpoint, {})
    for call in (save, plugin.load_checkpoint, plugin.remove_checkpoint):
        with pytest.raises(TypeError) as caught:
            call(tmp_path)
        assert str(caught.value) == text
        with pytest.raises(ValueError, match="Only s3:// URIs are supported"):
            call("/local/path")


def test_the_mock_takes_the_place_of_every_client():
    mock = MockS3Client(REGION, "bucket")
    mock.add_object("data/a", b"aa")
    mock.add_object("data/b", b"b")
    dataset = S3MapDataset.from_prefix("s3://bucket/data/", region=REGION, transform=bytes_of)
    dataset._client = mock
    assert list(dataset) == [b"aa", b"b"]
    stream = S3IterableDataset.from_prefix("s3://bucket/data/", region=REGION, transform=bytes_of)
    stream._client = mock
    assert list(stream) == [b"aa", b"b"]
    checkpoint = S3Checkpoint(REGION)
    checkpoint._client = mock
    with checkpoint.writer("s3://bucket/new") as writer:
        writer.write(b"new")
    assert checkpoint.reader("s3://bucket/new").read() == b"new"
    fs = S3FileSystem(REGION, s3_client=mock)
    fs.rename("s3://bucket/new", "s3://bucket/n w+%")
    assert fs.exists("s3://bucket/n w+%")
    assert not fs.exists("s3://bucket/new")
    mock.remove_object("data/a")
    with pytest.raises(S3Exception, match="Service error: The key does not exist"):
        dataset[0]

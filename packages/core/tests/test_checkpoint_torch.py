"""Checkpoints of torch: what is loaded is what was saved, and what is not a checkpoint says so."""

from __future__ import annotations

import io
import pickle
import sys

import pytest

from s3torch.core import S3Checkpoint, S3ClientConfig, S3ReaderConstructor
from s3torch.core.errors import (
    CheckpointFormatError,
    ChecksumMismatchError,
    ConfigurationError,
    MissingPackageError,
    NotFoundError,
)
from s3torch.core.transfer import checksum
from s3torch.testing import Fault

torch = pytest.importorskip("torch")
pytest.importorskip("torch.utils.serialization")

PART = 5 * 2**20
URI = "s3://bucket/run/epoch0.pt"
either = pytest.mark.parametrize("mmap", [None, False, True])


@pytest.fixture
def checkpoint(store):
    config = S3ClientConfig(transport="memory", endpoint=store.endpoint, part_size=PART)
    with S3Checkpoint("us-east-1", None, config) as checkpoint:
        yield checkpoint


@pytest.fixture
def put(store):
    def put(data):
        store.put("bucket", "run/epoch0.pt", data)

    return put


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


STATE = {
    "large": torch.arange(3 * PART // 8),
    "small": torch.tensor([1.5, -2.5], dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
    "epoch": 7,
}


def check(state):
    assert list(state) == list(STATE)
    assert all(torch.equal(state[name], STATE[name]) for name in ("large", "small", "empty"))
    assert state["epoch"] == 7


@either
def test_what_is_saved_is_loaded(checkpoint, mmap):
    checkpoint.save(STATE, URI)
    state = checkpoint.load(URI, mmap=mmap)
    check(state)
    # They are ordinary tensors, also when nothing but them is left.
    state["large"] += 1
    assert torch.equal(state["large"], STATE["large"] + 1)
    check(checkpoint.load(URI, mmap=mmap))


def test_it_is_the_format_of_torch(checkpoint, store, put):
    checkpoint.save(STATE, URI)
    assert store.get("bucket", "run/epoch0.pt").data == saved(STATE)


def test_tensors_share_storage_as_before(checkpoint):
    whole = torch.arange(10.0)
    checkpoint.save([whole, whole[2:5], whole.reshape(2, 5).t()], URI)
    for mmap in (False, True):
        first, second, third = checkpoint.load(URI, mmap=mmap)
        first[3] = -1
        assert (second[1], third[3, 0]) == (-1, -1)


@either
def test_places_of_tensors(checkpoint, put, mmap):
    put(saved({"a": torch.ones(3)}))
    assert checkpoint.load(URI, "meta", mmap=mmap)["a"].device.type == "meta"
    assert checkpoint.load(URI, map_location=lambda storage, _: storage, mmap=mmap)["a"].sum() == 3


class Harmless:
    """Something that is no tensor."""


@pytest.mark.promise(10)
@either
def test_code_is_not_run_unless_it_is_wanted(checkpoint, put, mmap):
    put(saved({"a": Harmless()}))
    for weights_only in (None, True):
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed") as caught:
            checkpoint.load(URI, weights_only=weights_only, mmap=mmap)
        assert any(URI in note for note in caught.value.__notes__)
    assert isinstance(checkpoint.load(URI, weights_only=False, mmap=mmap)["a"], Harmless)


def test_the_format_of_torch_before_1_6(checkpoint, put):
    put(saved(STATE, _use_new_zipfile_serialization=False))
    check(checkpoint.load(URI))
    with pytest.raises(RuntimeError, match="mmap can only be used"):
        checkpoint.load(URI, mmap=True)


@pytest.fixture
def torch_maps():
    settings = torch.utils.serialization.config.load
    before, settings.mmap = settings.mmap, True
    yield
    settings.mmap = before


@pytest.mark.usefixtures("torch_maps")
def test_the_setting_of_torch(checkpoint, put):
    put(saved(STATE, _use_new_zipfile_serialization=False))
    with pytest.raises(RuntimeError, match="mmap can only be used"):
        checkpoint.load(URI)
    check(checkpoint.load(URI, mmap=False))


ARCHIVE = saved({"a": torch.arange(1000)})
OLD = saved({"a": torch.arange(1000)}, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(
    "data",
    [b"", b"PK", b"<html>not found</html>", ARCHIVE[:-50], ARCHIVE[:100], ARCHIVE[:4], bytes(1000)],
    ids=["empty", "two-bytes", "page", "cut-at-the-end", "cut", "cut-at-once", "zeros"],
)
def test_what_is_no_checkpoint_says_so(checkpoint, put, data, mmap):
    put(data)
    with pytest.raises(CheckpointFormatError, match="not a complete torch.save file") as caught:
        checkpoint.load(URI, mmap=mmap)
    assert (caught.value.bucket, caught.value.key) == ("bucket", "run/epoch0.pt")


@pytest.mark.parametrize("data", [OLD[:50], OLD[:-100], OLD[:1], ARCHIVE[200:]], ids=len)
def test_a_damaged_one_is_named(checkpoint, put, data):
    put(data)
    with pytest.raises(Exception, match=".") as caught:
        checkpoint.load(URI)
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert URI in text


@either
def test_a_missing_one(checkpoint, mmap):
    with pytest.raises(NotFoundError):
        checkpoint.load("s3://bucket/missing.pt", mmap=mmap)
    for call in (checkpoint.load, lambda uri: checkpoint.save({}, uri)):
        with pytest.raises(ConfigurationError, match="key"):
            call("s3://bucket")


def test_without_torch(checkpoint, put, store, monkeypatch):
    put(ARCHIVE)
    monkeypatch.setitem(sys.modules, "torch", None)
    for call in (lambda: checkpoint.load(URI), lambda: checkpoint.save({}, "s3://bucket/new")):
        with pytest.raises(MissingPackageError, match="pip install torch"):
            call()
    assert [info.key for info in checkpoint.list("s3://bucket/")] == ["run/epoch0.pt"]


def test_a_save_that_fails_keeps_the_old_one(checkpoint, put):
    put(ARCHIVE)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoint.save({"a": torch.ones(PART), "b": lambda: None}, URI)
    assert torch.equal(checkpoint.load(URI)["a"], torch.arange(1000))


def test_without_files_in_memory(checkpoint, put, monkeypatch, tmp_path):
    put(saved(STATE))
    monkeypatch.delattr("os.memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    check(checkpoint.load(URI, mmap=True))
    assert list(tmp_path.iterdir()) == []


def test_other_readers(store, put):
    put(saved(STATE))
    config = S3ClientConfig(transport="memory", endpoint=store.endpoint)
    constructor = S3ReaderConstructor.range_based(0)
    check(S3Checkpoint("x", s3client_config=config, reader_constructor=constructor).load(URI))


def test_the_list(checkpoint):
    for name in ("a", "b", "c/d"):
        checkpoint.save({}, f"s3://bucket/{name}.pt")
    assert [info.key for info in checkpoint.list("s3://bucket")] == ["a.pt", "b.pt", "c/d.pt"]
    assert [info.key for info in checkpoint.list("s3://bucket/c/")] == ["c/d.pt"]


@pytest.mark.promise(2)
@pytest.mark.parametrize("mmap", [False, True])
def test_a_flipped_byte_is_fetched_again(wire, mmap):
    wire.put("k.pt", saved(STATE), ChecksumAlgorithm="CRC64NVME")
    config = S3ClientConfig(transport=wire.transport, part_size=PART)
    checkpoint = S3Checkpoint("us-east-1", wire.proxy.endpoint, config)
    uri = f"s3://{wire.bucket}/k.pt"
    rule = wire.proxy.add(Fault.flip(PART // 2), method="GET", times=1)
    check(checkpoint.load(uri, mmap=mmap))
    assert rule.hits == 1
    wire.proxy.heal()
    wire.proxy.add(Fault.flip(PART // 2), method="GET")
    with pytest.raises(ChecksumMismatchError):
        checkpoint.load(uri, mmap=mmap)


@pytest.mark.parametrize("mmap", [False, True])
def test_parts_of_unequal_sizes_are_no_damage(wire, mmap):
    data, upload = saved(STATE), {"Bucket": wire.bucket, "Key": "k.pt"}
    begun = wire.direct.create_multipart_upload(**upload, ChecksumAlgorithm="CRC32", ChecksumType="COMPOSITE")
    upload["UploadId"], parts = begun["UploadId"], []
    for number, part in enumerate((data[:PART], data[PART:]), start=1):
        told = {"ChecksumCRC32": checksum("CRC32", memoryview(part))[1]}
        etag = wire.direct.upload_part(**upload, PartNumber=number, Body=part, **told)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag, **told})
    wire.direct.complete_multipart_upload(
        **upload, MultipartUpload={"Parts": parts}, ChecksumType="COMPOSITE"
    )
    config = S3ClientConfig(transport=wire.transport, part_size=PART)
    checkpoint = S3Checkpoint("us-east-1", wire.proxy.endpoint, config)
    check(checkpoint.load(f"s3://{wire.bucket}/k.pt", mmap=mmap))


@pytest.mark.parametrize("mmap", [False, True])
def test_a_load_is_a_request_for_each_part(wire, mmap):
    data = saved(STATE)
    wire.put("checkpoint.pt", data)
    config = S3ClientConfig(transport=wire.transport, part_size=PART)
    with S3Checkpoint("us-east-1", wire.proxy.endpoint, config) as checkpoint:
        check(checkpoint.load(f"s3://{wire.bucket}/checkpoint.pt", mmap=mmap))
        assert sorted(wire.methods) == wire.asked(-(-len(data) // PART), whole=wire.transport == "http")
        checkpoint.save({"a": torch.ones(3)}, f"s3://{wire.bucket}/new.pt")
        assert wire.methods == ["PUT"]


def test_torch_reads_and_writes_with_a_request_for_each_part(wire):
    config = S3ClientConfig(transport=wire.transport, part_size=PART)
    data = saved(STATE)
    wire.put("checkpoint.pt", data)
    with S3Checkpoint("us-east-1", wire.proxy.endpoint, config) as checkpoint:
        with checkpoint.reader(f"s3://{wire.bucket}/checkpoint.pt") as reader:
            check(torch.load(reader))
        assert sorted(wire.methods) == wire.asked(-(-len(data) // PART), whole=wire.transport == "http")
        with checkpoint.writer(f"s3://{wire.bucket}/new.pt") as writer:
            torch.save({"a": torch.ones(3)}, writer)
        assert wire.methods == ["PUT"]
    assert torch.equal(torch.load(io.BytesIO(wire.get("new.pt")))["a"], torch.ones(3))


def test_no_room_for_a_file_to_map(python):
    """The error says how to do without."""
    done = python(
        """
        import resource
        import torch
        from s3torch.core import S3Checkpoint, S3ClientConfig, S3Error
        from s3torch.testing import MemoryStore

        MemoryStore.at("http://room").create_bucket("bucket")
        config = S3ClientConfig(transport="memory", endpoint="http://room")
        checkpoint = S3Checkpoint("us-east-1", s3client_config=config)
        with checkpoint.writer("s3://bucket/key") as writer:
            torch.save(torch.zeros(2**20), writer)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
        try:
            checkpoint.load("s3://bucket/key", mmap=True)
        except S3Error as error:
            print(error)
        assert checkpoint.load("s3://bucket/key", mmap=False).numel() == 2**20
        """
    )
    assert "s3://bucket/key" in done.stdout
    assert "mmap=False" in done.stdout

"""Checkpoints on S3 servers, through the default transport."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException

from s3torch.core import AccessDeniedError, Credentials, NotFoundError, S3ReaderConstructor
from s3torch.core.ranges import MIB
from s3torch.dcp import HexPrefixStrategy, S3StorageReader, S3StorageWriter

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("single_file_per_rank", [True, False])
def test_round_trip(server_place, state, blank_of, are_same, threads, single_file_per_rank):
    writer = server_place.writer(
        prefix_strategy=HexPrefixStrategy(epoch_num=1),
        thread_count=threads,
        single_file_per_rank=single_file_per_rank,
    )
    dcp.save(state, storage_writer=writer)
    loaded = blank_of(state)
    dcp.load(loaded, storage_reader=server_place.reader())
    assert are_same(loaded, state)


@pytest.mark.parametrize(
    "constructor",
    [
        S3ReaderConstructor.sequential(),
        S3ReaderConstructor.range_based(),
        S3ReaderConstructor.dcp_optimized(0),
    ],
)
def test_every_kind_of_reader(server_place, state, blank_of, are_same, constructor):
    dcp.save(state, storage_writer=server_place.writer())
    loaded = blank_of(state)
    dcp.load(loaded, storage_reader=server_place.reader(reader_constructor=constructor))
    assert are_same(loaded, state)


def test_tensors_larger_than_a_part(seaweed_place):
    state = {"large": torch.randn(5 * MIB), "other": torch.randn(3 * MIB)}
    dcp.save(state, storage_writer=seaweed_place.writer(thread_count=2))
    loaded = {name: torch.zeros_like(value) for name, value in state.items()}
    dcp.load(loaded, storage_reader=seaweed_place.reader())
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_interchange_with_stock_torch(server_place, state, blank_of, are_same, tmp_path):
    dcp.save(state, storage_writer=server_place.writer(thread_count=2))
    server_place.download("checkpoint", tmp_path / "ours")
    loaded = blank_of(state)
    dcp.load(loaded, storage_reader=dcp.FileSystemReader(tmp_path / "ours"))
    assert are_same(loaded, state)
    for name, writer in [
        ("local", dcp.FileSystemWriter(tmp_path / "local", thread_count=2)),
        ("fsspec", FsspecWriter(f"file://{tmp_path}/fsspec")),
    ]:
        dcp.save(state, storage_writer=writer)
        server_place.upload(tmp_path / name, name)
        loaded = blank_of(state)
        dcp.load(loaded, storage_reader=server_place.reader(name))
        assert are_same(loaded, state)


def test_overwrite_can_be_forbidden(server_place):
    writer = server_place.writer(overwrite=False)
    dcp.save({"a": torch.ones(3)}, storage_writer=writer)
    with pytest.raises(CheckpointException, match="Checkpoint already exists"):
        dcp.save({"a": torch.zeros(3)}, storage_writer=writer)

    class Late(S3StorageWriter):
        def _check_overwrite(self, before):
            """Looks before the other job has committed."""

    late = Late("us-east-1", server_place.uri("checkpoint"), server_place.config, overwrite=False)
    with pytest.raises(CheckpointException, match="Checkpoint already exists"):
        dcp.save({"a": torch.zeros(3)}, storage_writer=late)
    loaded = {"a": torch.zeros(3)}
    with pytest.raises(CheckpointException):
        dcp.load(loaded, storage_reader=server_place.reader("other"))


def test_an_explicit_endpoint(seaweedfs, seaweed_place, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    uri = seaweed_place.uri("explicit")
    writer = S3StorageWriter(None, uri, seaweed_place.config, endpoint=seaweedfs.endpoint)
    dcp.save({"a": torch.ones(3)}, storage_writer=writer)
    loaded = {"a": torch.zeros(3)}
    reader = S3StorageReader(None, uri, seaweed_place.config, endpoint=seaweedfs.endpoint)
    dcp.load(loaded, storage_reader=reader)
    assert torch.equal(loaded["a"], torch.ones(3))


def failure_of(caught):
    """The error of rank 0."""
    return caught.value.failures[0][0]


@pytest.mark.promise(6)
@pytest.mark.parametrize("numbers", [10, 3 * MIB])
def test_the_error_of_s3_is_not_hidden_by_torch(server_place, numbers):
    with pytest.raises(CheckpointException) as caught:
        dcp.save(
            {"a": torch.ones(numbers)},
            storage_writer=server_place.writer(),
            checkpoint_id="s3://no-such-bucket-here/a",
        )
    assert isinstance(failure_of(caught), NotFoundError)


def test_somebody_who_may_only_read(seaweedfs, seaweed_place):
    def may_read():
        return Credentials(seaweedfs.reader.access_key, seaweedfs.reader.secret_key)

    dcp.save({"a": torch.ones(3)}, storage_writer=seaweed_place.writer())
    place = replace(seaweed_place, config=replace(seaweed_place.config, credentials=may_read))
    loaded = {"a": torch.zeros(3)}
    dcp.load(loaded, storage_reader=place.reader())
    assert torch.equal(loaded["a"], torch.ones(3))
    for threads in (1, 4):
        state = {str(n): torch.ones(3) for n in range(4)}
        with pytest.raises(CheckpointException) as caught:
            dcp.save(state, storage_writer=place.writer("new", thread_count=threads))
        assert isinstance(failure_of(caught), AccessDeniedError)
    assert seaweed_place.listed("new/") == []

"""Checkpoints that version 0.1.0 has written, byte by byte."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from s3torch.dcp import S3HuggingFaceStorageReader, load_sharded
from s3torch.dcp.manage import list_checkpoints, sweep_checkpoint, verify_checkpoint

FILE = Path(__file__).with_name("data") / "checkpoints-0.1.0.zip"
TENSORS = {"weight": torch.arange(6.0).view(2, 3), "half": torch.arange(5).half()}
STATE = {
    "model": TENSORS | {"turned": torch.arange(6).view(2, 3).t()},
    "objects": {"step": 17, "name": "run"},
}

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")


@pytest.fixture
def old(place):
    with zipfile.ZipFile(FILE) as archive:
        for name in archive.namelist():
            place.put(name, archive.read(name))
    return place


@pytest.mark.parametrize("path", ["archives", "safetensors", "again"])
def test_they_load(old, path, blank_of, are_same):
    loaded = blank_of(STATE)
    dcp.load(loaded, storage_reader=old.reader(path))
    assert are_same(loaded, STATE)


@pytest.mark.parametrize("path", ["hugging_face", "consolidated", "consolidated/sharded"])
def test_they_load_in_the_layout_of_hugging_face(old, path, blank_of, are_same):
    loaded = blank_of(TENSORS)
    reader = S3HuggingFaceStorageReader("us-east-1", old.uri(path), old.config)
    dcp.load(loaded, storage_reader=reader)
    assert are_same(loaded, TENSORS)
    assert are_same(load_sharded(old.uri(path), client=old.client()), TENSORS)


def test_they_are_known_and_whole(old):
    client = old.client()
    found = {one.name for one in list_checkpoints(old.uri(), client=client)}
    assert found == {"again", "archives", "consolidated", "hugging_face", "safetensors"}
    for name in found:
        report = verify_checkpoint(old.uri(name), depth="bytes", client=client)
        assert (report.problems, report.unchecked) == ((), ())
        assert sweep_checkpoint(old.uri(name), older_than=-10, client=client) == []

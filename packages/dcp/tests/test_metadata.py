"""The metadata of a checkpoint is read without running what is in it."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

from s3torch.dcp import CheckpointError
from s3torch.dcp._metadata import FileFacts, decode_metadata, file_facts, file_names

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")

URI = "s3://bucket/checkpoint/.metadata"


class Extra:
    """A class that somebody's planner writes."""

    def __init__(self):
        self.value = 3


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def body_of(planner_data):
    return pickle.dumps(Metadata({}, planner_data=planner_data, storage_data={}))


def test_what_torch_writes_is_read(place, state):
    dcp.save(state, storage_writer=place.writer(thread_count=2))
    body = place.get("checkpoint/.metadata")
    assert decode_metadata(body, uri=URI) == pickle.loads(body)
    plain = [Path("a/b"), {1, 2}, OrderedDict(a=1), torch.Size([3]), torch.float16, torch.strided, 1j, b"b"]
    assert decode_metadata(body_of(plain), uri=URI).planner_data == plain


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_any_protocol_of_pickle_is_read(place, state, protocol):
    metadata = dcp.save(state, storage_writer=place.writer())
    assert decode_metadata(pickle.dumps(metadata, protocol), uri=URI) == metadata


@pytest.mark.promise(10)
def test_nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"\.metadata contains .*mkdir, which is not known"):
        decode_metadata(body_of(Harmful()), uri=URI)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.promise(10)
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "load"),
        ("torch.serialization", "os.system"),
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch.distributed.checkpoint.filesystem", "FileSystemWriter"),
        ("builtins", "eval"),
        ("pathlib", "os.system"),
    ],
)
def test_no_way_round_the_list(module, name):
    body = b"\x80\x04" + pickle.SHORT_BINUNICODE + bytes([len(module)]) + module.encode()
    body += pickle.SHORT_BINUNICODE + bytes([len(name)]) + name.encode() + pickle.STACK_GLOBAL + b"."
    with pytest.raises(CheckpointError, match="is not known to be harmless"):
        decode_metadata(body, uri=URI)


def test_classes_can_be_allowed(place):
    body = body_of(Extra())
    place.put("checkpoint/.metadata", body)
    with pytest.raises(CheckpointError, match="safe_globals"):
        place.reader().read_metadata()
    assert place.reader(safe_globals=[Extra]).read_metadata().planner_data.value == 3
    with torch.serialization.safe_globals([Extra]):
        assert place.reader().read_metadata().planner_data.value == 3
    named = [(Extra, f"{Extra.__module__}.{Extra.__qualname__}")]
    assert decode_metadata(body, uri=URI, safe_globals=named).planner_data.value == 3


@pytest.mark.parametrize("body", [b"", b"no pickle", pickle.dumps({"a": 1}), body_of(1)[:-10]])
def test_damage_is_told_with_the_uri(place, body):
    place.put("checkpoint/.metadata", body)
    with pytest.raises(CheckpointError, match=r"s3://bucket/checkpoint/\.metadata is"):
        place.reader().read_metadata()


def test_sizes_and_checksums_of_files_are_noted(place, state, tmp_path):
    metadata = dcp.save(state, storage_writer=place.writer(thread_count=3))
    facts = file_facts(metadata)
    assert set(facts) == file_names(metadata)
    assert len(facts) == 3
    for name, known in facts.items():
        with place.client().put_object(place.bucket, "again") as writer:
            writer.write(place.get(f"checkpoint/{name}"))
        assert known == FileFacts(writer.tell(), writer.checksum)
    place.download("checkpoint", tmp_path)
    stock = dcp.FileSystemWriter(tmp_path / "stock")
    assert file_facts(dcp.save(state, storage_writer=stock)) == {}
    assert pickle.load(io.BytesIO(place.get("checkpoint/.metadata"))) == metadata

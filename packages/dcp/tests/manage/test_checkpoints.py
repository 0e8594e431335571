"""Listing, verifying, deleting and thinning out checkpoints."""

from __future__ import annotations

import json
import os
import pickle
import time

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save as safetensors_save

from s3torch.core import NotFoundError, S3Error
from s3torch.dcp import CheckpointError, S3HuggingFaceStorageWriter, S3StorageWriter
from s3torch.dcp.manage import (
    delete_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    sweep_checkpoint,
    verify_checkpoint,
)
from s3torch.testing.faults import Fault

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled, unavailable or uninitialized",
    "ignore:Detected an existing checkpoint",
)

STATE = {f"t{n}": torch.full((50, n + 1), float(n)) for n in range(6)}


def save(place, path, **options):
    dcp.save(STATE, storage_writer=place.writer(path, **options))


def names(checkpoints):
    return [one.name for one in checkpoints]


def test_only_complete_checkpoints_are_listed(place):
    client, root = place.client(), place.uri("run")
    assert list_checkpoints(root, client=client) == []
    assert latest_checkpoint(root, client=client) is None
    for step in (9, 10, 100):
        save(place, f"run/step-{step}")
    save(place, "run-2/step-1")
    place.put("run/step-200/__0_0.distcp", b"of a save that was not completed")
    dcp.save(STATE, storage_writer=place.writer("run/alone"), use_collectives=False)
    assert names(list_checkpoints(root, client=client)) == ["step-9", "step-10", "step-100"]
    latest = latest_checkpoint(f"{root}/", client=client)
    assert (latest.uri, latest.step) == (place.uri("run/step-100"), 100)
    assert names(list_checkpoints(latest.uri, client=client)) == [""]
    assert len(list_checkpoints(place.uri(), client=client)) == 4


@pytest.mark.parametrize("depth", ["sizes", "checksums", "bytes"])
def test_a_whole_checkpoint(server_place, depth):
    save(server_place, "checkpoint", thread_count=3)
    report = verify_checkpoint(server_place.uri("checkpoint"), depth=depth, client=server_place.client())
    assert report.is_whole
    assert report.problems == ()
    assert report.files == 3
    files = [server_place.key(f"checkpoint/__0_{n}.distcp") for n in range(3)]
    assert report.size == sum(len(server_place.get(file)) for file in files)
    assert report.unchecked == () or depth == "checksums"


@pytest.mark.promise(2)
def test_what_is_wrong_is_told(place):
    save(place, "checkpoint", thread_count=4)
    client, uri = place.client(), place.uri("checkpoint")
    files = [place.key(f"checkpoint/__0_{n}.distcp") for n in range(4)]
    data = bytearray(place.get(files[1]))
    data[700] ^= 1
    place.put(files[1], data)
    place.put(files[2], data[:100])
    client.delete_object(place.bucket, files[3])
    names = [file.removeprefix("checkpoint/") for file in files]
    by_size = verify_checkpoint(uri, client=client)
    assert [text.split(" ")[:3] for text in by_size.problems] == [
        [names[2], "has", "100"],
        [names[3], "is", "missing"],
    ]
    assert not by_size.is_whole
    by_bytes = verify_checkpoint(uri, depth="bytes", client=client)
    assert len(by_bytes.problems) == 3
    assert by_bytes.problems[0].startswith(f"{names[1]} has the CRC64NVME")


@pytest.mark.promise(2)
@pytest.mark.parametrize("depth", ["checksums", "bytes"])
def test_a_flipped_byte_in_a_stored_file_is_found(place, depth):
    save(place, "checkpoint")
    client, uri = place.client(), place.uri("checkpoint")
    key = place.key("checkpoint/__0_0.distcp")
    data = bytearray(place.get(key))
    data[len(data) // 2] ^= 1
    place.put(key, data)
    assert verify_checkpoint(uri, depth="sizes", client=client).is_whole
    report = verify_checkpoint(uri, depth=depth, client=client)
    assert not report.is_whole
    (problem,) = report.problems
    assert problem.startswith(f"{key.removeprefix('checkpoint/')} has the CRC64NVME ")
    assert report.unchecked == ()


def test_a_checkpoint_of_stock_torch(place, tmp_path):
    dcp.save(STATE, storage_writer=dcp.FileSystemWriter(tmp_path))
    place.upload(tmp_path, "stock")
    client, uri = place.client(), place.uri("stock")
    report = verify_checkpoint(uri, depth="bytes", client=client)
    assert report.is_whole
    assert report.unchecked == ("__0_0.distcp",)
    place.put("stock/__0_0.distcp", place.get("stock/__0_0.distcp")[:-1])
    (problem,) = verify_checkpoint(uri, client=client).problems
    assert "but its items end at" in problem


def test_nothing_to_verify(place):
    with pytest.raises(NotFoundError):
        verify_checkpoint(place.uri("missing"), client=place.client())
    place.put("damaged/.metadata", b"x")
    with pytest.raises(CheckpointError, match="is damaged"):
        verify_checkpoint(place.uri("damaged"), client=place.client())
    with pytest.raises(ValueError, match="depth must be"):
        save(place, "whole")
        verify_checkpoint(place.uri("whole"), depth="deep", client=place.client())


def test_a_deleted_checkpoint_is_gone_whole(place):
    for path in ("run", "run/step-1", "run/step-10"):
        save(place, path, thread_count=2)
    place.put("run/step-1/config.json", b"{}")
    delete_checkpoint(place.uri("run/step-1"), client=place.client())
    assert names(list_checkpoints(place.uri("run"), client=place.client())) == ["", "step-10"]
    assert place.listed("run/step-1/") == ["run/step-1/config.json"]
    delete_checkpoint(place.uri("run"), client=place.client())
    files = [f"run/step-10/{name}" for name in (".metadata", "__0_0.distcp", "__0_1.distcp")]
    assert place.plain() == ["run/step-1/config.json", *files]
    with pytest.raises(NotFoundError, match="there is no checkpoint"):
        delete_checkpoint(place.uri("run"), client=place.client())


def test_a_deletion_that_fails_leaves_nothing_visible(seaweed_place, fault_proxy, seaweedfs):
    save(seaweed_place, "checkpoint")
    proxy = fault_proxy(seaweedfs)
    client = type(seaweed_place.client())(
        "us-east-1", endpoint=proxy.endpoint, s3client_config=seaweed_place.config
    )
    proxy.add(Fault.error(403, "AccessDenied"), method="POST")
    with pytest.raises(S3Error, match="AccessDenied"):
        delete_checkpoint(seaweed_place.uri("checkpoint"), client=client)
    assert list_checkpoints(seaweed_place.uri(), client=client) == []
    proxy.heal()
    assert sweep_checkpoint(seaweed_place.uri("checkpoint"), older_than=-60, client=client)
    assert seaweed_place.listed() == []


def test_pruning(place):
    client, root = place.client(), place.uri("run")
    for step in range(1, 7):
        save(place, f"run/step-{step}")
    rules = {"last": 2, "every": 3, "protect": [place.uri("run/step-2")], "client": client}
    chosen = prune_checkpoints(root, dry_run=True, **rules)
    assert names(chosen) == ["step-1", "step-4"]
    assert len(list_checkpoints(root, client=client)) == 6
    assert prune_checkpoints(root, **rules) == chosen
    assert names(list_checkpoints(root, client=client)) == ["step-2", "step-3", "step-5", "step-6"]


OTHERS = {
    "run/logs/events.1": b"log",
    "run/last.ckpt": b"a checkpoint of one file",
    "run/config.json": b"{}",
    "run/export/model-00001-of-00001.safetensors": b"weights",
    "run/going/__0_0-0123456789abcdef.distcp": b"of a save that is going on",
}


@pytest.mark.promise(9)
def test_pruning_a_root_that_is_a_checkpoint_itself(place):
    save(place, "run")
    for key, data in OTHERS.items():
        place.put(key, data)
    for step in range(1, 4):
        save(place, f"run/step-{step}")
    before = place.listed()
    client, root = place.client(), place.uri("run")
    assert names(prune_checkpoints(root, last=1, client=client)) == ["step-1", "step-2"]
    gone = set(before) - set(place.listed())
    assert gone == {key for key in before if key.startswith(("run/step-1/", "run/step-2/"))}
    assert names(list_checkpoints(root, client=client)) == ["", "step-3"]


@pytest.mark.promise(9)
@pytest.mark.parametrize("path", ["", "run"])
def test_deleting_removes_the_files_of_the_checkpoint_and_nothing_else(place, path):
    for key, data in OTHERS.items():
        place.put(key, data)
    save(place, "run/step-1")
    before = place.listed()
    if not path:
        with pytest.raises(NotFoundError):
            delete_checkpoint(place.uri(path), client=place.client())
        assert place.listed() == before
    save(place, path, prefix_strategy="hex", thread_count=2)
    delete_checkpoint(place.uri(path), client=place.client())
    assert place.listed() == before


@pytest.mark.promise(9)
def test_deleting_leaves_a_save_that_is_going_on(place):
    class Interrupted(S3StorageWriter):
        def finish(self, metadata, results):
            time.sleep(1.1)
            delete_checkpoint(place.uri("checkpoint"), client=place.client())
            super().finish(metadata, results)

    save(place, "checkpoint")
    time.sleep(1.1)
    dcp.save(STATE, storage_writer=Interrupted("us-east-1", place.uri("checkpoint"), place.config))
    assert verify_checkpoint(place.uri("checkpoint"), depth="bytes", client=place.client()).is_whole


@pytest.mark.promise(9)
def test_deleting_a_checkpoint_whose_metadata_is_refused(place):
    save(place, "checkpoint")
    place.put("checkpoint/.metadata", pickle.dumps(os.getcwd))
    with pytest.warns(UserWarning, match="which is not known to be harmless.* sweep_checkpoint removes"):
        delete_checkpoint(place.uri("checkpoint"), client=place.client())
    assert place.plain() == ["checkpoint/__0_0.distcp"]
    sweep_checkpoint(place.uri("checkpoint"), older_than=-60, client=place.client())
    assert place.listed() == []


@pytest.mark.promise(9)
def test_deleting_what_an_index_names(place):
    files = {"a": "1.safetensors", "b": "sub/2.safetensors", "c": "../other.safetensors", "d": ".metadata"}
    place.put(f"model/{INDEX}", json.dumps({"weight_map": files}).encode())
    kept = ["model/notes.safetensors", "model/sub/2.safetensors", "other.safetensors"]
    for key in ("model/1.safetensors", *kept):
        place.put(key, b"x")
    delete_checkpoint(place.uri("model"), client=place.client())
    assert place.listed() == kept


@pytest.mark.promise(9)
def test_sweeping(place):
    client, uri = place.client(), place.uri("checkpoint")
    save(place, "checkpoint", thread_count=2)
    save(place, "checkpoint/nested")
    before = place.listed()
    strays = ["checkpoint/__0_0-0123.distcp", "checkpoint/a/__7_0.distcp"]
    for key in (*strays, "checkpoint/notes.txt"):
        place.put(key, b"x")
    assert sweep_checkpoint(uri, client=client) == []
    assert sweep_checkpoint(uri, older_than=-60, client=client) == [place.uri(key) for key in strays]
    assert place.listed() == sorted([*before, "checkpoint/notes.txt"])


def test_sweeping_knows_what_single_ranks_have_saved(place):
    dcp.save(STATE, storage_writer=place.writer("alone"), use_collectives=False)
    assert sweep_checkpoint(place.uri("alone"), older_than=-60, client=place.client()) == []
    place.put("alone/__1.metadata", pickle.dumps(1))
    with pytest.raises(CheckpointError):
        sweep_checkpoint(place.uri("alone"), older_than=-60, client=place.client())


def test_sweeping_a_folder_of_what_single_ranks_have_saved(place):
    dcp.save(STATE, storage_writer=place.writer("run/alone"), use_collectives=False)
    before = place.listed()
    place.put("run/alone/__7_0.distcp", b"x")
    assert sweep_checkpoint(place.uri("run"), older_than=-60, client=place.client())
    assert place.listed() == before


def save_face(place, path, **options):
    """Saves in the layout of Hugging Face."""
    writer = S3HuggingFaceStorageWriter("us-east-1", place.uri(path), place.config, **options)
    dcp.save(STATE, storage_writer=writer)


WHOLE = {"save_distributed": True, "enable_consolidation": True}
NUMBERS = {f"t{n}": 1 + n % 2 for n in range(6)}
INDEX = "model.safetensors.index.json"


def test_checkpoints_with_an_index_are_listed_and_thinned_out(place):
    client, root = place.client(), place.uri("run")
    save_face(place, "run/step-1")
    save_face(place, "run/step-2", **WHOLE)
    save_face(place, "run/step-3", save_distributed=True)
    save(place, "run/step-4")
    place.put("run/step-5/model-00001-of-00001.safetensors", b"without an index")
    assert names(list_checkpoints(root, client=client)) == [f"step-{n}" for n in range(1, 5)]
    assert latest_checkpoint(f"{root}/step-2", client=client).name == ""
    # As long as nothing was put together the parts are a checkpoint of their own.
    client.delete_object(place.bucket, f"run/step-2/{INDEX}")
    assert names(list_checkpoints(f"{root}/step-2", client=client)) == ["sharded"]
    save_face(place, "run/step-2", **WHOLE)
    protect = [f"{root}/step-{n}" for n in (2, 4)]
    assert names(prune_checkpoints(root, last=1, protect=protect, client=client)) == ["step-1", "step-3"]
    assert {key.split("/")[1] for key in place.listed()} == {"step-2", "step-4", "step-5"}
    delete_checkpoint(f"{root}/step-4", client=client)
    delete_checkpoint(f"{root}/step-2", client=client)
    assert place.listed() == ["run/step-5/model-00001-of-00001.safetensors"]
    with pytest.raises(NotFoundError, match="there is no checkpoint"):
        delete_checkpoint(f"{root}/step-5", client=client)


def test_a_deletion_of_whole_files_and_parts_that_fails_leaves_nothing_visible(
    seaweed_place, fault_proxy, seaweedfs
):
    save_face(seaweed_place, "run/step-1", **WHOLE)
    proxy = fault_proxy(seaweedfs)
    client = type(seaweed_place.client())(
        "us-east-1", endpoint=proxy.endpoint, s3client_config=seaweed_place.config
    )
    proxy.add(Fault.error(403, "AccessDenied"), method="POST")
    with pytest.raises(S3Error, match="AccessDenied"):
        delete_checkpoint(seaweed_place.uri("run/step-1"), client=client)
    assert list_checkpoints(seaweed_place.uri(), client=client) == []


@pytest.mark.parametrize("depth", ["sizes", "checksums", "bytes"])
@pytest.mark.parametrize("options", [{}, WHOLE], ids=["index", "consolidated"])
def test_a_whole_checkpoint_with_an_index(server_place, depth, options):
    save_face(server_place, "model", fqn_to_index_mapping=NUMBERS, **options)
    report = verify_checkpoint(server_place.uri("model"), depth=depth, client=server_place.client())
    assert report.is_whole
    assert report.files == 2
    assert report.size == sum(
        len(server_place.get(server_place.key(f"model/model-0000{n}-of-00002.safetensors"))) for n in (1, 2)
    )
    assert report.unchecked == () or depth == "checksums"


def test_what_is_wrong_with_files_of_an_index_is_told(place):
    save_face(place, "model", fqn_to_index_mapping={f"t{n}": n + 1 for n in range(6)})
    client, uri = place.client(), place.uri("model")
    keys = [place.key(f"model/model-0000{n}-of-00006.safetensors") for n in (1, 2, 3)]
    files = [key.removeprefix("model/") for key in keys]
    data = bytearray(place.get(f"model/{files[0]}"))
    data[-1] ^= 1
    place.put(f"model/{files[0]}", data)
    place.put(f"model/{files[1]}", place.get(f"model/{files[1]}")[:-1])
    client.delete_object(place.bucket, f"model/{files[2]}")
    assert [text.split(" ")[0] for text in verify_checkpoint(uri, client=client).problems] == files[1:]
    report = verify_checkpoint(uri, depth="bytes", client=client)
    assert [text.split(" ")[0] for text in report.problems] == files
    place.put(f"model/{INDEX}", b"{")
    with pytest.raises(CheckpointError, match="is damaged"):
        verify_checkpoint(uri, client=client)


def test_an_index_of_others(place):
    data = safetensors_save({"a": torch.ones(3)})
    files = {"a": "1.safetensors", "b": "2.safetensors", "c": "3.safetensors", "d": "4.safetensors"}
    place.put(f"model/{INDEX}", json.dumps({"weight_map": files}).encode())
    place.put("model/1.safetensors", data)
    client, uri = place.client(), place.uri("model")
    place.put("model/2.safetensors", data)
    place.put("model/3.safetensors", data[:-1])
    report = verify_checkpoint(uri, depth="bytes", client=client)
    assert sorted(report.unchecked) == ["1.safetensors", "2.safetensors", "3.safetensors"]
    cut, lost, missing = report.problems
    assert "model/3.safetensors is damaged: it has" in cut
    assert lost == "2.safetensors does not have b, which the index says it has"
    assert missing == "4.safetensors is missing"


def test_sweeping_safetensors_files(place):
    save_face(place, "model", fqn_to_index_mapping=NUMBERS, **WHOLE)
    before = place.listed()
    strays = [
        "model/model-00001-of-00002-0123456789abcdef.safetensors",
        "model/model-00003-of-00004.safetensors",
        "model/rank-00002-model-00001-of-00002.safetensors",
        "model/sharded/shard-00002-model-00001-of-00002-0123456789abcdef.safetensors",
        "model/sharded/shard-00009-model-00001-of-00002.safetensors",
    ]
    others = ["model/adapter_model.safetensors", "model/original/model-00001-of-00002.safetensors"]
    for key in (*strays, *others):
        place.put(key, b"x")
    client, uri = place.client(), place.uri("model")
    assert sweep_checkpoint(uri, client=client) == []
    assert sweep_checkpoint(uri, older_than=-60, client=client) == [place.uri(key) for key in strays]
    assert place.listed() == sorted([*before, *others])
    # Without an index these may be all that there is.
    for key in (
        "torch/shard-00001-model-00001-of-00001.safetensors",
        "torch/model-00001-of-00001.safetensors",
    ):
        place.put(key, b"x")
    assert sweep_checkpoint(place.uri("torch"), older_than=-60, client=client) == []

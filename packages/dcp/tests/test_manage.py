"""Listing, verifying, deleting and thinning out checkpoints."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp

from s3torch.core import NotFoundError, S3Error
from s3torch.core.testing.faults import Fault
from s3torch.dcp import CheckpointError
from s3torch.dcp.manage import (
    delete_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    sweep_checkpoint,
    verify_checkpoint,
)

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
    assert report.size == sum(len(server_place.get(f"checkpoint/__0_{n}.distcp")) for n in range(3))
    assert report.unchecked == () or depth == "checksums"


def test_what_is_wrong_is_told(place):
    save(place, "checkpoint", thread_count=4)
    client, uri = place.client(), place.uri("checkpoint")
    data = bytearray(place.get("checkpoint/__0_1.distcp"))
    data[700] ^= 1
    place.put("checkpoint/__0_1.distcp", data)
    place.put("checkpoint/__0_2.distcp", data[:100])
    client.delete_object(place.bucket, "checkpoint/__0_3.distcp")
    by_size = verify_checkpoint(uri, client=client)
    assert [text.split(" ")[:3] for text in by_size.problems] == [
        ["__0_2.distcp", "has", "100"],
        ["__0_3.distcp", "is", "missing"],
    ]
    assert not by_size.is_whole
    by_bytes = verify_checkpoint(uri, depth="bytes", client=client)
    assert len(by_bytes.problems) == 3
    assert by_bytes.problems[0].startswith("__0_1.distcp has the CRC64NVME")


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
    assert place.listed("run/step-1/") == []
    delete_checkpoint(place.uri("run"), client=place.client())
    assert place.listed() == [f"run/step-10/{name}" for name in (".metadata", "__0_0.distcp", "__0_1.distcp")]
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

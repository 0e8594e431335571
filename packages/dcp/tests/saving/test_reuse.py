"""Saves that send only what has changed, and let S3 copy the rest from an older checkpoint."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import SerializationFormat

from s3torch.core.ranges import MIB
from s3torch.dcp import CheckpointError, S3HuggingFaceStorageReader, S3HuggingFaceStorageWriter
from s3torch.dcp.manage import delete_checkpoint, verify_checkpoint
from s3torch.testing.faults import Fault

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled, unavailable or uninitialized",
    "ignore:Detected an existing checkpoint",
    "ignore:the new checkpoint in",
)


def model(*, layers=4, frozen=6 * MIB, trained=MIB // 4):
    """Frozen tensors with trained ones between them, and small ones that do not change."""
    state = {"step": 1}
    for n in range(layers):
        state[f"{n}.base"] = torch.full((frozen,), n, dtype=torch.uint8)
        state[f"{n}.lora"] = torch.full((trained // 4,), float(n))
        state[f"{n}.norm"] = torch.full((300,), float(n))
    return state


def trained(state):
    """The state after another step."""
    new = copy.deepcopy(state)
    if "step" in new:
        new["step"] += 1
    for name in new:
        if name.endswith(".lora"):
            new[name] += 1
    return new


def save(place, path, state, **options):
    writer = place.writer(path, **options)
    dcp.save(state, storage_writer=writer)
    return writer.report


def check(place, path, state, blank_of, are_same):
    loaded = blank_of(state)
    reader = place.reader(path)
    dcp.load(loaded, storage_reader=reader)
    assert are_same(loaded, state)
    assert reader.unverified_bytes == 0
    report = verify_checkpoint(place.uri(path), depth="bytes", client=place.client())
    assert (report.problems, report.unchecked) == ((), ())


@pytest.fixture
def proxy(fault_proxy, seaweedfs):
    return fault_proxy(seaweedfs)


@pytest.fixture
def proxied(seaweed_place, proxy):
    """A bucket behind the proxy."""
    return replace(seaweed_place, config=replace(seaweed_place.config, endpoint=proxy.endpoint))


def sent(proxy):
    """What each request does, and to which key, without the ids of saves."""

    def kind(one):
        copies = "-copy" if "x-amz-copy-source" in one.headers else ""
        return f"{one.method}{copies}", re.sub("-[0-9a-f]{16}", "", one.key)

    return [kind(one) for one in proxy.requests()]


def test_what_has_not_changed_is_not_sent(proxied, proxy, tmp_path, blank_of, are_same):
    states = [model()]
    assert save(proxied, "run/1", states[0]) is None
    changed = 0
    for step in (2, 3):
        states.append(trained(states[-1]))
        changed = sum(v.nbytes for name, v in states[-1].items() if name.endswith(".lora"))
        proxy.clear()
        report = save(proxied, f"run/{step}", states[-1], reuse=proxied.uri(f"run/{step - 1}"))
        assert report.why_sent == ()
        assert proxy.bytes_received <= 1.1 * changed
        assert report.copied_bytes >= 4 * 6 * MIB
    # What had been between the trained tensors is a file of its own now.
    copies = [one for one in sent(proxy) if one[0] == "PUT-copy"]
    assert copies == [("PUT-copy", "run/3/__0_1.distcp")]
    assert len(sent(proxy)) == 6
    for step in (1, 2):
        delete_checkpoint(proxied.uri(f"run/{step}"), client=proxied.client())
    assert all(key.startswith("run/3/") for key in proxied.listed())
    check(proxied, "run/3", states[-1], blank_of, are_same)
    proxied.download("run/3", tmp_path)
    loaded = blank_of(states[-1])
    dcp.load(loaded, storage_reader=dcp.FileSystemReader(tmp_path))
    assert are_same(loaded, states[-1])


@pytest.mark.parametrize("files", [6, 24])
def test_files_that_have_not_changed_are_a_request_each(proxied, proxy, blank_of, are_same, files):
    state = {str(n): torch.full((50_000,), float(n)) for n in range(40)} | {"step": 1}
    save(proxied, "run/1", state, thread_count=files)
    proxy.clear()
    report = save(proxied, "run/2", state, thread_count=files // 2, reuse="latest")
    assert (report.sent_bytes, report.why_sent) == (0, ())
    requests = sent(proxy)
    assert sorted(key for kind, key in requests if kind == "PUT-copy") == sorted(
        f"run/2/__0_{n}.distcp" for n in range(files)
    )
    # Beside them the look for a checkpoint, the listing, two metadata, and a question for each file.
    assert len(requests) == 2 * files + 4
    check(proxied, "run/2", state, blank_of, are_same)


def test_the_checkpoint_that_is_replaced_can_be_reused(place, blank_of, are_same):
    state = model(layers=1)
    save(place, "run/1", state)
    for _ in range(3):
        state = trained(state)
        report = save(place, "run/1", state, reuse="latest")
        assert report.copied_bytes > 6 * MIB
        check(place, "run/1", state, blank_of, are_same)


def tensors_only(*, distributed):
    def make(place, path, **options):
        uri = place.uri(path)
        return S3HuggingFaceStorageWriter(
            "us-east-1", uri, place.config, save_distributed=distributed, **options
        )

    return make


def with_objects(place, path, **options):
    return place.writer(path, serialization_format=SerializationFormat.SAFETENSORS, **options)


@pytest.mark.parametrize(
    "make",
    [tensors_only(distributed=False), tensors_only(distributed=True), with_objects],
    ids=["whole", "shards", "objects"],
)
def test_safetensors_files_are_put_together(proxied, proxy, blank_of, are_same, make):
    states = [model()]
    if make is not with_objects:
        del states[0]["step"]
    dcp.save(states[0], storage_writer=make(proxied, "run/1"))
    for step in (2, 3):
        states.append(trained(states[-1]))
        changed = sum(v.nbytes for name, v in states[-1].items() if name.endswith(".lora"))
        proxy.clear()
        writer = make(proxied, f"run/{step}", reuse="latest")
        dcp.save(states[-1], storage_writer=writer)
        assert writer.report.why_sent == ()
        assert writer.report.copied_bytes >= 18 * MIB
        # What comes before the first copy is a part of at least 5 MiB.
        assert proxy.bytes_received <= max(changed, 5 * MIB) + 2 * MIB
        assert len([one for one in sent(proxy) if one[0] == "PUT-copy"]) == 1
    for step in (1, 2):
        delete_checkpoint(proxied.uri(f"run/{step}"), client=proxied.client())
    loaded = blank_of(states[-1])
    reader = S3HuggingFaceStorageReader("us-east-1", proxied.uri("run/3"), proxied.config)
    dcp.load(loaded, storage_reader=reader)
    assert are_same(loaded, states[-1])
    assert reader.unverified_bytes == 0
    report = verify_checkpoint(proxied.uri("run/3"), depth="bytes", client=proxied.client())
    assert (report.problems, report.unchecked) == ((), ())


@pytest.mark.parametrize("options", [{"thread_count": 3}, {"single_file_per_rank": False}])
def test_all_kinds_of_values(place, state, blank_of, are_same, options):
    save(place, "run/1", state, **options)
    report = save(place, "run/2", state, reuse="latest", **options)
    assert report.why_sent == ()
    state["model"]["half"] += 1
    state["objects"]["step"] += 1
    state["new"] = torch.ones(3)
    del state["model"]["double"]
    save(place, "run/3", state, reuse="latest", **options)
    check(place, "run/3", state, blank_of, are_same)


def test_another_shape_or_type_is_sent(place, blank_of, are_same):
    save(place, "run/1", {"a": torch.zeros(60_000), "b": torch.zeros(40)})
    state = {"a": torch.zeros(60_000, dtype=torch.int32), "b": torch.zeros(4, 10)}
    assert save(place, "run/2", state, reuse="latest").copied_bytes == 0
    check(place, "run/2", state, blank_of, are_same)


def no_checksums(place, path):
    """Makes a checkpoint one that another library could have written."""
    metadata = pickle.loads(place.get(f"{path}/.metadata"))
    for info in metadata.storage_data.values():
        info.__dict__.pop("piece_checksums")
    place.put(f"{path}/.metadata", pickle.dumps(metadata))


@pytest.mark.parametrize(
    ("spoil", "reuse", "why"),
    [
        (no_checksums, "latest", "has no checksums to compare with"),
        (lambda place, path: place.put(f"{path}/.metadata", b"x"), "latest", "cannot be read: .*damaged"),
        (lambda *_: None, "s3://bucket/elsewhere", "elsewhere cannot be read"),
        (lambda place, path: delete_checkpoint(place.uri(path), client=place.client()), "latest", "no older"),
    ],
)
def test_why_everything_is_sent(place, blank_of, are_same, spoil, reuse, why):
    state = model(layers=1)
    save(place, "run/1", state)
    spoil(place, "run/1")
    report = save(place, "run/2", state, reuse=reuse)
    assert report.copied_bytes == 0
    assert re.search(why, *report.why_sent)
    check(place, "run/2", state, blank_of, are_same)


def test_without_checksums_of_uploads_everything_is_sent(place, blank_of, are_same):
    state = model(layers=1)
    save(place, "run/1", state)
    plain = replace(place, config=replace(place.config, checksum_algorithm="off"))
    assert "nobody knows" in save(plain, "run/2", state, reuse="latest").why_sent[0]
    check(place, "run/2", state, blank_of, are_same)


@pytest.mark.parametrize("layers", [1, 2])
def test_an_old_checkpoint_that_vanishes(proxied, proxy, seaweed_place, blank_of, are_same, layers):
    state = model(layers=layers)
    save(proxied, "run/1", state)
    new = trained(state) if layers == 2 else state

    def delete(request):
        if request.method in {"POST", "PUT"} and seaweed_place.listed("run/1/"):
            delete_checkpoint(seaweed_place.uri("run/1"), client=seaweed_place.client())
        return True

    proxy.add(Fault(), key="run/2/", match=delete)
    report = save(proxied, "run/2", new, reuse="latest")
    assert "could not copy" in report.why_sent[0]
    assert report.copied_bytes == 0
    check(proxied, "run/2", new, blank_of, are_same)
    assert len(seaweed_place.listed("run/2/")) == 1 + len(
        {info.relative_path for info in seaweed_place.reader("run/2").read_metadata().storage_data.values()}
    )


def test_safetensors_in_a_store_that_does_not_copy(proxied, proxy, blank_of, are_same):
    state = model(layers=2)
    dcp.save(state, storage_writer=with_objects(proxied, "run/1"))
    proxy.add(Fault.error(501, "NotImplemented"), match=lambda one: "x-amz-copy-source" in one.headers)
    writer = with_objects(proxied, "run/2", reuse="latest")
    dcp.save(trained(state), storage_writer=writer)
    assert writer.report.copied_bytes == 0
    assert any("NotImplemented" in why for why in writer.report.why_sent)
    check(proxied, "run/2", trained(state), blank_of, are_same)


def test_a_store_that_does_not_copy(proxied, proxy, blank_of, are_same):
    state = model(layers=2)
    save(proxied, "run/1", state)
    proxy.add(Fault.error(501, "NotImplemented"), match=lambda one: "x-amz-copy-source" in one.headers)
    report = save(proxied, "run/2", trained(state), reuse="latest")
    assert "NotImplemented" in report.why_sent[0]
    check(proxied, "run/2", trained(state), blank_of, are_same)


def test_a_damaged_file_is_not_copied_unseen(seaweed_place, blank_of, are_same):
    place = seaweed_place
    for layers, damage in ((1, 0), (1, 3 * MIB), (2, 3 * MIB)):
        state = model(layers=layers)
        save(place, "run/1", state)
        key = place.key("run/1/__0_0.distcp")
        body = bytearray(place.get(key))
        body[damage] ^= 1
        place.put(key, body)
        new = trained(state) if layers == 2 else state
        report = save(place, "run/2", new, reuse=place.uri("run/1"))
        assert report.copied_bytes == 0
        assert report.why_sent
        check(place, "run/2", new, blank_of, are_same)


REFUSED = Fault.error(403, "AccessDenied")
LOST = Fault.drop(side="response")


@pytest.mark.promise(1)
@pytest.mark.parametrize("fault", [REFUSED, LOST])
def test_a_failure_of_any_request_leaves_the_old_or_the_new_checkpoint(
    proxied, proxy, blank_of, are_same, fault
):
    place = replace(proxied, config=replace(proxied.config, max_attempts=1, part_size=5 * MIB))
    there = model(layers=2, trained=MIB)
    step, struck = 0, True
    while struck:
        # In one file, of which S3 copies ranges.
        save(place, "run/1", there)
        new = trained(there)
        rule = proxy.add(fault, skip=step, times=1)
        allowed = [new]
        try:
            save(place, "run/1", new, reuse="latest")
        except (CheckpointException, CheckpointError):
            allowed.append(there)
        proxy.heal()
        struck, step = bool(rule.hits), step + 1
        loaded = blank_of(new)
        dcp.load(loaded, storage_reader=place.reader("run/1"))
        there = next(one for one in allowed if are_same(loaded, one))
    assert there is new
    # It looks, lists, reads, copies in parts, sends, asks, commits and removes.
    assert step >= 12

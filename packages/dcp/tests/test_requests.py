"""What goes over the wire, and what happens when it breaks there."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import MetadataIndex

from s3torch.core import AccessDeniedError, S3ReaderConstructor
from s3torch.core.ranges import MIB
from s3torch.testing.faults import Fault

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled, unavailable or uninitialized",
    "ignore:Detected an existing checkpoint",
)

# What begins a save: whether there is a checkpoint already.
LOOK = ("HEAD", "checkpoint/.metadata")
ONE = {"a": torch.arange(100.0), "b": torch.ones(7), "object": {"step": 3}}


@pytest.fixture
def proxy(fault_proxy, seaweedfs):
    return fault_proxy(seaweedfs)


@pytest.fixture
def proxied(seaweed_place, proxy):
    """A bucket behind the proxy."""
    return replace(seaweed_place, config=replace(seaweed_place.config, endpoint=proxy.endpoint))


def sent(proxy):
    """Method and key of each request, the key without the id of a save."""
    return [(request.method, re.sub("-[0-9a-f]{16}", "", request.key)) for request in proxy.requests()]


def failure_of(caught):
    """The error of rank 0."""
    return caught.value.failures[0][0]


def test_building_sends_nothing(proxied, proxy):
    proxied.writer()
    proxied.reader()
    proxied.fs().create_stream(proxied.uri("a"), "rb")
    assert sent(proxy) == []


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_save_of_one_file_is_three_requests(proxied, proxy, overwrite):
    if not overwrite:
        # The first such save asks once whether the store ignores conditions.
        dcp.save(ONE, storage_writer=proxied.writer("other", overwrite=False))
        assert sent(proxy)[2:] == [("PUT", "other/.metadata")] * 2
        proxy.clear()
    dcp.save(ONE, storage_writer=proxied.writer(overwrite=overwrite))
    assert sent(proxy) == [LOOK, ("PUT", "checkpoint/__0_0.distcp"), ("PUT", "checkpoint/.metadata")]
    conditions = [request.headers.get("if-none-match") for request in proxy.requests()]
    assert conditions == [None, None, "*"]


def test_the_parts_of_a_file_are_equal(proxied, proxy, monkeypatch):
    monkeypatch.setattr("s3torch.core.ranges._PARTS_PER_DOUBLING", 1)
    dcp.save({"a": torch.zeros(40 * MIB, dtype=torch.uint8)}, storage_writer=proxied.writer())
    puts = proxy.requests("PUT", key="checkpoint/__0_0-")
    assert {request.request_bytes for request in puts if request.query["partNumber"] != "6"} == {8 * MIB}


def test_a_save_over_another_one_is_five_requests(proxied, proxy):
    dcp.save(ONE, storage_writer=proxied.writer())
    etag = proxied.client().head_object(proxied.bucket, "checkpoint/.metadata").etag
    proxy.clear()
    dcp.save(ONE, storage_writer=proxied.writer())
    look, file, *commit, removal = proxy.requests()
    assert (look.method, look.key) == LOOK
    assert file.method == "PUT"
    assert file.key.startswith("checkpoint/__0_0-")
    assert [(one.method, one.key) for one in commit] == [
        ("GET", "checkpoint/.metadata"),
        ("PUT", "checkpoint/.metadata"),
    ]
    assert commit[1].headers["if-match"] == etag
    assert removal.method == "POST"
    assert proxied.listed() == ["checkpoint/.metadata", file.key]


def test_a_save_of_several_files(proxied, proxy):
    state = {str(n): torch.ones(10) for n in range(20)}
    dcp.save(state, storage_writer=proxied.writer(thread_count=4))
    requests = sent(proxy)
    assert requests[0] == LOOK
    assert sorted(requests[1:5]) == [("PUT", f"checkpoint/__0_{n}.distcp") for n in range(4)]
    assert requests[5:] == [("PUT", "checkpoint/.metadata")]


def load(place, state, **options):
    loaded = {name: torch.zeros_like(value) for name, value in state.items()}
    dcp.load(loaded, storage_reader=place.reader(**options))
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_a_load_is_one_request_per_file(proxied, proxy):
    state = {str(n): torch.full((30,), n) for n in range(20)}
    dcp.save(state, storage_writer=proxied.writer(thread_count=3))
    proxy.clear()
    load(proxied, state)
    requests = sent(proxy)
    assert requests[0] == ("GET", "checkpoint/.metadata")
    assert sorted(requests[1:]) == [("GET", f"checkpoint/__0_{n}.distcp") for n in range(3)]


@pytest.mark.parametrize(("gap", "groups"), [(0, ["a", "c"]), (float("inf"), ["a-c"]), (32 * MIB, ["a-c"])])
def test_only_the_ranges_that_are_needed_are_fetched(proxied, proxy, gap, groups):
    state = {"a": torch.ones(1000), "b": torch.ones(100_000), "c": torch.ones(2000)}
    metadata = dcp.save(state, storage_writer=proxied.writer())
    places = [metadata.storage_data[MetadataIndex(name, [0])] for name in "abc"]
    # Of the archives only the bytes of the tensors.
    starts = [at.offset + at.tensor_layout["start"] for at in places]
    a = f"{starts[0]}-{starts[0] + 4 * 1000 - 1}"
    c = f"{starts[2]}-{starts[2] + 4 * 2000 - 1}"
    ranges = {"a": a, "c": c, "a-c": f"{a.partition('-')[0]}-{c.partition('-')[2]}"}
    proxy.clear()
    constructor = S3ReaderConstructor.dcp_optimized(gap)
    load(proxied, {"a": state["a"], "c": state["c"]}, reader_constructor=constructor)
    asked = sorted(r.headers["range"] for r in proxy.requests("GET", key=".distcp"))
    assert asked == sorted(f"bytes={ranges[name]}" for name in groups)


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("numbers", [10, 3 * MIB])
def test_a_refused_upload_in_one_thread_fails_the_save(proxied, proxy, threads, numbers):
    state = {str(n): torch.ones(10) for n in range(4)} | {"large": torch.ones(numbers)}
    dcp.save(ONE, storage_writer=proxied.writer())
    rule = proxy.add(Fault.error(403, "AccessDenied"), key="__0_1")
    proxy.clear()
    with pytest.raises(CheckpointException) as caught:
        dcp.save(state, storage_writer=proxied.writer(thread_count=threads))
    assert isinstance(failure_of(caught), AccessDeniedError)
    assert failure_of(caught).key.startswith("checkpoint/__0_1")
    assert rule.hits >= 1
    assert ("PUT", "checkpoint/.metadata") not in sent(proxy)


def test_an_upload_that_breaks_within_a_tensor_is_told_as_it_is(proxied, proxy):
    proxy.add(Fault.error(403, "AccessDenied"), method="PUT", key="distcp", skip=1)
    state = {"large": torch.ones(12 * MIB)}
    with pytest.raises(CheckpointException) as caught:
        dcp.save(state, storage_writer=proxied.writer())
    assert isinstance(failure_of(caught), AccessDeniedError)
    assert proxied.listed() == []
    assert proxy.requests("DELETE", key="distcp"), "the upload was not aborted"


def test_a_commit_that_fails_leaves_no_checkpoint(proxied, proxy):
    proxy.add(Fault.error(403, "AccessDenied"), method="PUT", key=".metadata")
    with pytest.raises(CheckpointException) as caught:
        dcp.save(ONE, storage_writer=proxied.writer())
    assert isinstance(failure_of(caught), AccessDeniedError)
    assert proxied.plain() == ["checkpoint/__0_0.distcp"]


def test_a_commit_whose_answer_is_lost_has_happened(proxied, proxy):
    rule = proxy.add(Fault.drop(side="response"), method="PUT", key=".metadata", times=1)
    dcp.save(ONE, storage_writer=proxied.writer(overwrite=False))
    assert rule.hits == 1
    assert "checkpoint/.metadata" in proxied.listed()


def test_an_early_check_that_fails_is_no_missing_checkpoint(proxied, proxy):
    proxy.add(Fault.error(403, "AccessDenied"), method="HEAD")
    with pytest.raises(CheckpointException) as caught:
        dcp.save(ONE, storage_writer=proxied.writer())
    assert isinstance(failure_of(caught), AccessDeniedError)
    proxy.heal()
    assert proxied.listed() == []


def test_a_rename_tries_the_deletion_again(proxied, proxy):
    proxied.put("old", b"data")
    proxy.clear()
    proxy.add(Fault.error(403, "AccessDenied"), method="DELETE", times=1)
    proxied.fs().rename(proxied.uri("old"), proxied.uri("new"))
    assert sent(proxy) == [("PUT", "new"), ("DELETE", "old"), ("DELETE", "old")]
    assert proxied.listed() == ["new"]


@pytest.mark.parametrize("constructor", [None, S3ReaderConstructor.sequential()])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_download_that_breaks_goes_on(proxied, proxy, constructor, threads):
    state = {str(n): torch.full((5000,), float(n)) for n in range(12)}
    dcp.save(state, storage_writer=proxied.writer(thread_count=3))
    proxy.add(Fault.reset(after=1000), method="GET", key="__0_1-", times=1)
    proxy.add(Fault.slow_down(), method="GET", key="__0_2-", times=1)
    load(proxied, state, reader_constructor=constructor, thread_count=threads)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_download_that_is_refused_fails_the_load(proxied, proxy, threads):
    state = {str(n): torch.ones(5000) for n in range(12)}
    dcp.save(state, storage_writer=proxied.writer(thread_count=3))
    proxy.add(Fault.error(403, "AccessDenied"), method="GET", key="__0_1-")
    with pytest.raises(CheckpointException) as caught:
        load(proxied, state, thread_count=threads)
    assert isinstance(failure_of(caught), AccessDeniedError)


@pytest.mark.parametrize(
    "constructor", [None, S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based()]
)
def test_an_error_within_a_tensor_is_told_as_it_is(proxied, proxy, constructor):
    state = {"large": torch.ones(9 * MIB)}
    dcp.save(state, storage_writer=proxied.writer())
    rule = proxy.add(Fault.error(403, "AccessDenied"), method="GET", key="distcp", skip=2)
    with pytest.raises(CheckpointException) as caught:
        load(proxied, state, reader_constructor=constructor)
    assert isinstance(failure_of(caught), AccessDeniedError)
    assert rule.hits >= 1

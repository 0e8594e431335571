"""What S3 copies while whole safetensors files are made of parts, and what it cannot."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from s3torch.core import S3Error
from s3torch.core.errors import ChecksumMismatchError
from s3torch.core.ranges import GIB, MIB, MIN_PART_SIZE
from s3torch.dcp import S3HuggingFaceStorageWriter, consolidate_safetensors_files, load_sharded
from s3torch.dcp.hugging_face._consolidation import runs_of
from s3torch.dcp.manage import verify_checkpoint
from s3torch.dcp.saving._assembly import Extent, plan_assembly
from s3torch.testing.faults import Fault

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled, unavailable or uninitialized",
    "ignore:Detected an existing checkpoint",
    "ignore:the new checkpoint in",
)

LARGE = {
    "base": torch.arange(3 * MIB, dtype=torch.float32),
    "half": torch.randn(3 * MIB).half(),
    "norm": torch.randn(100),
    "experts": torch.randint(-128, 127, (3, 4 * MIB), dtype=torch.int8),
}
TOTAL = sum(tensor.nbytes for tensor in LARGE.values())


@pytest.fixture
def proxied(seaweed_place, seaweedfs, fault_proxy):
    """A bucket behind a proxy, and the proxy."""
    proxy = fault_proxy(seaweedfs)
    config = replace(seaweed_place.config, endpoint=proxy.endpoint, part_size=5 * MIB, max_attempts=1)
    return replace(seaweed_place, config=config), proxy


def copies(one):
    return "x-amz-copy-source" in one.headers


def save_shards(place, state=LARGE, path="shards"):
    """Saves tensors as one rank of many does, with checksums of their pieces."""
    writer = S3HuggingFaceStorageWriter("us-east-1", place.uri(path), place.config, save_distributed=True)
    dcp.save(state, storage_writer=writer)


def consolidate(place, **options):
    return consolidate_safetensors_files(
        place.uri("shards"), place.uri("model"), client=place.client(), **options
    )


def test_s3_copies_what_it_can(proxied, check_whole):
    place, proxy = proxied
    save_shards(place)
    proxy.clear()
    report = consolidate(place)
    requests, received = proxy.requests(), proxy.bytes_received
    # Only what makes the first part large enough goes through the client.
    assert report.why_sent == ()
    assert report.sent_bytes <= 7 * MIB
    assert report.copied_bytes == len(place.get(place.key("model/model-00001-of-00001.safetensors"))) - (
        report.sent_bytes
    )
    assert received <= 7.1 * MIB
    assert sum(one.response_bytes for one in requests if one.method == "GET") <= 7.1 * MIB + TOTAL // 1000
    assert len([one for one in requests if copies(one)]) == 1
    assert len(requests) <= 16
    check_whole(place, LARGE)
    whole = verify_checkpoint(place.uri("model"), depth="bytes", client=place.client())
    assert (whole.problems, whole.unchecked) == ((), ())


@pytest.mark.parametrize(("counts", "copied"), [((2, 1), 18), ((1, 2), 12), ((3, 2), 0)])
def test_s3_copies_rows_of_shards_of_others(proxied, counts, copied, put_shards, check_whole):
    place, proxy = proxied
    put_shards(place, LARGE, counts)
    proxy.clear()
    report = consolidate(place)
    assert report.why_sent == ()
    assert report.copied_bytes >= copied * MIB
    assert proxy.bytes_received <= report.sent_bytes * 1.01
    asked = [one.headers for one in proxy.requests() if copies(one)]
    assert bool(asked) == bool(copied)
    # What was listed, and nothing else that has its place meanwhile.
    assert all("x-amz-copy-source-if-match" in headers for headers in asked)
    check_whole(place, LARGE)


def test_what_is_sent_between_copies_is_in_parts_that_are_large_enough(place, put_shards, check_whole):
    """The store refuses parts that are smaller than 5 MiB; this needs 14 MiB in parts of 5 MiB."""
    state = {
        "a": torch.arange(3 * MIB, dtype=torch.float32),
        "b": torch.arange(7 * MIB).to(torch.int16).reshape(2, -1),
        "c": torch.arange(12 * MIB).to(torch.int8),
    }
    put_shards(place, state, (1, 2))
    report = consolidate(place)
    assert (report.why_sent, report.copied_bytes // MIB) == ((), 7 + 12)
    check_whole(place, state)


@pytest.mark.parametrize(
    "fault", [Fault.error(501, "NotImplemented"), Fault.error(403, "AccessDenied"), Fault.drop()]
)
def test_where_s3_does_not_copy_everything_is_sent(proxied, fault, check_whole):
    place, proxy = proxied
    save_shards(place)
    before = place.listed("model/")
    proxy.add(fault, match=copies)
    report = consolidate(place)
    assert re.search("S3 could not copy from .*/shards: UploadPartCopy", *report.why_sent)
    assert report.copied_bytes == 0
    assert report.sent_bytes >= TOTAL
    check_whole(place, LARGE)
    assert before == []
    assert len(place.listed("model/")) == 2


def test_without_checksums_of_uploads_nothing_is_copied(place, check_whole):
    save_shards(place)
    plain = replace(place, config=replace(place.config, checksum_algorithm="off"))
    report = consolidate(plain)
    assert (report.copied_bytes, len(report.why_sent)) == (0, 1)
    check_whole(place, LARGE)


def test_a_damaged_part_is_not_copied_unseen(proxied):
    place, _ = proxied
    save_shards(place)
    key = place.key("shards/shard-00001-model-00001-of-00001.safetensors")
    body = bytearray(place.get(key))
    body[-1] ^= 1
    place.put(key, body)
    with pytest.raises(ChecksumMismatchError, match="is damaged"):
        consolidate(place)
    assert place.listed("model/") == []


@pytest.mark.promise(1)
@pytest.mark.parametrize("fault", [Fault.error(403, "AccessDenied"), Fault.drop(side="response")])
def test_a_failure_of_any_request_leaves_the_old_or_the_new_files(proxied, fault):
    place, proxy = proxied
    states = [{"a": torch.full((11 * MIB,), n, dtype=torch.int8), "b": torch.ones(5) * n} for n in range(2)]
    for n, state in enumerate(states):
        save_shards(place, state, f"shards-{n}")

    def make(n):
        consolidate_safetensors_files(place.uri(f"shards-{n}"), place.uri("model"), client=place.client())

    make(0)
    step, struck = 0, True
    while struck:
        rule = proxy.add(fault, skip=step, times=1)
        there = 1 - step % 2
        allowed = [states[there]]
        try:
            make(there)
        except S3Error:
            allowed.append(states[1 - there])
        proxy.heal()
        found = load_sharded(place.uri("model"), client=place.client())
        assert any(all(torch.equal(found[name], one[name]) for name in "ab") for one in allowed)
        if len(allowed) > 1:
            make(there)
        struck, step = bool(rule.hits), step + 1
    assert step >= 10


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    counts=st.lists(st.integers(1, 3), min_size=4, max_size=4),
)
def test_runs_are_all_elements_of_a_chunk_in_place(sizes, counts, tiles_of):
    whole = torch.arange(math.prod(sizes)).reshape(sizes)
    for tile in tiles_of(sizes, counts):
        chunk = whole[tuple(slice(*cut) for cut in tile)].contiguous()
        at = torch.Size(start for start, _ in tile)
        runs = list(runs_of(ChunkStorageMetadata(at, chunk.size()), sizes))
        assert sum(count for _, _, count in runs) == chunk.numel()
        for there, here, count in runs:
            assert torch.equal(whole.flatten()[there : there + count], chunk.flatten()[here : here + count])


@given(
    lengths=st.lists(st.tuples(st.integers(0, 9 * MIB), st.integers(1, 20 * MIB)), max_size=12),
    noted=st.booleans(),
    rest=st.integers(0, 9 * MIB),
)
def test_plans_have_no_part_that_is_too_small(lengths, noted, rest):
    extents, end = [], 100
    for number, (gap, length) in enumerate(lengths):
        start = end + gap
        end = start + length
        borders = [*range(start, end, MIB), end]
        pieces = tuple((a, b, 1) for a, b in itertools.pairwise(borders)) if noted else ()
        extents.append(Extent(start, end, f"s3://bucket/{number}", 1000 * number, pieces))
    size, at, known = end + rest, 0, 0
    planned = plan_assembly(extents, size)
    for copy in planned:
        assert copy.start == at or copy.start - at >= MIN_PART_SIZE
        assert copy.size >= MIN_PART_SIZE or copy.stop == size
        (old,) = (one for one in extents if one.uri == copy.uri)
        assert old.start <= copy.start < copy.stop == old.stop
        assert copy.origin - old.origin == copy.start - old.start
        assert copy.start == old.start or noted or (copy.start - old.start) % 16 == 0
        assert copy.pieces == old.pieces[len(old.pieces) - len(copy.pieces) :]
        assert not noted or copy.pieces[0][0] == copy.start
        at, known = copy.stop, known + copy.size
    # No more is sent than what makes parts large enough.
    large = [one for one in extents if one.size >= 3 * MIN_PART_SIZE]
    assert known >= sum(one.size - MIN_PART_SIZE - MIB for one in large)


def test_a_file_of_many_small_ranges_is_not_more_parts_than_s3_takes():
    size = 400 * GIB
    extents = [
        Extent(at, at + 6 * MIB, f"s3://bucket/{at}", 0) for at in range(MIB, size - 20 * MIB, 12 * MIB)
    ]
    assert plan_assembly(extents, size) == []
    # The first of them makes up for the short header.
    assert plan_assembly(extents[:500], 8 * GIB) == extents[1:500]

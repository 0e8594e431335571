"""Loads compare what they fetch with what was saved, piece by piece."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import example, given
from hypothesis import strategies as st
from torch.distributed.checkpoint.api import CheckpointException

from s3torch.core.errors import ChecksumMismatchError, S3Error
from s3torch.core.ranges import MIB, plan_parts
from s3torch.dcp import (
    CheckpointError,
    S3HuggingFaceStorageReader,
    S3HuggingFaceStorageWriter,
    load_sharded,
)
from s3torch.dcp._metadata import CHECKSUMS, ItemChecksums, decode_metadata, is_intact
from s3torch.dcp.loading._bands import Band, read_bands
from s3torch.dcp.loading._checking import Check, FileChecks, missing, plan_checks, union
from s3torch.dcp.manage import verify_checkpoint
from s3torch.testing.faults import Fault

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")


def load(place, state, blank_of):
    loaded = blank_of(state)
    reader = place.reader()
    dcp.load(loaded, storage_reader=reader)
    return loaded, reader


@pytest.mark.parametrize("options", [{}, {"thread_count": 3}, {"single_file_per_rank": False}])
def test_all_bytes_of_a_load_are_compared(place, state, blank_of, are_same, options):
    state["large"] = torch.randn(3 * MIB)
    dcp.save(state, storage_writer=place.writer(**options))
    loaded, reader = load(place, state, blank_of)
    assert are_same(loaded, state)
    assert reader.unverified_bytes == 0
    assert reader.verified_bytes >= 12 * MIB


@pytest.mark.promise(2)
def test_a_flipped_bit_of_any_file_is_found_or_does_not_matter(place, blank_of, are_same):
    state = {"a": torch.arange(50.0), "b": torch.zeros(3, dtype=torch.int8), "object": {"step": 3}}
    dcp.save(state, storage_writer=place.writer(thread_count=2))
    found = 0
    for key in place.listed("checkpoint/"):
        body = place.get(key)
        # Each bit of each byte comes in turn; tools/flip_bits.py does them all.
        for bit in range(0, 8 * len(body), 37):
            damaged = bytearray(body)
            damaged[bit // 8] ^= 1 << bit % 8
            place.put(key, bytes(damaged))
            try:
                loaded, _ = load(place, state, blank_of)
            except (CheckpointException, S3Error):
                found += 1
            else:
                assert are_same(loaded, state), (key, bit)
        place.put(key, body)
    assert found > 100


def test_damage_is_told_by_tensor_file_and_offset(place, blank_of):
    state = {"first": torch.zeros(2 * MIB), "second": torch.ones(2 * MIB)}
    dcp.save(state, storage_writer=place.writer())
    key = place.key("checkpoint/__0_0.distcp")
    body = bytearray(place.get(key))
    body[13 * MIB] ^= 1
    place.put(key, body)
    with pytest.raises(CheckpointException) as caught:
        load(place, state, blank_of)
    error = caught.value.failures[0][0]
    assert isinstance(error, ChecksumMismatchError)
    assert (error.key, error.attempts) == (key, 2)
    assert "second is damaged" in str(error)
    start, stop = (int(number) for number in str(error).split("bytes ")[1].split(" of")[0].split(" to "))
    assert start <= 13 * MIB < stop == start + MIB
    report = verify_checkpoint(place.uri("checkpoint"), depth="bytes", client=place.client())
    assert [problem for problem in report.problems if f"in second: the bytes {start} to {stop}" in problem]


@pytest.mark.promise(2)
@pytest.mark.parametrize("index", [0, 700, 5000, 3 * MIB, 7 * MIB])
def test_what_was_damaged_on_the_way_is_fetched_again(
    seaweed_place, seaweedfs, fault_proxy, blank_of, are_same, index
):
    proxy = fault_proxy(seaweedfs)
    place = replace(seaweed_place, config=replace(seaweed_place.config, endpoint=proxy.endpoint))
    state = {"a": torch.randn(2 * MIB), "b": torch.randn(100), "step": 3}
    dcp.save(state, storage_writer=place.writer())
    for key in (".metadata", ".distcp"):
        rule = proxy.add(Fault.flip(index), method="GET", key=key, times=1)
        loaded, _ = load(place, state, blank_of)
        assert are_same(loaded, state)
        proxy.remove(rule)
    rule = proxy.add(Fault.flip(index), method="GET", key=".distcp", times=1)
    assert verify_checkpoint(place.uri("checkpoint"), depth="bytes", client=place.client()).is_whole
    assert rule.hits == 1
    proxy.add(Fault.flip(0), method="GET", key=".distcp")
    with pytest.raises(CheckpointException) as caught:
        load(place, state, blank_of)
    assert isinstance(caught.value.failures[0][0], ChecksumMismatchError)


def test_metadata_carries_its_own_checksum(place, tmp_path):
    dcp.save({"a": torch.ones(3)}, storage_writer=place.writer())
    body = place.get("checkpoint/.metadata")
    assert is_intact(body)
    for index in range(len(body) - 33):
        damaged = body[:index] + bytes([body[index] ^ 4]) + body[index + 1 :]
        with pytest.raises(ChecksumMismatchError, match="is damaged"):
            decode_metadata(damaged, uri="s3://bucket/.metadata")
    # Stock torch does not look there.
    assert pickle.loads(body) == decode_metadata(body, uri="")
    assert {type(getattr(info, CHECKSUMS)) for info in pickle.loads(body).storage_data.values()} == {bytes}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: {},
        lambda _: b"",
        lambda note: note[:-1],
        lambda note: b"\x07" + note[1:],
        lambda note: note[:1] + bytes(4) + note[5:],
        lambda note: note[:5] + b"\xff" * 4 + note[9:],
    ],
    ids=["other type", "empty", "short", "algorithm", "size", "head"],
)
def test_damaged_notes_are_an_error(place, blank_of, spoil):
    state = {"a": torch.ones(3)}
    metadata = dcp.save(state, storage_writer=place.writer())
    (info,) = metadata.storage_data.values()
    setattr(info, CHECKSUMS, spoil(getattr(info, CHECKSUMS)))
    place.put("checkpoint/.metadata", pickle.dumps(metadata))
    with pytest.raises(CheckpointException, match="checksums of an item is damaged"):
        load(place, state, blank_of)


@pytest.mark.parametrize(
    ("rows", "unverified"),
    # A tenth of a piece is fetched in addition at either end; half a piece at both would cost too much.
    [(range(16000), 0), (range(410, 15990), 0), (range(900, 3000), None)],
)
def test_a_part_of_a_tensor(place, rows, unverified):
    tensor = torch.randn(16000, 256)
    metadata = dcp.save({"a": tensor}, storage_writer=place.writer())
    reader = place.reader()
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    band = Band("a", torch.float32, (rows.start, 0), (len(rows), 256))
    (found,) = read_bands(reader, [band], metadata.state_dict_metadata)
    assert torch.equal(found, tensor[rows.start : rows.stop])
    assert reader.verified_bytes + reader.unverified_bytes == found.nbytes
    if unverified is None:
        assert 0 < reader.unverified_bytes < 2 * MIB
    else:
        assert reader.unverified_bytes == unverified


@pytest.mark.promise(2)
@pytest.mark.parametrize("distributed", [True, False])
def test_safetensors_files_are_compared_too(place, distributed):
    state = {"a": torch.arange(600_000.0), "b": torch.ones(7, dtype=torch.int8)}
    options = {"save_distributed": distributed}
    writer = S3HuggingFaceStorageWriter("us-east-1", place.uri("checkpoint"), place.config, **options)
    dcp.save(state, storage_writer=writer)
    reader = S3HuggingFaceStorageReader("us-east-1", place.uri("checkpoint"), place.config)
    dcp.load({name: torch.zeros_like(value) for name, value in state.items()}, storage_reader=reader)
    assert (reader.verified_bytes, reader.unverified_bytes) == (2_400_007, 0)
    (key,) = (key for key in place.listed("checkpoint/") if key.endswith(".safetensors"))
    body = bytearray(place.get(key))
    body[-1] ^= 1
    place.put(key, body)
    with pytest.raises(ChecksumMismatchError, match="b is damaged"):
        load_sharded(place.uri("checkpoint"), client=place.client())


def test_verification_can_be_switched_off(place, blank_of):
    state = {"a": torch.ones(3)}
    dcp.save(state, storage_writer=place.writer())
    off = replace(place, config=replace(place.config, verify="off"))
    _, reader = load(off, state, blank_of)
    assert (reader.verified_bytes, reader.unverified_bytes) == (0, 12)


spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda one: (one[0], sum(one))))


@given(spans, st.integers(0, 60), st.integers(1, 20))
def test_missing_bytes(given_spans, start, size):
    there = {byte for begin, end in given_spans for byte in range(begin, end)}
    ranges = union(given_spans)
    assert {byte for begin, end in ranges for byte in range(begin, end)} == there
    gaps = missing(ranges, start, start + size)
    assert {byte for begin, end in gaps for byte in range(begin, end)} == set(
        range(start, start + size)
    ) - there


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=30),
    st.integers(12, 40),
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60)), min_size=1, max_size=8),
)
# A check that begins with a piece and ends in a padding behind it.
@example(
    [5, 6, 3, 7, 7, 10, 11, 9, 6, 8, 3, 3, 10, 7, 10, 8, 4, 3, 10],
    14,
    [(169, 1), (97, 7), (83, 37), (157, 35), (36, 21), (161, 57)],
)
def test_what_is_compared_is_never_cut(sizes, part_size, wanted):
    edges = [sum(sizes[:n]) for n in range(len(sizes) + 1)]
    checks = [Check(a, b, "CRC32", 0, "a") for a, b in pairwise(edges)]
    pieces = [Piece(start, start + size) for start, size in wanted]
    plan = plan_checks({"file": pieces}, {"file": checks})
    everything = [*pieces, *plan.paddings.get("file", ())]
    found = plan.files["file"]
    parts = plan_parts(everything, part_size=part_size, max_gap=3, fitting=found.fitting)
    compared = [check for part in parts for check in found.inside(part.start, part.stop)]
    assert sorted(compared, key=lambda one: one.start) == found.inside(0, 1000)
    covered = union((part.start, part.stop) for part in parts)
    assert all(not missing(covered, piece.start, piece.stop) for piece in pieces)
    assert plan.checked + plan.unchecked == sum(b - a for a, b in union(wanted_ranges(wanted)))


def wanted_ranges(wanted):
    return [(start, start + size) for start, size in wanted]


class Piece:
    def __init__(self, start, stop):
        self.start = start
        self.stop = stop
        self.held = 0


@given(st.integers(0, 5), st.integers(0, 40), st.integers(0, 5), st.integers(1, 9), st.data())
def test_the_pieces_of_an_item(head, within, tail, size, data):
    length = head + within + tail
    count = -(-within // size) + (head > 0) + (tail > 0)
    values = b"".join(n.to_bytes(4, "big") for n in range(count))
    noted = ItemChecksums("CRC32", size, head, tail, values)
    assert ItemChecksums.of(noted.note(), length) == noted
    with pytest.raises(CheckpointError):
        ItemChecksums.of(noted.note() + b"x", length)
    pieces = list(noted.pieces(length, 0, length))
    assert [crc for *_, crc in pieces] == list(range(count))
    assert [stop for _, stop, _ in pieces] == noted.borders(length)
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    assert list(noted.pieces(length, start, stop)) == [
        piece for piece in pieces if piece[0] < stop and piece[1] > start and start < stop
    ]


def test_nothing_is_compared_of_what_has_no_checksums():
    assert FileChecks([]).inside(0, 10) == []
    assert FileChecks([]).fitting(3, 10) == 10
    assert ItemChecksums.of(None, 10) is None

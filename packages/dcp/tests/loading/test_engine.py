"""Readers of the user's own kind: all bytes of a load come through them, of several files at a time."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from s3torch.core import RangedS3Reader, S3ReaderConstructor, SequentialS3Reader, TruncatedError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")


class Reader(RangedS3Reader):
    """Inverts the bits of all files, and records what is read."""

    log = []

    def readinto(self, buf):
        count = super().readinto(buf)
        view = memoryview(buf).cast("B")[:count]
        self.log.append((self.key, self.tell() - count, threading.get_ident()))
        view[:] = bytes(byte ^ 0xFF for byte in view)
        return count

    def read(self, size=None):
        return bytes(byte ^ 0xFF for byte in super().read(size))


@pytest.fixture(autouse=True)
def log():
    Reader.log.clear()
    return Reader.log


def inverted(place, state, **options):
    dcp.save(state, storage_writer=place.writer(**options))
    for name in place.listed("checkpoint/"):
        place.put(name, bytes(byte ^ 0xFF for byte in place.get(name)))


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("s3torch-load")]


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("make", [Reader, partial(Reader, buffer_size=0)])
def test_all_bytes_come_through_the_readers(place, state, blank_of, are_same, threads, make):
    inverted(place, state, thread_count=4)
    loaded = blank_of(state)
    dcp.load(loaded, storage_reader=place.reader(reader_constructor=make, thread_count=threads))
    assert are_same(loaded, state)
    assert reading_threads() == []


def test_each_file_is_read_from_front_to_back_on_one_thread(place, log):
    state = {str(n): torch.full((5000,), float(n)) for n in range(12)}
    inverted(place, state, thread_count=3)
    loaded = {name: torch.zeros(5000) for name in state}
    dcp.load(loaded, storage_reader=place.reader(reader_constructor=Reader, thread_count=2))
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    threads = set()
    for file in range(3):
        reads = [read for read in log if read[0] == place.key(f"checkpoint/__0_{file}.distcp")]
        assert len(reads) == 4
        assert reads == sorted(reads)
        assert len({thread for *_, thread in reads}) == 1
        threads |= {thread for *_, thread in reads}
    assert len(threads) == 2


def test_archives_of_others_are_read_once(place, log, tmp_path):
    state = {"large": torch.randn(200_000), "small": torch.randn(10)}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path))
    place.upload(tmp_path, "checkpoint")
    for name in place.listed("checkpoint/"):
        place.put(name, bytes(byte ^ 0xFF for byte in place.get(name)))
    loaded = {"large": torch.zeros(200_000), "small": torch.zeros(10)}
    dcp.load(loaded, storage_reader=place.reader(reader_constructor=Reader))
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert [start for _, start, _ in log] == sorted({start for _, start, _ in log})


def test_the_first_error_ends_the_load(place):
    class Failing(Reader):
        def readinto(self, buf):
            if "/__0_1-" in self.key:
                raise ArithmeticError("broken")
            return super().readinto(buf)

    state = {str(n): torch.ones(1000) for n in range(20)}
    inverted(place, state, thread_count=4)
    with pytest.raises(CheckpointException) as caught:
        dcp.load(state, storage_reader=place.reader(reader_constructor=Failing))
    assert isinstance(caught.value.failures[0][0], ArithmeticError)
    assert reading_threads() == []


@pytest.mark.parametrize("base", [SequentialS3Reader, RangedS3Reader])
def test_a_file_that_ends_early_is_no_short_read(place, base):
    class Mine(base):
        pass

    dcp.save({"a": torch.ones(500)}, storage_writer=place.writer())
    key = place.key("checkpoint/__0_0.distcp")
    place.put(key, place.get(key)[:1000])
    with pytest.raises(CheckpointException) as caught:
        dcp.load({"a": torch.zeros(500)}, storage_reader=place.reader(reader_constructor=Mine))
    assert isinstance(caught.value.failures[0][0], TruncatedError)


def test_the_constructor_is_told_the_plan(place):
    told = []

    class Constructor:
        def __call__(self, source):
            return RangedS3Reader(source)

        def set_item_ranges_by_file(self, plan_items, storage_data, base_path):
            told.append(([item.storage_index.fqn for item in plan_items], len(storage_data), base_path))

    dcp.save({"a": torch.ones(5), "b": torch.ones(6)}, storage_writer=place.writer())
    loaded = {"a": torch.zeros(5)}
    dcp.load(loaded, storage_reader=place.reader(reader_constructor=Constructor()))
    assert told == [(["a"], 2, place.uri("checkpoint"))]
    assert torch.equal(loaded["a"], torch.ones(5))


def test_what_dcp_optimized_returns_is_a_value_and_makes_readers(place):
    value = S3ReaderConstructor.dcp_optimized(max_gap_size=5)
    assert value == S3ReaderConstructor.dcp_optimized(5) != S3ReaderConstructor.dcp_optimized()
    assert S3ReaderConstructor.get_reader_type_string(value) == "dcp_optimized"
    place.put("checkpoint/.metadata", b"metadata")
    place.put("checkpoint/__0_0.distcp", b"items")
    fs = place.fs(reader_constructor=value)
    for name, data, kind in [
        (".metadata", b"metadata", SequentialS3Reader),
        ("__0_0.distcp", b"items", RangedS3Reader),
    ]:
        with fs.create_stream(place.uri(f"checkpoint/{name}"), "rb") as reader:
            assert isinstance(reader, kind)
            assert reader.read() == data
    with pytest.raises(ValueError, match="^max_gap_size must be non-negative$"):
        S3ReaderConstructor.dcp_optimized(-1)
    with pytest.raises(TypeError, match="^max_gap_size must be int or float, got str$"):
        S3ReaderConstructor.dcp_optimized("1")

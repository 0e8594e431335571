"""Checkpoints that are saved and loaded again, by us and by torch's own readers and writers."""

from __future__ import annotations

import pickle
import pickletools
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from s3torch.core import (
    NotFoundError,
    RangedS3Reader,
    S3ReaderConstructor,
    SequentialS3Reader,
    TruncatedError,
)
from s3torch.dcp import CheckpointError, HexPrefixStrategy

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("single_file_per_rank", [True, False])
def test_round_trip(place, state, blank_of, are_same, threads, single_file_per_rank):
    writer = place.writer(thread_count=threads, single_file_per_rank=single_file_per_rank)
    metadata = dcp.save(state, storage_writer=writer)
    loaded = blank_of(state)
    dcp.load(loaded, storage_reader=place.reader())
    assert are_same(loaded, state)
    files = threads if single_file_per_rank else len(metadata.storage_data)
    names = [f"checkpoint/__0_{n}.distcp" for n in range(files)]
    assert sorted(place.plain()) == sorted(["checkpoint/.metadata", *names])


@pytest.mark.parametrize(
    "constructor",
    [
        S3ReaderConstructor.sequential(),
        S3ReaderConstructor.range_based(),
        S3ReaderConstructor.range_based(0),
        S3ReaderConstructor.dcp_optimized(0),
        S3ReaderConstructor.dcp_optimized(float("inf")),
        SequentialS3Reader,
        partial(RangedS3Reader, buffer_size=100),
    ],
)
@pytest.mark.parametrize("threads", [1, 8])
def test_every_kind_of_reader(place, state, blank_of, are_same, constructor, threads):
    dcp.save(state, storage_writer=place.writer(thread_count=3))
    loaded = blank_of(state)
    reader = place.reader(reader_constructor=constructor, thread_count=threads)
    dcp.load(loaded, storage_reader=reader)
    assert are_same(loaded, state)


def test_tensors_larger_than_a_part(place):
    state = {"large": torch.randn(3_000_001), "other": torch.randn(1_500_000)}
    dcp.save(state, storage_writer=place.writer())
    loaded = {"large": torch.zeros(3_000_001), "other": torch.zeros(1_500_000)}
    dcp.load(loaded, storage_reader=place.reader())
    assert torch.equal(loaded["large"], state["large"])
    assert torch.equal(loaded["other"], state["other"])


def test_nothing_to_save(place):
    dcp.save({}, storage_writer=place.writer(thread_count=4))
    assert place.listed() == ["checkpoint/.metadata"]
    dcp.load({}, storage_reader=place.reader())


def test_a_part_of_a_checkpoint(place, state):
    dcp.save(state, storage_writer=place.writer())
    loaded = {"model": {"half": torch.zeros(12, 5).half()}}
    dcp.load(loaded, storage_reader=place.reader())
    assert torch.equal(loaded["model"]["half"], state["model"]["half"])


def test_views_do_not_bring_their_storage_along(place):
    whole = torch.zeros(1_000_000)
    metadata = dcp.save({"view": whole[:10]}, storage_writer=place.writer())
    (stored,) = metadata.storage_data.values()
    assert stored.length < 4000


@pytest.mark.parametrize("threads", [1, 3])
def test_stock_torch_reads_ours(place, state, blank_of, are_same, tmp_path, threads):
    strategy = HexPrefixStrategy(epoch_num=3)
    writer = place.writer(prefix_strategy=strategy, thread_count=threads)
    dcp.save(state, storage_writer=writer)
    place.download("checkpoint", tmp_path)
    assert len(list(tmp_path.glob("0000000000/epoch_3/__0_0-*.distcp"))) == 1
    loaded = blank_of(state)
    dcp.load(loaded, storage_reader=dcp.FileSystemReader(tmp_path))
    assert are_same(loaded, state)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["local", "fsspec"])
def test_we_read_what_torch_wrote(place, state, blank_of, are_same, tmp_path, threads, kind):
    make = dcp.FileSystemWriter if kind == "local" else FsspecWriter
    folder = tmp_path if kind == "local" else f"file://{tmp_path}"
    dcp.save(state, storage_writer=make(folder, thread_count=threads))
    place.upload(tmp_path, "checkpoint")
    loaded = blank_of(state)
    dcp.load(loaded, storage_reader=place.reader())
    assert are_same(loaded, state)


def test_the_metadata_has_only_classes_of_torch(place, state):
    writer = place.writer(prefix_strategy=HexPrefixStrategy())
    writer.reset(Path(place.uri("other")))
    dcp.save(state, storage_writer=writer)
    data = place.get("other/.metadata")
    strings = [arg for op, arg, _ in pickletools.genops(data) if isinstance(arg, str)]
    assert not any("s3torch" in text for text in strings)
    assert not any("pathlib" in text for text in strings)
    metadata = pickle.loads(data)
    assert metadata.version == "1.0.0"
    assert metadata.storage_meta.checkpoint_id == place.uri("other")
    file = place.key("other/0000000000/__0_0.distcp").removeprefix("other/")
    assert {one.relative_path for one in metadata.storage_data.values()} == {file}


@pytest.mark.parametrize("written", ["folder", "folder/"])
@pytest.mark.parametrize("read", ["folder", "folder/"])
def test_a_trailing_slash_changes_nothing(place, written, read):
    dcp.save({"a": torch.ones(3)}, storage_writer=place.writer(written))
    assert place.plain() == ["folder/.metadata", "folder/__0_0.distcp"]
    loaded = {"a": torch.zeros(3)}
    dcp.load(loaded, storage_reader=place.reader(read))
    assert torch.equal(loaded["a"], torch.ones(3))


def test_writer_and_reader_serve_one_checkpoint_after_another(place):
    writer, reader = place.writer(), place.reader()
    for n in range(3):
        path = place.uri(f"step/{n}")
        dcp.save({"a": torch.full((4,), n)}, checkpoint_id=path, storage_writer=writer)
    for n in (2, 0, 1):
        loaded = {"a": torch.zeros(4, dtype=torch.int64)}
        dcp.load(loaded, checkpoint_id=Path(place.uri(f"step/{n}")), storage_reader=reader)
        assert torch.equal(loaded["a"], torch.full((4,), n))
    assert not place.listed("checkpoint")


@pytest.mark.promise(5)
def test_writer_and_reader_can_be_pickled(place):
    writer = pickle.loads(pickle.dumps(place.writer(prefix_strategy=HexPrefixStrategy())))
    dcp.save({"a": torch.ones(3)}, storage_writer=writer)
    writer = pickle.loads(pickle.dumps(writer))
    assert writer.prefix_strategy(5) == "0000000000/__5_"
    loaded = {"a": torch.zeros(3)}
    reader = pickle.loads(pickle.dumps(place.reader()))
    dcp.load(loaded, storage_reader=reader)
    pickle.dumps(reader)
    assert torch.equal(loaded["a"], torch.ones(3))


def test_one_constructor_serves_several_loads(place):
    constructor = S3ReaderConstructor.dcp_optimized()
    readers = [place.reader(name, reader_constructor=constructor) for name in "ab"]
    for n, name in enumerate("ab"):
        state = {"x": torch.full((5,), n), "y": torch.full((n,), 9)}
        dcp.save(state, storage_writer=place.writer(name))
    metadata = [reader.read_metadata() for reader in readers]
    plans = []
    for n, reader in enumerate(readers):
        loaded = {"x": torch.zeros(5, dtype=torch.int64), "y": torch.zeros(n, dtype=torch.int64)}
        planner = DefaultLoadPlanner()
        planner.set_up_planner(loaded, metadata[n], is_coordinator=True)
        reader.set_up_storage_reader(metadata[n], is_coordinator=True)
        plan = reader.prepare_local_plan(planner.create_local_plan())
        plans.append((reader, plan, planner, loaded))
    for n, (reader, plan, planner, loaded) in enumerate(plans):
        reader.read_data(plan, planner).wait()
        assert torch.equal(loaded["x"], torch.full((5,), n))


class Splitting(DefaultLoadPlanner):
    """Reads each tensor in two halves, each twice, last one first."""

    def create_local_plan(self):
        plan = super().create_local_plan()
        return LoadPlan([half for item in plan.items for half in self._halves(item)][::-1])

    def _halves(self, item):
        if item.type == LoadItemType.BYTE_IO:
            return [item, item]
        rows = item.lengths[0]
        cuts = [(0, rows // 2), (rows // 2, rows)] * 2
        rest = item.lengths[1:]
        return [
            ReadItem(
                item.type,
                item.dest_index,
                torch.Size([start, *item.dest_offsets[1:]]),
                item.storage_index,
                torch.Size([start, *item.storage_offsets[1:]]),
                torch.Size([stop - start, *rest]),
            )
            for start, stop in cuts
        ]


@pytest.mark.parametrize(
    "constructor", [None, S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based()]
)
def test_several_read_items_on_one_stored_chunk(place, constructor):
    state = {"a": torch.randn(9, 3), "b": torch.randn(5), "o": "text"}
    dcp.save(state, storage_writer=place.writer())
    loaded = {"a": torch.zeros(9, 3), "b": torch.zeros(5), "o": None}
    reader = place.reader(reader_constructor=constructor)
    dcp.load(loaded, storage_reader=reader, planner=Splitting())
    assert torch.equal(loaded["a"], state["a"])
    assert torch.equal(loaded["b"], state["b"])
    assert loaded["o"] == "text"


class Collecting:
    """A planner that keeps the bytes of objects."""

    def __init__(self):
        self.got = []

    def load_bytes(self, item, value):
        self.got.append((item.storage_index.fqn, value.read()))


def object_item(name):
    index = MetadataIndex(name)
    return ReadItem(LoadItemType.BYTE_IO, index, torch.Size(), index, torch.Size(), torch.Size())


@pytest.mark.parametrize("constructor", [None, S3ReaderConstructor.sequential()])
def test_overlapping_repeated_and_empty_chunks(place, constructor):
    data = bytes(range(200))
    place.put("checkpoint/a", data)
    place.put("checkpoint/b", data[::-1])
    # The planner has a format of its own for objects.
    reader = place.reader(reader_constructor=constructor, weights_only=False)
    places = {"x": (0, 50), "y": (40, 60), "inside": (45, 5), "z": (150, 50), "none": (120, 0)}
    reader.storage_data = {MetadataIndex(n): _StorageInfo("a", *at) for n, at in places.items()}
    reader.storage_data[MetadataIndex("other")] = _StorageInfo("b", 3, 4)
    reader.storage_data[MetadataIndex("empty")] = _StorageInfo("c", 0, 0)
    names = ["z", "x", "y", "x", "inside", "none", "other", "empty"]
    given = LoadPlan([object_item(name) for name in names])
    items = given.items
    plan = reader.prepare_local_plan(given)
    assert (plan is given, plan.items is items) == (True, True)
    offsets = [reader.storage_data[item.storage_index].offset for item in plan.items]
    assert offsets == sorted(offsets)
    planner = Collecting()
    reader.read_data(plan, planner).wait()
    expected = {name: data[at : at + size] for name, (at, size) in places.items()}
    expected |= {"other": data[::-1][3:7], "empty": b""}
    assert sorted(planner.got) == sorted((name, expected[name]) for name in names)


def test_there_is_no_checkpoint(place, caplog):
    reader = place.reader("nothing/here")
    with pytest.raises(NotFoundError, match=rf"{place.uri('nothing/here/.metadata')}") as caught:
        reader.read_metadata()
    assert isinstance(caught.value, FileNotFoundError)
    assert (caught.value.bucket, caught.value.key) == ("bucket", "nothing/here/.metadata")
    with pytest.raises(dcp.api.CheckpointException):
        dcp.load({"a": torch.zeros(1)}, storage_reader=reader)
    # Not in the text of the exception, because some releases of torch swallow it.
    assert "nothing/here/.metadata does not exist" in caplog.text


def test_there_is_no_bucket(place):
    reader = place.reader()
    reader.reset("s3://missing/checkpoint")
    with pytest.raises(NotFoundError, match="no such bucket"):
        reader.read_metadata()


def failure_of(caught):
    """The error of rank 0."""
    return caught.value.failures[0][0]


@pytest.mark.parametrize("threads", [1, 4])
def test_a_file_is_missing(place, threads):
    dcp.save({"a": torch.ones(5), "b": torch.ones(6)}, storage_writer=place.writer(thread_count=2))
    file = place.key("checkpoint/__0_1.distcp")
    place.client().delete_object(place.bucket, file)
    with pytest.raises(dcp.api.CheckpointException) as caught:
        dcp.load(
            {"a": torch.zeros(5), "b": torch.zeros(6)},
            storage_reader=place.reader(thread_count=threads),
        )
    assert isinstance(failure_of(caught), NotFoundError)
    assert failure_of(caught).key == file


@pytest.mark.parametrize(
    "constructor", [None, S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based()]
)
def test_a_file_is_too_short(place, constructor):
    dcp.save({"a": torch.ones(500)}, storage_writer=place.writer())
    key = place.key("checkpoint/__0_0.distcp")
    place.put(key, place.get(key)[:1000])
    with pytest.raises(dcp.api.CheckpointException) as caught:
        dcp.load({"a": torch.zeros(500)}, storage_reader=place.reader(reader_constructor=constructor))
    assert isinstance(failure_of(caught), TruncatedError)


def test_a_place_that_the_metadata_does_not_have(place):
    dcp.save({"a": torch.ones(5)}, storage_writer=place.writer())
    metadata = pickle.loads(place.get("checkpoint/.metadata"))
    metadata.storage_data.clear()
    place.put("checkpoint/.metadata", pickle.dumps(metadata))
    with pytest.raises(dcp.api.CheckpointException) as caught:
        dcp.load({"a": torch.zeros(5)}, storage_reader=place.reader())
    assert isinstance(failure_of(caught), CheckpointError)


def test_an_error_of_the_planner_ends_the_load(place):
    class Refusing(DefaultLoadPlanner):
        def commit_tensor(self, read_item, tensor):
            raise ArithmeticError("refused")

    state = {str(n): torch.ones(10) for n in range(20)}
    dcp.save(state, storage_writer=place.writer(single_file_per_rank=False))
    with pytest.raises(dcp.api.CheckpointException) as caught:
        dcp.load(state, storage_reader=place.reader(), planner=Refusing())
    assert isinstance(failure_of(caught), ArithmeticError)


def test_loading_in_inference_mode(place):
    dcp.save({"a": torch.ones(5), "b": torch.ones(6)}, storage_writer=place.writer(thread_count=2))
    with torch.inference_mode():
        loaded = {"a": torch.zeros(5), "b": torch.zeros(6)}
        dcp.load(loaded, storage_reader=place.reader())
    assert loaded["a"].sum() == 5
    assert loaded["b"].sum() == 6

"""The layout of Hugging Face on S3."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load as safetensors_load
from safetensors.torch import load_file as safetensors_load_file
from safetensors.torch import save as safetensors_save
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from s3torch.core import ConfigurationError, NotFoundError, ObjectChangedError
from s3torch.dcp import (
    CheckpointError,
    S3HuggingFaceStorageReader,
    S3HuggingFaceStorageWriter,
    StorageMetadata,
    consolidate_safetensors_files,
    load_file,
    load_sharded,
    save_file,
)
from s3torch.dcp.manage import verify_checkpoint

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled, unavailable or uninitialized",
    "ignore:Detected an existing checkpoint",
)

STATE = {
    "wide": torch.randn(64, 33),
    "half": torch.randn(7).half(),
    "brain": torch.randn(5, 2).bfloat16(),
    "count": torch.arange(9),
    "scalar": torch.tensor(2.5),
    "mask": torch.rand(11) > 0.5,
    "empty": torch.empty(0, 3),
    "view": torch.randn(8, 6).t(),
}
FILES = {name: 1 + n % 2 for n, name in enumerate(STATE)}
INDEX = "model/model.safetensors.index.json"


def writer_of(place, path="model", **options):
    return S3HuggingFaceStorageWriter("us-east-1", place.uri(path), place.config, **options)


def reader_of(place, path="model", **options):
    return S3HuggingFaceStorageReader("us-east-1", place.uri(path), place.config, **options)


def check(place, path="model", state=None):
    state = state or STATE
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(loaded, storage_reader=reader_of(place, path))
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_written_and_read(server_place):
    dcp.save(STATE, storage_writer=writer_of(server_place, fqn_to_index_mapping=FILES, thread_count=2))
    names = [f"model/model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert server_place.plain() == [*names, INDEX]
    index = json.loads(server_place.get(INDEX))
    assert server_place.weight_map(INDEX) == {
        name: f"model-0000{FILES[name]}-of-00002.safetensors" for name in STATE
    }
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in STATE.values())
    for key in names:
        for name, tensor in safetensors_load(server_place.get(server_place.key(key))).items():
            assert torch.equal(tensor, STATE[name])
    check(server_place)


def test_interchange_with_torch(place, tmp_path):
    state = {name: tensor for name, tensor in STATE.items() if name != "empty"}
    dcp.save(state, storage_writer=writer_of(place))
    place.download("model", tmp_path / "ours")
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(loaded, storage_reader=HuggingFaceStorageReader(str(tmp_path / "ours")))
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    state["view"] = state["view"].contiguous()
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(str(tmp_path / "theirs")))
    place.upload(tmp_path / "theirs", "theirs")
    check(place, "theirs", state)


def test_files_of_the_library(place):
    place.put("model/model.safetensors", safetensors_save({n: t.contiguous() for n, t in STATE.items()}))
    place.put("model/config.json", b"{}")
    place.put("model/original/other.safetensors", b"not read")
    check(place)


def test_a_save_over_another_one(place):
    dcp.save(STATE, storage_writer=writer_of(place, fqn_to_index_mapping=FILES))
    first = set(place.listed())
    changed = {name: tensor.clone() for name, tensor in STATE.items()} | {"wide": torch.ones(64, 33)}
    dcp.save(changed, storage_writer=writer_of(place))
    assert set(place.listed()) & first == {INDEX}
    assert len(place.listed()) == 2
    check(place, state=changed)
    with pytest.raises(CheckpointException, match="already exists"):
        dcp.save(STATE, storage_writer=writer_of(place, overwrite=False))


def test_an_index_that_does_not_fit(place):
    dcp.save(STATE, storage_writer=writer_of(place, fqn_to_index_mapping=FILES))
    index = json.loads(place.get(INDEX))
    weight_map = index["weight_map"]
    place.put(
        INDEX, json.dumps(index | {"weight_map": index["weight_map"] | {"more": "gone.safetensors"}}).encode()
    )
    with pytest.raises(CheckpointError, match=r"lacks files that its index names: \['gone"):
        reader_of(place).read_metadata()
    lost = {"weight_map": weight_map | {"more": weight_map["wide"]}}
    place.put(INDEX, json.dumps(lost).encode())
    with pytest.raises(CheckpointError, match=r"lacks tensors that its index names: \['more"):
        reader_of(place).read_metadata()
    place.put(INDEX, b"[]")
    with pytest.raises(CheckpointError, match="index.json is damaged"):
        reader_of(place).read_metadata()
    with pytest.raises(NotFoundError, match="no safetensors file"):
        reader_of(place, "other").read_metadata()


def test_only_tensors(place):
    with pytest.raises(CheckpointException, match="step is not a tensor"):
        dcp.save({"step": 3}, storage_writer=writer_of(place))
    with pytest.raises(CheckpointException, match="has no file for wide"):
        dcp.save(STATE, storage_writer=writer_of(place, fqn_to_index_mapping={"half": 1}))
    for number in (0, "1"):
        with pytest.raises(ValueError, match=f"begin with 1, got {number!r}"):
            writer_of(place, fqn_to_index_mapping={"half": number})


def test_distributed_files(place, tmp_path):
    dcp.save(STATE, storage_writer=writer_of(place, save_distributed=True))
    assert place.plain() == ["model/.metadata", "model/shard-00001-model-00001-of-00001.safetensors"]
    check(place)
    place.download("model", tmp_path)
    loaded = {"wide": torch.zeros(64, 33)}
    dcp.load(loaded, storage_reader=HuggingFaceStorageReader(str(tmp_path)))
    assert torch.equal(loaded["wide"], STATE["wide"])
    changed = STATE | {"wide": torch.ones(64, 33)}
    dcp.save(changed, storage_writer=writer_of(place, save_distributed=True))
    assert len(place.listed()) == 2
    check(place, state=changed)
    with pytest.raises(CheckpointException, match="checkpoint of another kind"):
        dcp.save(STATE, storage_writer=writer_of(place))


def test_each_rank_for_itself(place):
    dcp.save(STATE, storage_writer=writer_of(place, save_distributed=True), use_collectives=False)
    assert place.plain() == ["model/__0.metadata", "model/shard-00001-model-00001-of-00001.safetensors"]
    check(place)
    with pytest.raises(ConfigurationError, match="needs save_distributed"):
        dcp.save(STATE, storage_writer=writer_of(place, "other"), use_collectives=False)


def test_parts_of_tensors_are_put_together(place):
    whole = torch.randn(6, 4)
    for number, at in enumerate((0, 4), start=1):
        sharding = json.dumps({"w": {"saved_offsets": [at, 0]}})
        data = safetensors_save({"w": whole[at : at + 4].contiguous()}, {"DCP_SHARDING_INFO": sharding})
        place.put(f"model/shard-0000{number}-model-00001-of-00001.safetensors", data)
    check(place, state={"w": whole})


def test_ranks_that_share_whole_tensors_out(place):
    writer = writer_of(place)
    halves = [dict(list(STATE.items())[:4]), dict(list(STATE.items())[4:])]
    planners = [DefaultSavePlanner() for _ in halves]
    for rank, (planner, half) in enumerate(zip(planners, halves, strict=True)):
        planner.set_up_planner(half, is_coordinator=not rank)
    plans, metadata = planners[0].create_global_plan([one.create_local_plan() for one in planners])
    writer.set_up_storage_writer(True)
    plans = writer.prepare_global_plan(plans)
    pairs = zip(plans, planners, strict=True)
    results = [writer.write_data(planner.finish_plan(plan), planner).wait() for plan, planner in pairs]
    writer.finish(metadata, results)
    names = ["model-00001-of-00001.safetensors", "rank-00002-model-00001-of-00001.safetensors"]
    assert place.plain() == [f"model/{name}" for name in sorted([*names, "model.safetensors.index.json"])]
    check(place)


def part(values, *offsets):
    sharding = json.dumps({"w": {"saved_offsets": offsets}})
    return safetensors_save({"w": values}, {"DCP_SHARDING_INFO": sharding})


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([part(torch.ones(2, 3), 0, 0), part(torch.ones(2, 3), 4, 0)], "12 of the 18 elements of w"),
        ([part(torch.ones(2, 3), 0, 0), part(torch.ones(2, 3), 1, 0)], "12 of the 9 elements of w"),
        (
            [part(torch.ones(3, 1), 0, 0), part(torch.ones(3, 1), 1, 0), part(torch.ones(2, 1), 0, 1)],
            "overlapping parts, at .0, 0. and .1, 0., of w, in 0.safetensors, 1.safetensors, 2.safetensors",
        ),
        ([part(torch.ones(2), 1e999)], "0.safetensors is damaged"),
        ([part(torch.ones(2), -1)], "0.safetensors is damaged"),
        ([part(torch.ones(2), 2**70)], "0.safetensors is damaged"),
        ([safetensors_save({"w": torch.ones(2)}, {"DCP_SHARDING_INFO": "[" * 10**5})], "is damaged"),
        ([safetensors_save({"w": torch.ones(2)}, {"DCP_SHARDING_INFO": "[1]"})], "is damaged"),
        ([part(torch.ones(2, 3), 0, 0), part(torch.ones(2, 3), 0, 0)], "w is in 0.safetensors and in 1"),
        ([part(torch.ones(2), 0), part(torch.ones(2).half(), 2)], "not parts of one tensor"),
        ([part(torch.ones(2), 0, 0)], "is damaged: w at"),
        ([safetensors_save({"w": torch.ones(2)}, {"DCP_SHARDING_INFO": "{"})], "is damaged"),
        ([safetensors_save({"w": torch.ones(2)})[:-1]], "s3://bucket/model/0.safetensors is damaged: it has"),
    ],
)
def test_files_that_do_not_fit_together(place, files, said):
    for number, data in enumerate(files):
        place.put(f"model/{number}.safetensors", data)
    with pytest.raises(CheckpointError, match=said):
        reader_of(place).read_metadata()


def shards_of(place, shape, cuts):
    """Saves a tensor as ranks do that have parts of it, and returns the keys of their files."""
    whole = torch.randn(shape)
    writer = writer_of(place, save_distributed=True)
    writer.set_up_storage_writer(True)
    keys = []
    for rank, cut in enumerate(cuts):
        part = whole[cut]
        offsets = torch.Size(one.start or 0 for one in cut)
        chunk = ChunkStorageMetadata(offsets, part.shape)
        data = TensorWriteData(chunk, TensorProperties(dtype=whole.dtype), whole.shape)
        item = WriteItem(MetadataIndex("w", offsets), WriteItemType.SHARD, tensor_data=data)
        plan = SavePlan([item], storage_data=StorageMetadata(f"shard-{rank + 1:05d}-"))
        planner = DefaultSavePlanner()
        planner.set_up_planner({"w": part})
        planner.lookup_object = lambda _, part=part: part
        (result,) = writer.write_data(plan, planner).wait()
        keys.append(f"model/{result.storage_data.relative_path}")
    return whole, keys


ROWS = [(slice(n, n + 2), slice(0, 4)) for n in range(0, 6, 2)]
TILES = [(slice(n, n + 3), slice(m, m + 2)) for n in (0, 3) for m in (0, 2)]


@pytest.mark.promise(2)
@pytest.mark.parametrize("cuts", [ROWS, TILES], ids=["rows", "tiles"])
def test_a_shard_that_is_missing_is_an_error_wherever_it_is(place, cuts):
    whole, keys = shards_of(place, (6, 4), cuts)
    loaded = load_sharded(place.uri("model"), client=place.client())
    assert torch.equal(loaded["w"], whole)
    for lost in keys:
        data = place.get(lost)
        place.client().delete_object(place.bucket, lost)
        rest = ", ".join(sorted(key.removeprefix("model/") for key in keys if key != lost))
        said = rf"s3://bucket/model has \d+ of the 24 elements of w, in {rest}"
        for load in (
            lambda: load_sharded(place.uri("model"), client=place.client()),
            lambda: reader_of(place).read_metadata(),
            lambda: consolidate_safetensors_files(
                place.uri("model"), place.uri("whole"), client=place.client()
            ),
        ):
            with pytest.raises(CheckpointError, match=said):
                load()
        place.put(lost, data)
    assert place.listed("whole/") == []


def test_torch_reads_shards_with_the_shape_of_the_whole(place, tmp_path):
    whole, _ = shards_of(place, (6, 4), ROWS)
    place.download("model", tmp_path)
    loaded = {"w": torch.zeros(6, 4)}
    dcp.load(loaded, storage_reader=HuggingFaceStorageReader(str(tmp_path)))
    assert torch.equal(loaded["w"], whole)


def test_an_index_decides_between_two_files(place):
    for number in range(2):
        place.put(f"model/{number}.safetensors", safetensors_save({"w": torch.full((3,), float(number))}))
        index = {"weight_map": {"w": f"{number}.safetensors"}}
        place.put(INDEX, json.dumps(index).encode())
        check(place, state={"w": torch.full((3,), float(number))})


def test_a_file_that_is_replaced_after_its_header(place):
    place.put("model/model.safetensors", safetensors_save({"w": torch.ones(4)}))
    reader = reader_of(place)
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    place.put("model/model.safetensors", safetensors_save({"w": torch.zeros(4)}))
    planner = DefaultLoadPlanner()
    planner.set_up_planner({"w": torch.ones(4)}, metadata, is_coordinator=True)
    with pytest.raises(ObjectChangedError):
        reader.read_data(planner.create_local_plan(), planner)


@pytest.fixture
def proxied(seaweed_place, fault_proxy, seaweedfs):
    proxy = fault_proxy(seaweedfs)
    return replace(seaweed_place, config=replace(seaweed_place.config, endpoint=proxy.endpoint)), proxy


def test_requests_of_a_load(proxied):
    place, proxy = proxied
    state = {str(n): torch.randn(1000, 100) for n in range(8)}
    dcp.save(
        state, storage_writer=writer_of(place, fqn_to_index_mapping={str(n): 1 + n % 2 for n in range(8)})
    )
    proxy.clear()
    loaded = {name: torch.zeros_like(state[name]) for name in "05"}
    dcp.load(loaded, storage_reader=reader_of(place))
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)
    # A listing and the index; for each file its header and one tensor.
    assert len(proxy.requests()) == 2 + 2 + 2
    assert proxy.bytes_sent < 2 * 400_000 + 2 * 128 * 1024 + 10_000


def test_plain_state_dicts(server_place, tmp_path):
    client = server_place.client()
    uri = server_place.uri("plain.safetensors")
    save_file(STATE, uri, {"format": "pt"}, client=client)
    (tmp_path / "file").write_bytes(server_place.get("plain.safetensors"))
    for loaded in (load_file(uri, client=client), safetensors_load_file(tmp_path / "file")):
        assert loaded.keys() == STATE.keys()
        assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)
    save_file({}, uri, client=client)
    assert load_file(uri, client=client) == {}


def test_a_plain_state_dict_of_several_files(place):
    for path, options in {
        "index": {"fqn_to_index_mapping": FILES},
        "shards": {"save_distributed": True},
    }.items():
        dcp.save(STATE, storage_writer=writer_of(place, path, **options))
        loaded = load_sharded(place.uri(path), client=place.client())
        assert loaded.keys() == STATE.keys()
        assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)
    with pytest.raises(NotFoundError):
        load_sharded(place.uri("nothing"), client=place.client())


def test_a_file_holds_only_tensors(place):
    with pytest.raises(CheckpointError, match="'step' is a int; a safetensors file holds only tensors"):
        save_file({"a": torch.ones(1), "step": 3}, place.uri("mixed"), client=place.client())
    with pytest.raises(NotFoundError):
        load_file(place.uri("mixed"), client=place.client())


def test_one_file_is_its_header_and_its_tensors(proxied):
    place, proxy = proxied
    save_file({"a": torch.ones(9)}, place.uri("x"), client=place.client())
    proxy.clear()
    load_file(place.uri("x"), client=place.client())
    assert [request.method for request in proxy.requests()] == ["GET", "GET"]


def test_a_long_header_and_large_tensors(place):
    state = {f"{'layer.' * 20}{n}": torch.tensor(float(n)) for n in range(3000)}
    state["large"] = torch.randn(3, 1024, 1024)
    save_file(state, place.uri("long"), client=place.client())
    loaded = load_file(place.uri("long"), device="cpu", client=place.client())
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    # Each has memory of its own, as after torch.load.
    assert loaded["large"].untyped_storage().nbytes() == loaded["large"].nbytes


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{}",
        b'{"weight_map": null}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": "x", "a": "y"}}',
        b'{"weight_map": {}, "metadata": 3}',
        b'{"weight_map": {}, "metadata": {"s3torch_files": {"x": {"size": 1e999, "checksum": null}}}}',
        b'{"weight_map": {}, "metadata": {"s3torch_files": {"x": {"size": -1, "checksum": null}}}}',
        b'{"weight_map": {}, "metadata": {"s3torch_files": {"x": {"size": 1, "checksum": ["a"]}}}}',
        b'{"weight_map": ' + b'{"a":' * 10**5,
        '{"weight_map": {}}'.encode("utf-16")[:-1],
    ],
    ids=range(12),
)
def test_a_damaged_index(place, index):
    place.put(INDEX, index)
    for look in (
        reader_of(place).read_metadata,
        lambda: verify_checkpoint(place.uri("model"), client=place.client()),
    ):
        with pytest.raises(CheckpointError, match="/model.safetensors.index.json is damaged"):
            look()


@pytest.mark.parametrize("data", [b"", b"x", b"\xff" * 100])
def test_what_is_no_safetensors_file(place, data):
    place.put("file", data)
    with pytest.raises(CheckpointError, match="s3://bucket/file is not a safetensors file"):
        load_file(place.uri("file"), client=place.client())
    with pytest.raises(NotFoundError):
        load_file(place.uri("other"), client=place.client())

"""Whole safetensors files that are made of the parts that ranks have saved."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as safetensors_load
from safetensors.torch import load_file as safetensors_load_file
from torch.distributed.checkpoint._consolidate_hf_safetensors import (
    consolidate_safetensors_files as torch_consolidate,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    TensorProperties,
    TensorStorageMetadata,
)

from s3torch.core import AccessDeniedError, ConfigurationError, NotFoundError
from s3torch.dcp import (
    CheckpointError,
    S3HuggingFaceStorageWriter,
    consolidate_safetensors_files,
    load_sharded,
)
from s3torch.dcp.hugging_face import _consolidation
from s3torch.dcp.loading._bands import bands_of, reads_of, windows
from s3torch.testing.faults import Fault

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled, unavailable or uninitialized",
    "ignore:Detected an existing checkpoint",
)

STATE = {
    "wide": torch.randn(40, 33),
    "half": torch.randn(7).half(),
    "brain": torch.randn(5, 2).bfloat16(),
    "deep": torch.randn(3, 4, 5, 6).double(),
    "count": torch.arange(9),
    "scalar": torch.tensor(2.5),
    "mask": torch.rand(11) > 0.5,
    "empty": torch.empty(0, 3),
    "view": torch.randn(8, 6).t(),
}
FILES = {name: 1 + n % 2 for n, name in enumerate(STATE)}
INDEX = "model/model.safetensors.index.json"


@given(
    sizes=st.lists(st.integers(0, 6), max_size=4).map(tuple),
    limit=st.integers(8, 600),
    counts=st.lists(st.integers(1, 3), min_size=4, max_size=4),
)
def test_bands_are_the_tensor_in_order_and_read_each_element_once(sizes, limit, counts, tiles_of):
    whole = torch.arange(math.prod(sizes)).reshape(sizes)
    tiles = {
        tuple(start for start, _ in tile): whole[tuple(slice(*cut) for cut in tile)]
        for tile in tiles_of(sizes, counts)
    }
    chunks = [ChunkStorageMetadata(torch.Size(at), tile.size()) for at, tile in tiles.items()]
    stored = TensorStorageMetadata(TensorProperties(dtype=whole.dtype), whole.size(), chunks)
    bands = list(bands_of("a", whole.dtype, sizes, limit=limit))
    assert all(0 < band.size <= limit for band in bands)
    pieces = []
    for number, band in enumerate(bands):
        piece = torch.full(band.sizes, -1)
        for item in reads_of(band, number, stored):
            target, tile = piece, tiles[tuple(item.storage_index.offset)]
            for dimension, count in enumerate(item.lengths):
                target = target.narrow(dimension, item.dest_offsets[dimension], count)
                tile = tile.narrow(dimension, item.storage_offsets[dimension], count)
            assert (target == -1).all()
            target.copy_(tile)
        pieces.append(piece.flatten())
    assert torch.equal(torch.cat([torch.empty(0, dtype=whole.dtype), *pieces]), whole.flatten())
    grouped = list(windows(bands, limit=limit))
    assert [band for window in grouped for band in window] == bands
    assert all(sum(band.size for band in window) <= limit for window in grouped)


@pytest.mark.parametrize("counts", [(2, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("window", [64 * 1024**2, 200])
def test_tiles_become_whole_files(place, monkeypatch, counts, window, put_shards, check_whole):
    monkeypatch.setattr(_consolidation, "_WINDOW", window)
    state = {name: tensor for name, tensor in STATE.items() if tensor.numel()}
    put_shards(place, state, counts)
    shards, target = place.uri("shards"), place.uri("model")
    consolidate_safetensors_files(shards, target, FILES, 2, client=place.client())
    check_whole(place, state)
    index = json.loads(place.get(INDEX))
    assert place.weight_map(INDEX) == {
        name: f"model-0000{FILES[name]}-of-00002.safetensors" for name in state
    }
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())


def test_torch_makes_the_same_tensors(place, tmp_path, put_shards):
    # torch knows no bools there.
    state = {name: STATE[name] for name in ("wide", "half", "brain", "deep")}
    put_shards(place, state, (2, 3))
    place.download("shards", tmp_path / "shards")
    (tmp_path / "whole").mkdir()
    torch_consolidate(str(tmp_path / "shards"), str(tmp_path / "whole"), dict.fromkeys(state, 1))
    consolidate_safetensors_files(place.uri("shards"), place.uri("model"), client=place.client())
    name = "model-00001-of-00001.safetensors"
    theirs = safetensors_load_file(tmp_path / "whole" / name)
    ours = safetensors_load(place.get(place.key(f"model/{name}")))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    index = json.loads((tmp_path / "whole/model.safetensors.index.json").read_text())
    assert place.weight_map(INDEX) == index["weight_map"]


def writer_of(place, path="model", **options):
    return S3HuggingFaceStorageWriter(
        "us-east-1",
        place.uri(path),
        place.config,
        save_distributed=True,
        enable_consolidation=True,
        **options,
    )


def test_a_save_that_is_consolidated(server_place, check_whole):
    place = server_place
    writer = writer_of(place, fqn_to_index_mapping=FILES, thread_count_consolidation=2)
    dcp.save(STATE, storage_writer=writer)
    check_whole(place, STATE)
    shards = [f"model/sharded/shard-00001-model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    whole = [f"model/model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert sorted(place.plain()) == sorted([*shards, "model/sharded/.metadata", *whole, INDEX])
    loaded = load_sharded(place.uri("model/sharded"), client=place.client())
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)
    # Over it, with other files, and then elsewhere with the same writer.
    changed = STATE | {"wide": torch.ones(40, 33)}
    dcp.save(changed, storage_writer=writer_of(place))
    assert len(place.listed()) == 4
    check_whole(place, changed)
    dcp.save(STATE, checkpoint_id=place.uri("other"), storage_writer=writer)
    check_whole(place, STATE, "other")
    check_whole(place, changed)


def test_a_consolidation_that_fails_leaves_the_old_one(seaweed_place, seaweedfs, fault_proxy):
    dcp.save(STATE, storage_writer=writer_of(seaweed_place))
    proxy = fault_proxy(seaweedfs)
    changed = STATE | {"wide": torch.ones(40, 33)}
    for key in ("model/model-", INDEX):
        rule = proxy.add(Fault.error(403, "AccessDenied"), method="PUT", key=key)
        with pytest.raises(CheckpointException) as caught:
            dcp.save(changed, storage_writer=writer_of(seaweed_place, endpoint=proxy.endpoint))
        assert isinstance(caught.value.failures[0][0], AccessDeniedError)
        assert rule.hits
        proxy.heal()
        old = load_sharded(seaweed_place.uri("model"), client=seaweed_place.client())
        assert torch.equal(old["wide"], STATE["wide"])
        new = load_sharded(seaweed_place.uri("model/sharded"), client=seaweed_place.client())
        assert torch.equal(new["wide"], changed["wide"])


def test_what_is_there_can_be_kept(place, check_whole):
    dcp.save(STATE, storage_writer=writer_of(place))
    before = place.listed()
    with pytest.raises(CheckpointException, match="already exists"):
        dcp.save(STATE, storage_writer=writer_of(place, overwrite=False))
    with pytest.raises(RuntimeError, match="already exists"):
        consolidate_safetensors_files(
            place.uri("model/sharded"), place.uri("model"), overwrite=False, client=place.client()
        )
    assert set(before) <= set(place.listed())
    check_whole(place, STATE)


def test_checkpoints_of_different_kinds_have_different_places(place, check_whole):
    dcp.save(STATE, storage_writer=writer_of(place))
    for options in ({}, {"save_distributed": True}):
        plain = S3HuggingFaceStorageWriter("us-east-1", place.uri("model"), place.config, **options)
        with pytest.raises(CheckpointException, match="checkpoint of another kind"):
            dcp.save(STATE, storage_writer=plain)
    check_whole(place, STATE)
    place.put("model/.metadata", b"of another checkpoint")
    with pytest.raises(CheckpointException, match="checkpoint of another kind"):
        dcp.save(STATE, storage_writer=writer_of(place))


def test_parts_that_are_missing(place, put_shards):
    put_shards(place, {"wide": STATE["wide"]}, (2, 2))
    lost = "shards/shard-00004-model-00001-of-00001.safetensors"
    place.client().delete_object(place.bucket, lost)
    with pytest.raises(CheckpointError, match="of the 1320 elements of wide"):
        consolidate_safetensors_files(place.uri("shards"), place.uri("model"), client=place.client())
    with pytest.raises(NotFoundError):
        consolidate_safetensors_files(place.uri("nothing"), place.uri("model"), client=place.client())
    assert place.listed("model/") == []


def test_bad_arguments(place, put_shards):
    with pytest.raises(ConfigurationError, match="needs save_distributed=True"):
        S3HuggingFaceStorageWriter("us-east-1", place.uri("a"), place.config, enable_consolidation=True)
    with pytest.raises(ConfigurationError, match="thread_count_consolidation must be at least 1, got 0"):
        writer_of(place, thread_count_consolidation=0)
    with pytest.raises(ConfigurationError, match="needs use_collectives=True"):
        dcp.save(STATE, storage_writer=writer_of(place), use_collectives=False)
    put_shards(place, STATE | {"empty": torch.ones(1)}, (2, 2))
    with pytest.raises(ConfigurationError, match="begin with 1, got 0"):
        consolidate_safetensors_files(
            place.uri("shards"), place.uri("model"), dict.fromkeys(STATE, 0), client=place.client()
        )
    with pytest.raises(CheckpointError, match="has no file for"):
        consolidate_safetensors_files(
            place.uri("shards"), place.uri("model"), {"wide": 1}, client=place.client()
        )

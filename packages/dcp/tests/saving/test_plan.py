"""From plans to files."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from s3torch.dcp.saving._files import unstored
from s3torch.dcp.saving._plan import plan_files


def tensor_item(name, *shape):
    size = torch.Size(shape)
    chunk = ChunkStorageMetadata(torch.Size([0] * len(shape)), size)
    data = TensorWriteData(chunk, TensorProperties(), size)
    return WriteItem(MetadataIndex(name, chunk.offsets), WriteItemType.TENSOR, tensor_data=data)


def object_item(name):
    return WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO)


def names(files):
    return {file.name: [item.index.fqn for item in file.items] for file in files}


def test_one_file_has_objects_first():
    items = [tensor_item("t", 2), object_item("o"), tensor_item("u", 9), object_item("p")]
    assert names(plan_files(items, "__3_", files=1)) == {"__3_0.distcp": ["o", "p", "t", "u"]}


def test_one_file_per_item():
    items = [tensor_item("t", 2), object_item("o")]
    files = plan_files(items, "a/__0_", files=4, single_file_per_rank=False)
    assert names(files) == {"a/__0_0.distcp": ["t"], "a/__0_1.distcp": ["o"]}


def test_there_are_no_empty_files():
    assert plan_files([], "__0_", files=1) == plan_files([], "__0_", files=4) == []
    items = [tensor_item("a", 5), tensor_item("b", 7), tensor_item("c", 6)]
    files = plan_files(items, "__0_", files=4)
    assert [file.name for file in files] == ["__0_0.distcp", "__0_1.distcp", "__0_2.distcp"]


@given(st.lists(st.integers(0, 1000)), st.integers(0, 20), st.integers(1, 8), st.booleans())
def test_files_share_all_items_evenly(lengths, objects, count, single):
    items = [tensor_item(f"t{n}", length) for n, length in enumerate(lengths)]
    items += [object_item(f"o{n}") for n in range(objects)]
    files = plan_files(items, "", files=count, single_file_per_rank=single)
    written = [item.index.fqn for file in files for item in file.items]
    assert sorted(written) == sorted(item.index.fqn for item in items)
    assert all(file.items for file in files)
    if single and lengths:
        assert len(files) <= count
        sizes = [sum(i.tensor_data.size.numel() for i in f.items if i.tensor_data) for f in files]
        assert max(sizes) <= sum(lengths) / count + max(lengths)


def test_what_was_promised_and_not_stored():
    def tensor(*offsets):
        chunks = [ChunkStorageMetadata(torch.Size([at]), torch.Size([4])) for at in offsets]
        return TensorStorageMetadata(TensorProperties(), torch.Size([8]), chunks)

    promised = {"t": tensor(0, 4), "o": BytesStorageMetadata(), "p": BytesStorageMetadata()}
    everything = [
        MetadataIndex("t", [0], 0),
        MetadataIndex("t", [4], 1),
        MetadataIndex("o"),
        MetadataIndex("p"),
    ]
    assert unstored(promised, everything) == []
    assert unstored(promised, everything[:1] + everything[2:3]) == ["t at (4,)", "p"]

"""Archives that are made around the bytes of a tensor, compared with those of ``torch.save``."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.storage import _new_dtypes

from s3torch.dcp._tensors import STORAGES, archive_frame, memory_of, parse_archive

GIB = 1024**3


def described(archive):
    return zipfile.ZipFile(io.BytesIO(archive)).read("archive/data.pkl")


@given(st.sampled_from(sorted(STORAGES.values(), key=str)), st.lists(st.integers(1, 5), max_size=4))
def test_torch_loads_the_tensor(dtype, sizes):
    tensor = torch.randint(0, 2, tuple(sizes)).to(dtype)
    frame = archive_frame(dtype, tuple(sizes))
    archive = frame.head + bytes(memory_of(tensor)) + frame.tail
    loaded = torch.load(io.BytesIO(archive), weights_only=True)
    assert (loaded.dtype, loaded.shape, loaded.stride()) == (dtype, tensor.shape, tensor.stride())
    assert torch.equal(loaded, tensor)
    assert not loaded.requires_grad
    assert parse_archive(memoryview(archive), len(archive)) == frame.layout
    assert frame.layout.start % 64 == 0

    usual = io.BytesIO()
    torch.save(tensor, usual)
    assert described(archive) == described(usual.getvalue())


def test_it_can_be_mapped_into_memory(tmp_path):
    tensor = torch.randn(1000)
    frame = archive_frame(tensor.dtype, (1000,))
    path = tmp_path / "a"
    path.write_bytes(frame.head + bytes(memory_of(tensor)) + frame.tail)
    assert torch.equal(torch.load(path, mmap=True), tensor)


@pytest.mark.parametrize("size", [4 * GIB - 2, 4 * GIB - 1, 4 * GIB + 64])
def test_archives_of_more_than_4_gib(tmp_path, size):
    frame = archive_frame(torch.uint8, (size,))
    with (tmp_path / "a").open("wb") as file:
        file.write(frame.head)
        file.seek(size - 1, io.SEEK_CUR)  # A hole, which takes no room.
        file.write(b"\x07" + frame.tail)
    loaded = torch.load(tmp_path / "a", mmap=True)
    assert (loaded.shape, loaded[0], loaded[-1]) == ((size,), 0, 7)


@pytest.mark.parametrize("dtype", sorted(_new_dtypes(), key=str))
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_types_without_a_storage_class(dtype):
    tensor = torch.arange(24, dtype=torch.uint8).view(dtype).unsqueeze(0)
    frame = archive_frame(dtype, tuple(tensor.shape))
    archive = frame.head + bytes(memory_of(tensor)) + frame.tail
    loaded = torch.load(io.BytesIO(archive), weights_only=True)
    assert (loaded.dtype, loaded.shape) == (dtype, tensor.shape)
    assert bytes(memory_of(loaded)) == bytes(memory_of(tensor))
    usual = io.BytesIO()
    torch.save(tensor, usual)
    assert described(archive) == described(usual.getvalue())


@pytest.mark.promise(10)
@pytest.mark.parametrize("step", [b"r\xff\xff\xff\x7f", b"}b", b"cos\nmkdir\n(X\x01\x00\x00\x00atR"])
def test_what_stands_in_a_strange_archive_is_left_to_torch(step, tmp_path, monkeypatch):
    """Not more memory is taken, nothing is changed and nothing run."""
    monkeypatch.chdir(tmp_path)
    usual = io.BytesIO()
    torch.save(torch.ones(4), usual)
    body = usual.getvalue().replace(b"_rebuild_tensor_v2\n", b"_rebuild_tensor_v2\n" + step)
    assert parse_archive(memoryview(usual.getvalue()), len(usual.getvalue())) is not None
    found = parse_archive(memoryview(body), len(body))
    assert found is None or found.sizes == (4,)
    assert list(tmp_path.iterdir()) == []


def test_quantized_types_are_left_to_torch():
    assert archive_frame(torch.qint8, (3,)) is None

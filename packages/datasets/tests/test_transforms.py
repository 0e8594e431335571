"""Transforms on readers of a store in memory and on bytes."""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from s3torch.core import S3Client
from s3torch.core.errors import ConfigurationError
from s3torch.datasets import S3MapDataset, S3ShardDataset
from s3torch.datasets.transforms import (
    Compose,
    DecodeParts,
    Images,
    ImageTensor,
    RawTensor,
    decode_json,
    decode_npy,
    decode_text,
    read_bytes,
)


@pytest.fixture(params=["reader", "bytes"])
def source(request, memory, store):
    """A function that makes what a transform gets."""

    def make(data):
        if request.param == "bytes":
            return data
        store.put("data", "key", data)
        return S3Client(s3client_config=memory).get_object("data", "key")

    return make


def png(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def test_texts_and_documents(source):
    assert read_bytes(source(b"data")) == b"data"
    assert decode_text(source("ä".encode())) == "ä"
    assert decode_json(source(b'{"a": [1]}')) == {"a": [1]}
    assert Compose(decode_text, str.upper, len)(source(b"data")) == 4


@pytest.mark.promise(10)
def test_arrays_without_objects(source):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(decode_npy(source(npy(array))), array)
    with pytest.raises(ValueError, match="pickle"):
        decode_npy(source(npy(np.array([{}]), allow_pickle=True)))


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("size", [0, 1, 2, 24])
def test_raw_tensors(source, writable, size):
    data = bytes(range(size))
    tensor = RawTensor(writable=writable)(source(data))
    assert tensor.dtype == torch.uint8
    assert tensor.tolist() == list(data)
    if writable and size:
        tensor[0] = 9
        assert data[0] == 0


def test_types_and_shapes_of_raw_tensors(source):
    values = torch.arange(6, dtype=torch.float32)
    data = values.numpy().tobytes()
    made = RawTensor(torch.float32, (2, -1))(source(data))
    assert torch.equal(made, values.view(2, 3))
    assert torch.equal(RawTensor(torch.float32)(source(data)), values)
    assert RawTensor(torch.int64, (0, 4))(source(b"")).shape == (0, 4)
    for dtype, shape in [
        (torch.float32, (2, 2)),
        (torch.float32, (4, -1)),
        (torch.uint8, (0, -1)),
        (torch.complex128, None),
    ]:
        with pytest.raises(ConfigurationError, match="24 bytes do not make"):
            RawTensor(dtype, shape)(source(data))


def test_a_raw_tensor_shares_the_memory_of_the_bytes():
    data = bytes(range(100))
    tensor = RawTensor()(data)
    address = id(data) + bytes.__basicsize__ - 1
    assert tensor.data_ptr() == address


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", None])
def test_images(source, mode):
    pixels = np.random.default_rng(1).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    found = Images(mode)(source(png(image)))
    assert np.array_equal(np.asarray(found), np.asarray(image.convert(mode) if mode else image))
    if mode is not None:
        tensor = ImageTensor(mode)(source(png(image)))
        expected = torch.from_numpy(np.array(image.convert(mode))).view(5, 7, -1).permute(2, 0, 1)
        assert tensor.is_contiguous()
        assert torch.equal(tensor, expected)


def test_modes_are_checked():
    with pytest.raises(ConfigurationError, match="mode must be one of"):
        ImageTensor("F")


def test_they_work_in_loaders(memory, store, make_tar):
    image = Image.new("RGB", (4, 3), (1, 2, 3))
    for number in range(4):
        store.put("data", f"images/{number}.png", png(image))
    dataset = S3MapDataset.from_prefix(
        "s3://data/images/", region="us-east-1", s3client_config=memory, transform=ImageTensor()
    )
    (batch,) = DataLoader(pickle.loads(pickle.dumps(dataset)), batch_size=4)
    assert batch.shape == (4, 3, 3, 4)
    raw = S3MapDataset.from_prefix(
        "s3://data/images/", region="us-east-1", s3client_config=memory, transform=RawTensor()
    )
    (batch,) = DataLoader(raw, batch_size=4)
    assert bytes(batch[2].tolist()) == png(image)
    files = [("0.png", png(image)), ("0.cls", b"7"), ("0.json", json.dumps([1]).encode()), ("0.x", b"raw")]
    store.put("data", "shards/a.tar", make_tar(files))
    decode = DecodeParts({"png": Images(), "cls": Compose(decode_text, int), "json": decode_json})
    shards = S3ShardDataset.from_prefix("s3://data/shards/", s3client_config=memory, transform=decode)
    (sample,) = shards
    assert (sample["cls"], sample["json"], sample["x"], sample["png"].size) == (7, [1], b"raw", (4, 3))

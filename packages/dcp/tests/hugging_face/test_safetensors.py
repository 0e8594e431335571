"""Files in the safetensors format."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch.distributed.checkpoint.filesystem import SerializationFormat

from s3torch.core import S3ReaderConstructor
from s3torch.dcp import CheckpointError
from s3torch.dcp.hugging_face._safetensors import _DTYPES, header_length, make_header, parse_header

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")

shapes = st.lists(st.integers(0, 5), max_size=3)


def is_known_to_the_library(dtype):
    try:
        safetensors_load(safetensors_save({"x": torch.zeros(1).to(dtype)}))
    except KeyError:
        return False
    return True


KNOWN = [dtype for dtype in _DTYPES.values() if is_known_to_the_library(dtype)]


def bytes_of(tensor):
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@given(st.dictionaries(st.text(max_size=9), st.tuples(st.sampled_from(KNOWN), shapes), max_size=6))
def test_the_library_reads_what_is_written_here(described):
    header, places = make_header(((name, *what) for name, what in described.items()), {"format": "pt"})
    body = b"".join(bytes_of(torch.ones(one.sizes).to(one.dtype)) for one in places)
    loaded = safetensors_load(header + body)
    assert {name: (t.dtype, list(t.shape)) for name, t in loaded.items()} == {
        name: (dtype, shape) for name, (dtype, shape) in described.items()
    }
    again = parse_header(header, where="x")
    assert list(again.tensors) == places
    assert again.metadata == {"format": "pt"}


@given(
    st.dictionaries(st.text(min_size=1, max_size=9), st.tuples(st.sampled_from(KNOWN), shapes), max_size=6)
)
def test_what_the_library_writes_is_read_here(described):
    tensors = {name: torch.ones(shape).to(dtype) for name, (dtype, shape) in described.items()}
    data = safetensors_save(tensors, {"a": "b"})
    header = parse_header(data[: header_length(data, where="x")], where="x")
    assert header.metadata == {"a": "b"}
    assert {one.name: (one.dtype, one.sizes) for one in header.tensors} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
    }
    for one in header.tensors:
        stored = data[one.start : one.stop]
        assert stored == bytes_of(tensors[one.name])


def header_of(content):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        b"\xff" * 20,
        header_of(b"no json"),
        header_of([1]),
        header_of({"a": 1}),
        header_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}),
        header_of({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [8, 4]}}),
        header_of({"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}),
        header_of({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}),
        header_of({n: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for n in "ab"}),
        header_of({"__metadata__": 7}),
        header_of(b"[" * 100_000),
        header_of({"a": {"dtype": "F32", "shape": [], "data_offsets": [-4, 0]}}),
        header_of({"__metadata__": None}),
        header_of({"__metadata__": []}),
        header_of(b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}'),
        header_of(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4e0]}}'),
        header_of(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}'),
        header_of({"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}),
        header_of({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}),
        header_of({"a": {"dtype": "F32", "shape": [0, 2**64], "data_offsets": [0, 0]}}),
        header_of({"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
        header_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [2**70, 2**70 + 4]}}),
        header_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}),
        header_of({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}),
        header_of(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        header_of(b'{"a": {"dtype": "U8", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}'),
        header_of(
            b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},'
            b'"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
        ),
    ],
    ids=range(29),
)
def test_damaged_headers(data):
    with pytest.raises(CheckpointError, match="s3://b/x"):
        parse_header(data, where="s3://b/x")


WHOLE = safetensors_save({"a": torch.ones(4), "b": torch.ones(2, 3).half()}, {"format": "pt"})
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["F32", "U8", "", "0"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4
        )
    ),
)


@given(st.data())
def test_a_changed_header_is_read_or_is_one_error(data):
    body = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    with suppress(CheckpointError):
        header = parse_header(bytes(body), where="s3://b/x", size=len(body))
        assert all(one.stop <= len(body) for one in header.tensors)


@given(ODD)
def test_a_header_of_odd_values_is_read_or_is_one_error(content):
    with suppress(CheckpointError):
        parse_header(header_of(content), where="s3://b/x")


def test_a_file_that_was_cut():
    data = safetensors_save({"a": torch.ones(4)})
    parse_header(data, where="x", size=len(data))
    for size in (len(data) - 1, len(data) + 1):
        with pytest.raises(CheckpointError, match=f"has {size} bytes, its header promises {len(data)}"):
            parse_header(data, where="x", size=size)


def test_what_the_format_cannot_hold():
    with pytest.raises(CheckpointError, match="cannot hold a, a tensor of torch.complex128"):
        make_header([("a", torch.complex128, [1])])
    with pytest.raises(CheckpointError, match="two tensors with the name a"):
        make_header([("a", torch.int8, [1]), ("a", torch.int8, [1])])


FORMAT = {"serialization_format": SerializationFormat.SAFETENSORS}


@pytest.mark.parametrize("options", [{}, {"thread_count": 3}, {"single_file_per_rank": False}])
@pytest.mark.parametrize("constructor", [None, S3ReaderConstructor.sequential()])
def test_a_checkpoint_of_safetensors(place, state, blank_of, are_same, options, constructor):
    dcp.save(state, storage_writer=place.writer(**options, **FORMAT))
    loaded = blank_of(state)
    dcp.load(loaded, storage_reader=place.reader(reader_constructor=constructor))
    assert are_same(loaded, state)


def test_the_files_are_safetensors(place):
    state = {"a": torch.randn(5, 3), "b": torch.arange(4), "c": torch.ones(3).to(torch.int8), "step": 3}
    dcp.save(state, storage_writer=place.writer(**FORMAT))
    assert place.plain() == [f"checkpoint/{name}" for name in (".metadata", "__0_0.distcp", "__0_1.distcp")]
    tensors = safetensors_load(place.get(place.key("checkpoint/__0_0.distcp")))
    assert set(tensors) == {"a", "b", "c"}
    assert all(torch.equal(tensors[name], state[name]) for name in tensors)


def test_extensions_do_not_go_with_it(place):
    with pytest.raises(ValueError, match="_extensions work with"):
        place.writer(_extensions=[object()], **FORMAT)

"""Pickles that are read: nothing in them runs, and what is refused leaves no trace."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import decimal
import enum
import io
import os
import pickle
import random
import types
import uuid
from contextlib import suppress
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from s3torch.dcp import CheckpointError
from s3torch.dcp._metadata import decode_metadata
from s3torch.dcp._unpickler import SafeUnpickler, safe_archive

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")

URI = "s3://bucket/checkpoint/.metadata"
METADATA = "torch.distributed.checkpoint.metadata"
MARK, STOP, TUPLE, DICT = b"(", b".", b"t", b"}"
HUGE = pickle.dumps(10**10, 2)[2:-1]
ZERO = b"K\x00"


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def call(function, *arguments):
    return function + MARK + b"".join(arguments) + TUPLE + b"R"


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def state_of(**attributes):
    return DICT + MARK + b"".join(text(name) + value for name, value in attributes.items()) + b"u"


METADATA_CLASS = named(METADATA, "Metadata")
RANGE = call(named("builtins", "range"), HUGE)
MEMBER = call(named(METADATA, "_MEM_FORMAT_ENCODING"), ZERO)
DTYPE = call(named("numpy", "dtype"), text("f4"), b"\x89", b"\x88")
ARRAY = named("numpy._core.multiarray", "_reconstruct")
NDARRAY = named("numpy", "ndarray")

HOSTILE = {
    "attributes of a class": METADATA_CLASS + b"N" + state_of(version=ZERO) + b"\x86b",
    "attributes of a class by name": METADATA_CLASS + state_of(version=ZERO) + b"b",
    "state of a class": named(METADATA, "TensorProperties") + DICT + b"b",
    "attributes of a member": MEMBER + state_of(_value_=b"K\x07") + b"b",
    "attributes of a function": named("torch.serialization", "_get_layout") + state_of(cache=DICT) + b"b",
    "attributes of a module": named("torch.distributed.checkpoint", "metadata") + DICT + b"b",
    "attributes of a type": named("torch", "float32") + state_of(a=ZERO) + b"b",
    "a set of a range": call(named("builtins", "set"), RANGE),
    "a set of Python 2": call(named("__builtin__", "set"), call(named("__builtin__", "xrange"), HUGE)),
    "a frozen set of a range": call(named("builtins", "frozenset"), RANGE),
    "a size of a range": call(named("torch", "Size"), RANGE),
    "a deque of a range": call(named("collections", "deque"), RANGE),
    "a counter of a range": call(named("collections", "Counter"), RANGE),
    "a list of a range": call(named("builtins", "list"), RANGE),
    "items of a range": call(named("collections", "OrderedDict"), MARK + RANGE + b"l"),
    "a large bytearray": call(named("builtins", "bytearray"), HUGE),
    "a bytearray that is not there": b"\x80\x05\x96" + (2**40).to_bytes(8, "little"),
    "bytes that are not there": b"\x8e" + (2**40).to_bytes(8, "little"),
    "text that is not there": b"\x8d" + (2**40).to_bytes(8, "little"),
    "an encoding": call(named("_codecs", "encode"), text("a"), text("idna")),
    "a deep key": DICT + b")" + b"\x85" * 10**6 + b"Ns",
    "a deep item": b"\x8f" + MARK + b")" + b"\x85" * 10**6 + b"\x90",
    "a deep frozen set": MARK + b")" + b"\x85" * 10**6 + b"\x91",
    "a wide key": DICT
    + b")"
    + b"2222ttttt"[:0]
    + (MARK + b"2" * 0 + b"h\x00" * 0 + b")" * 9 + TUPLE)
    + b"\x85" * 10**5
    + b"Ns",
    "a large shared key": DICT
    + b")q\x00"
    + b"".join((MARK + b"h\x00" * 30 + b"tq\x00") for _ in range(30))
    + b"Ns",
    "a deep index": DICT
    + named(METADATA, "MetadataIndex")
    + b")\x81"
    + DICT
    + text("offset")
    + b")"
    + b"\x85" * 10**6
    + b"sbNs",
    "deep lists": b"]" * 10**6 + b"a" * (10**6 - 1),
    "a large array": call(ARRAY, NDARRAY, MARK + HUGE + TUPLE, b"C\x01b"),
    "a type of all": DTYPE
    + MARK
    + b"K\x03"
    + text(">")
    + text("a")
    + b"NN"
    + b"J\xff\xff\xff\xff" * 2
    + ZERO
    + b"tb",
    "a type of times": call(named("numpy", "dtype"), text("m8"), b"\x89", b"\x88")
    + MARK
    + b"K\x03"
    + text("<")
    + b"NNN"
    + b"J\xff\xff\xff\xff" * 2
    + ZERO
    + b"tb",
    "a member that is made": call(named(METADATA, "_MEM_FORMAT_ENCODING"), text("X"), text("a b")),
    "an attribute": call(named("builtins", "getattr"), METADATA_CLASS, text("__init__")),
    "an instance of another class": named("builtins", "list") + b")\x81",
    "an instance with arguments": METADATA_CLASS + MARK + DICT + TUPLE + b"\x81",
    "an extension": b"\x82\x01",
    "an instance of old": MARK + b"itorch\nload\n",
    "an object of old": MARK + METADATA_CLASS + b"o",
    "a persistent id": ZERO + b"Q",
    "a place far away": b"Nr\xff\xff\xff\x7f",
    "nothing": b"",
    "no value": b"0",
}


def shared_state():
    """What a pickle could change for everybody."""
    classes = [Metadata, MetadataIndex, TensorProperties, TensorStorageMetadata, _StorageInfo]
    members = [vars(member).copy() for member in _MEM_FORMAT_ENCODING]
    functions = [vars(torch.serialization._get_layout).copy()]
    return (
        [dict(vars(one)) for one in classes],
        members,
        functions,
        np.dtype("f4").str,
        np.arange(2).tobytes(),
    )


@pytest.mark.promise(10)
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_what_is_refused_leaves_no_trace(body):
    before = shared_state()
    with pytest.raises(CheckpointError, match=r"s3://bucket/checkpoint/\.metadata (contains|is)"):
        decode_metadata(b"\x80\x02" + body + STOP, uri=URI)
    assert shared_state() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.state_dict_metadata.update({"a": 1}),
        lambda one: one.state_dict_metadata.update({1: one.state_dict_metadata["t"]}),
        lambda one: setattr(one.state_dict_metadata["t"], "size", [4]),
        lambda one: setattr(one.state_dict_metadata["t"], "size", torch.Size([2, 2])),
        lambda one: setattr(one.state_dict_metadata["t"].chunks[0], "sizes", (-4,)),
        lambda one: setattr(one.state_dict_metadata["t"].chunks[0], "sizes", (2**64,)),
        lambda one: setattr(one.state_dict_metadata["t"].properties, "dtype", "float32"),
        lambda one: setattr(next(iter(one.storage_data.values())), "relative_path", 7),
        lambda one: setattr(next(iter(one.storage_data.values())), "offset", -1),
        lambda one: setattr(next(iter(one.storage_data.values())), "length", 1e999),
        lambda one: setattr(one, "storage_data", [1]),
        lambda one: setattr(one, "state_dict_metadata", None),
        lambda one: vars(next(iter(one.storage_data))).update(fqn=3),
        lambda one: vars(next(iter(one.storage_data))).update(offset=[3]),
    ],
    ids=range(14),
)
def test_values_of_other_kinds_are_damage(place, change):
    chunk = ChunkStorageMetadata(torch.Size([0]), torch.Size([4]))
    tensor = TensorStorageMetadata(TensorProperties(), torch.Size([4]), [chunk])
    places = {MetadataIndex("t", torch.Size([0])): _StorageInfo("a", 0, 9)}
    metadata = Metadata({"t": tensor}, storage_data=places, storage_meta=StorageMeta())
    assert decode_metadata(pickle.dumps(metadata), uri=URI) == metadata
    change(metadata)
    place.put("checkpoint/.metadata", pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"\.metadata (is damaged|contains a key that)"):
        place.reader().read_metadata()


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.text() | st.integers() | st.tuples(st.text(), st.integers())
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(KEYS, inner)
        | st.lists(inner).map(tuple)
        | st.sets(KEYS)
        | st.frozensets(KEYS)
    ),
    max_leaves=20,
)


@given(VALUES, st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_plain_values_are_as_they_were(value, protocol):
    assert SafeUnpickler(io.BytesIO(pickle.dumps(value, protocol))).load() == value


METADATA_BODY = pickle.dumps(
    Metadata(
        {
            "t": TensorStorageMetadata(
                TensorProperties(), torch.Size([4]), [ChunkStorageMetadata(torch.Size([0]), torch.Size([4]))]
            )
        },
        planner_data={"t": ("t",)},
        storage_data={MetadataIndex("t", torch.Size([0]), 0): _StorageInfo("__0_0.distcp", 0, 9)},
    )
)


@given(st.data())
def test_damaged_metadata_is_one_error(data):
    """Bytes that were changed, cut or put together: the metadata, or our own error, and nothing changed."""
    before = shared_state()
    body = bytearray(METADATA_BODY)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    with suppress(CheckpointError):
        assert isinstance(decode_metadata(bytes(body), uri=URI), Metadata)
    assert shared_state() == before


@given(st.lists(st.sampled_from([bytes([code]) for code in SafeUnpickler.dispatch]) | st.binary(max_size=3)))
def test_steps_in_any_order_are_one_error(steps):
    with pytest.raises(CheckpointError):
        decode_metadata(b"".join(steps), uri=URI)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


class Extra:
    def __init__(self):
        self.value = 3

    def __eq__(self, other):
        return vars(self) == vars(other)

    __hash__ = None


OBJECTS = {
    "plain": {"step": 7, "lr": 1e-3, "name": "a", "raw": b"\x00\xff", "none": None, "list": [1, (2, {3})]},
    "sets": [{1, 2}, frozenset({"a"}), range(3), slice(1, 2), 1j, bytearray(b"abc")],
    "ordered": collections.OrderedDict(a=1, b=2),
    "default": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter("abca"),
    "deque": collections.deque([1, 2], 5),
    "time": [dt.datetime(2026, 1, 2, tzinfo=dt.UTC), dt.timedelta(3), dt.date(2026, 1, 2), dt.time(4)],
    "paths": PurePosixPath("a/b"),
    "decimal": decimal.Decimal("1.5"),
    "id": uuid.UUID(int=5),
    "namespaces": [argparse.Namespace(lr=1, deep={"a": [1]}), types.SimpleNamespace(a=1)],
    "torch": [torch.Size([1, 2]), torch.float16, torch.device("cpu"), torch.strided],
    "random": random.getstate(),
    "members": [Color.RED, Level.LOW, {Color.BLUE: 1}],
}
NUMPY = {
    "scalar": np.float32(1.5),
    "bool": np.bool_(True),
    "array": np.arange(6).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "text": np.array(["a", "bcd"]),
    "empty": np.zeros((0, 3), np.int16),
    "big endian": np.arange(3, dtype=">i4"),
    "objects": np.array([1, "a", None], dtype=object),
    "dtype": np.dtype("f4"),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_what_is_kept_beside_tensors_is_loaded(place, name):
    # Of a tuple, torch makes one object.
    dcp.save({"object": (OBJECTS[name],)}, storage_writer=place.writer())
    loaded = {"object": None}
    dcp.load(loaded, storage_reader=place.reader())
    assert loaded["object"] == (OBJECTS[name],)
    assert type(loaded["object"][0]) is type(OBJECTS[name])


@pytest.mark.parametrize("name", NUMPY)
def test_what_is_kept_of_numpy_is_loaded(place, name):
    dcp.save({"object": [NUMPY[name], np.random.get_state()]}, storage_writer=place.writer())
    loaded = {"object": None}
    dcp.load(loaded, storage_reader=place.reader())
    value, state = loaded["object"]
    assert type(value) is type(NUMPY[name])
    assert np.array_equal(value, NUMPY[name]) if name != "dtype" else value == NUMPY[name]
    # Pickles of numpy have arrays in the byte order of the machine, whatever it was.
    assert repr(value) == repr(pickle.loads(pickle.dumps(NUMPY[name], 2)))
    np.random.set_state(state)


def test_tensors_in_objects_are_loaded():
    tensors = [
        torch.nn.Parameter(torch.randn(3)),
        torch.randn(4, 3).t(),
        torch.eye(3).to_sparse(),
        torch.ones(2, dtype=torch.float8_e4m3fn),
    ]
    body = io.BytesIO()
    torch.save({"all": tensors, "rng": torch.get_rng_state()}, body)
    again = torch.load(io.BytesIO(safe_archive(body.getvalue(), ())), weights_only=True)["all"]
    assert [type(one) for one in again] == [type(one) for one in tensors]
    assert all(str(one) == str(other) for one, other in zip(again, tensors, strict=True))


@pytest.mark.promise(10)
@pytest.mark.parametrize("target", [None, {"a": 1}, 0])
def test_an_object_that_would_run_code_is_refused(place, tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    dcp.save({"object": Harmful()}, storage_writer=place.writer())
    said = r"object in s3://bucket/checkpoint contains .*mkdir, .*safe_globals=.*weights_only=False"
    with pytest.raises(CheckpointException, match=said):
        dcp.load({"object": target}, storage_reader=place.reader())
    assert list(tmp_path.iterdir()) == []
    dcp.load({"object": None}, storage_reader=place.reader(weights_only=False))
    assert [path.name for path in tmp_path.iterdir()] == ["harm"]


@pytest.mark.promise(10)
@pytest.mark.parametrize("weights_only", [True, False])
def test_an_object_in_the_place_of_a_tensor_is_refused(place, tmp_path, monkeypatch, weights_only):
    monkeypatch.chdir(tmp_path)
    dcp.save({"deep": {"weight": Harmful()}}, storage_writer=place.writer())
    reader = place.reader(weights_only=weights_only)
    said = "deep.weight is a tensor in the state dict, but an object in s3://bucket/checkpoint"
    with pytest.raises(CheckpointException, match=said):
        dcp.load({"deep": {"weight": torch.zeros(3)}}, storage_reader=reader)
    assert list(tmp_path.iterdir()) == []


def test_classes_of_objects_can_be_allowed(place):
    dcp.save({"object": Extra()}, storage_writer=place.writer())
    with pytest.raises(CheckpointException, match="Extra, which is not known to be harmless"):
        dcp.load({"object": None}, storage_reader=place.reader())
    loaded = {"object": None}
    dcp.load(loaded, storage_reader=place.reader(safe_globals=[Extra]))
    assert loaded["object"] == Extra()


@pytest.mark.promise(10)
@pytest.mark.parametrize("protocol", [0, 2])
def test_an_object_of_an_old_format_is_refused(place, tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    dcp.save({"object": 1}, storage_writer=place.writer())
    metadata = pickle.loads(place.get("checkpoint/.metadata"))
    (info,) = metadata.storage_data.values()
    body = pickle.dumps(Harmful(), protocol)
    info.length = len(body)
    # Whoever can write to the bucket can leave the checksum out, too.
    del info.piece_checksums
    place.put(f"checkpoint/{info.relative_path}", body)
    place.put("checkpoint/.metadata", pickle.dumps(metadata))
    with pytest.raises(CheckpointException, match="something other than a torch.save archive"):
        dcp.load({"object": None}, storage_reader=place.reader())
    assert list(tmp_path.iterdir()) == []


def test_a_sparse_tensor_that_is_refused_does_not_spoil_the_next_load():
    body = io.BytesIO()
    indices = torch.tensor([[9]])
    wrong = torch.sparse_coo_tensor(indices, torch.ones(1), (3,), check_invariants=False)
    torch.save([wrong, Extra()], body)
    with pytest.raises(pickle.UnpicklingError):
        safe_archive(body.getvalue(), ())
    good = io.BytesIO()
    torch.save(torch.eye(2).to_sparse(), good)
    torch.load(io.BytesIO(good.getvalue()), weights_only=True)


def test_the_drop_in_of_torch_can_be_forced_to_weights_only(place, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    dcp.save({"object": [3]}, storage_writer=place.writer())
    loaded = {"object": None}
    dcp.load(loaded, storage_reader=place.reader())
    assert loaded["object"] == [3]

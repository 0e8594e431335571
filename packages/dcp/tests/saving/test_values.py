"""What is copied from an accelerator, when, and into how much memory; and what stays where it is."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s3torch.core.ranges import MIB
from s3torch.dcp._tensors import PIECE, is_plain
from s3torch.dcp.saving._values import HostValues


@dataclass
class Engine:
    """Copies tensors as if they were on an accelerator, all but those of 16 bits.

    A copy has its bytes only when somebody waits for it.
    """

    in_flight: int = 0
    most: int = 0
    log: list = field(default_factory=list)

    def serves(self, tensor):
        return tensor.dtype != torch.int16

    def start(self, piece):
        self.in_flight += piece.nbytes
        self.most = max(self.most, self.in_flight)
        self.log.append(("start", piece.nbytes))
        return Copy(self, piece)


class Copy:
    def __init__(self, engine, piece):
        self.engine, self.piece = engine, piece

    def wait(self):
        self.engine.log.append(("wait", self.piece.nbytes))
        self.engine.in_flight -= self.piece.nbytes
        return memoryview(self.piece.numpy().tobytes())


class File(io.BytesIO):
    """Takes a copy, as a writer does."""

    lend = io.BytesIO.write


def values_of(tensors, engine, ahead, asked=None):
    def resolve(item):
        if asked is not None:
            asked.append(item)
        return tensors[item]

    return HostValues(range(len(tensors)), resolve, ahead=ahead, device=engine)


def sent(values):
    for value in values:
        file = File()
        value.send(file)
        yield file.getvalue()


@pytest.mark.promise(3)
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 5 * MIB)), max_size=8),
    st.sampled_from([0, 1, 3 * MIB, 20 * MIB, 1000 * MIB]),
)
def test_all_bytes_arrive_within_the_bound(kinds, ahead):
    tensors = [torch.arange(count, dtype=torch.int16 if here else torch.int32) for here, count in kinds]
    engine = Engine()
    assert list(sent(values_of(tensors, engine, ahead))) == [one.numpy().tobytes() for one in tensors]
    assert engine.in_flight == 0
    # The bound is reached with a whole piece.
    assert engine.most <= ahead + PIECE
    assert all(size <= PIECE for _, size in engine.log)


def test_the_next_copy_is_under_way_while_bytes_are_written():
    engine = Engine()
    tensors = [torch.zeros(PIECE + 10, dtype=torch.uint8), torch.zeros(20, dtype=torch.uint8)]
    list(sent(values_of(tensors, engine, 1)))
    sizes = [PIECE, 10, 20]
    expected = [("start", PIECE)]
    for size, following in pairwise(sizes):
        expected += [("wait", size), ("start", following)]
    assert engine.log == [*expected, ("wait", 20)]


def test_what_is_on_the_host_is_asked_for_as_late_as_possible():
    asked = []
    values = values_of([torch.ones(3, dtype=torch.int16)] * 3, Engine(), 1000 * MIB, asked)
    for count, value in enumerate(values, 1):
        assert asked == list(range(count))
        assert value.data.untyped_storage().data_ptr() == value.data.data_ptr()


def test_values_that_are_not_sent_are_dropped():
    engine = Engine()
    assert [value.item for value in values_of([torch.ones(9)] * 3, engine, 30)] == [0, 1, 2]
    assert engine.in_flight == 0


def test_a_value_as_a_whole():
    tensor = torch.arange(3 * MIB).view(3, MIB)
    engine = Engine()
    (value,) = values_of([tensor], engine, 1)
    assert value.is_remote
    for value in values_of([tensor, torch.ones(2, 3).t(), b"object"], engine, 1):
        whole = value.on_host()
        if value.item == 0:
            assert torch.equal(whole, tensor)
            assert whole.data_ptr() != tensor.data_ptr()
        elif value.item == 1:
            assert not value.is_plain
            assert whole.stride() == (1, 3)
        else:
            assert whole == b"object"


class Wrapped(torch.Tensor):
    """A subclass, whose bytes may mean something else."""


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(0),
        torch.ones(4, 5).t(),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.ones(3).to_sparse(),
        torch.ones(3).as_subclass(Wrapped),
    ],
)
def test_what_is_no_plain_tensor(tensor):
    assert not is_plain(tensor)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantized_tensor_is_no_plain_tensor():
    assert not is_plain(torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8))


def test_what_is_a_plain_tensor():
    assert is_plain(torch.nn.Parameter(torch.ones(3)).detach())
    assert is_plain(torch.ones(9)[2:5])
    assert is_plain(torch.tensor(1))

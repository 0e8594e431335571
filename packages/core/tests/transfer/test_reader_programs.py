"""Every kind of reader over a real server reads what a file in memory reads."""

from __future__ import annotations

import io

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from s3torch.core import S3ReaderConstructor

PART = 5 * 2**20
SIZE = 2 * PART + 1000

KINDS = {
    "sequential": S3ReaderConstructor.sequential(),
    "forgetful": S3ReaderConstructor.sequential(keep_behind=0),
    "ranged": S3ReaderConstructor.range_based(2**20),
    "unbuffered": S3ReaderConstructor.range_based(0),
    "planned": S3ReaderConstructor.planned(
        [(100, 5000), (PART - 10, PART + 10), (2 * PART, SIZE)], max_gap=0
    ),
}
# Places near which something begins or ends.
positions = st.builds(
    lambda near, step: max(0, near + step),
    st.sampled_from([0, 100, PART, 2 * PART, SIZE]),
    st.integers(-20, 20),
)
counts = st.one_of(st.integers(0, 40), st.sampled_from([PART, PART + 7, SIZE]))
calls = st.one_of(
    st.tuples(st.just("seek"), positions),
    st.tuples(st.just("read"), counts),
    st.tuples(st.just("readinto"), counts),
    st.tuples(st.just("readline"), st.integers(0, 300)),
    st.tuples(st.just("prefetch"), st.none()),
)


@pytest.fixture
def client_of_wire(wire):
    return wire.client()


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=6,
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(program=st.lists(calls, min_size=4, max_size=10))
def test_any_program_of_calls(wire, client_of_wire, kind, program):
    bucket, key = wire.stock(SIZE)
    model = io.BytesIO(wire.content(SIZE))
    with client_of_wire.get_object(bucket, key, reader_constructor=KINDS[kind]) as reader:
        for name, argument in program:
            if name == "seek":
                reader.seek(argument)
                model.seek(min(argument, SIZE))
            elif name == "readinto":
                mine, theirs = bytearray(argument), bytearray(argument)
                assert reader.readinto(mine) == model.readinto(theirs)
                assert mine == theirs
            elif name == "prefetch":
                reader.prefetch()
            else:
                assert getattr(reader, name)(argument) == getattr(model, name)(argument)
        assert reader.read() == model.read()

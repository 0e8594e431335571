"""What the fuzzers of tools/fuzz run for long, for a moment: only our errors come out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools.fuzz.answers import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds(name):
    target, seeds = TARGETS[name]
    for seed in seeds:
        for stop in range(len(seed) + 1):
            target(seed[:stop])


@given(st.data())
@pytest.mark.parametrize("name", TARGETS)
def test_spoiled_seeds(name, data):
    target, seeds = TARGETS[name]
    seed = data.draw(st.sampled_from(seeds))
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(seed))] * 2)))
    target(seed[:start] + data.draw(st.binary(max_size=20)) + seed[stop:])


@given(st.binary())
@pytest.mark.parametrize("name", TARGETS)
def test_anything(name, data):
    TARGETS[name][0](data)

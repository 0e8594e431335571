"""States that are not what was saved: an error of ours that says what is wrong, and nothing else."""

from __future__ import annotations

import copy
import math
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3torch.core import S3ClientConfig
from s3torch.core.errors import ConfigurationError
from s3torch.datasets import S3IterableDataset, S3Sampler, S3ShardDataset, merge_states

CONFIG = S3ClientConfig(transport="memory", endpoint="http://states.memory")
ORDER = {"shuffle": False, "seed": 0}
OBJECTS = {
    "version": 1,
    "order": ORDER,
    "epoch": 0,
    "legs": [{"ranks": 1, "workers": 2, "batch_size": 2, "batches": 3}, {"taken": [1, 2]}],
    "rank": [0, 1],
    "worker": [0, 1],
    "taken": 0,
    "shares": [[0, 2, 1], [1, 2, 2]],
    "finished": False,
}
BLOCK = [0, [0, 0, 0], [1, 0, 512], 1, 1]
SHARDS = {
    "version": 1,
    "order": {**ORDER, "buffer": 1},
    "epoch": 0,
    "shards": "",
    "quota": None,
    "legs": [[[0, 1, 0, 0, 512]]],
    "shares": [{"stripe": [0, 1], "turn": 0, "taken": 2, "replays": [[[0, 1], 0, BLOCK]], "block": BLOCK}],
}
SAMPLER = {"order": {**ORDER, "count": 4}, "epoch": 0, "start": 2}


def of(cls):
    return lambda: cls("us-east-1", lambda client: (), s3client_config=CONFIG)


KINDS = {
    "objects": (OBJECTS, of(S3IterableDataset)),
    "shards": (SHARDS, of(S3ShardDataset)),
    "sampler": (SAMPLER, lambda: S3Sampler(range(4), shuffle=False)),
}
ODD = [None, "1", -1, 1.5, math.inf, math.nan, True, 1 << 80, [], {}, [[]], "x" * 100_000, {"a": 1}]


def places_of(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in items:
        yield from places_of(part, (*path, name))


def changed(state, path, value):
    state = copy.deepcopy(state)
    if not path:
        return value
    target = state
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = value
    return state


def loaded(kind, state):
    """Loads a state and begins with it, as far as that goes without a store."""
    target = KINDS[kind][1]()
    target.load_state_dict(state)
    target.state_dict()
    merge_states([state])
    samples = iter(target)
    if kind == "sampler":
        list(samples)


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_read(kind):
    loaded(kind, KINDS[kind][0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_with_an_odd_value_is_refused_by_our_error(kind):
    state, refused = KINDS[kind][0], 0
    for path in places_of(state):
        for value in ODD:
            error = None
            try:
                loaded(kind, changed(state, path, value))
            except ConfigurationError as refusal:
                error = refusal
            refused += error is not None
            assert len(str(error)) < 2000
    assert refused > 60


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_lacks_something_is_refused(kind):
    state = KINDS[kind][0]
    for name in set(state) - {"shares", "finished"}:
        with pytest.raises(ConfigurationError, match=f"not a state.*{name}|order"):
            loaded(kind, {key: value for key, value in state.items() if key != name})


@pytest.mark.parametrize(
    ("kind", "path", "value", "name"),
    [
        ("objects", ("epoch",), math.inf, "epoch"),
        ("objects", ("taken",), -1, "taken"),
        ("objects", ("shares", 0, 2), 1 << 80, "taken"),
        ("shards", ("quota",), "many", "quota"),
        ("shards", ("shares", 0, "block", 3), 1 << 40, "block of up to 1 samples"),
        ("sampler", ("start",), math.nan, "start"),
        ("sampler", ("epoch",), 1 << 70, "epoch"),
    ],
)
def test_the_error_names_what_is_wrong(kind, path, value, name):
    with pytest.raises(ConfigurationError, match=name):
        loaded(kind, changed(KINDS[kind][0], path, value))


def test_states_to_merge_are_checked():
    deep = {}
    for _ in range(100_000):
        deep = {"": deep}
    for states in ([None], [1], [[1]], [deep], [{"shards": "", "shares": 5}], [{"shares": [[[], {}, 1]]}]):
        with pytest.raises(ConfigurationError):
            merge_states(states)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_whatever_a_state_holds_only_our_error_comes(kind, data):
    state = KINDS[kind][0]
    for _ in range(data.draw(st.integers(1, 3))):
        state = changed(state, data.draw(st.sampled_from(list(places_of(state)))), data.draw(JSON))
    with suppress(ConfigurationError):
        loaded(kind, state)

"""Which checkpoints are kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core import ConfigurationError
from s3torch.dcp.manage import CheckpointInfo, _superfluous


def run_of(steps):
    return [CheckpointInfo(f"s3://b/run/step-{n}", f"step-{n}", at) for at, n in enumerate(steps)]


def steps_of(checkpoints):
    return [one.step for one in checkpoints]


@pytest.mark.parametrize(
    ("rules", "gone"),
    [
        ({"last": 1}, [100, 200, 300, 400]),
        ({"last": 2}, [100, 200, 300]),
        ({"last": 9}, []),
        ({"last": 1, "every": 200}, [100, 300]),
        ({"last": 1, "every": 200, "protect": ["s3://b/run/step-100/"]}, [300]),
    ],
)
def test_last_every_and_protect(rules, gone):
    assert steps_of(_superfluous(run_of([100, 200, 300, 400, 500]), **rules)) == gone


def test_newer_is_what_was_committed_later():
    assert steps_of(_superfluous(run_of([300, 100, 200]), last=1)) == [300, 100]


def test_numbers_count_by_their_value_within_a_second():
    same = [CheckpointInfo(f"s3://b/{n}", f"step-{n}", 7) for n in (10, 9, 100)]
    assert steps_of(_superfluous(same, last=1)) == [9, 10]


@pytest.mark.parametrize(("name", "step"), [("run-3/step-1000", 1000), ("final", None), ("", None), ("7", 7)])
def test_the_step_is_the_last_number(name, step):
    assert CheckpointInfo("s3://b/x", name, 0).step == step


@pytest.mark.parametrize("rules", [{"last": 0}, {"last": 1, "every": 0}, {"last": 1, "protect": "s3://b/a"}])
def test_bad_rules(rules):
    with pytest.raises(ConfigurationError):
        _superfluous([], **rules)


@given(
    st.lists(st.integers(0, 50), unique=True),
    st.integers(1, 5),
    st.none() | st.integers(1, 10),
    st.sets(st.integers(0, 50)),
)
def test_nothing_that_a_rule_keeps_goes(steps, last, every, protected):
    checkpoints = run_of(steps)
    protect = {f"s3://b/run/step-{n}" for n in protected}
    gone = _superfluous(checkpoints, last=last, every=every, protect=protect)
    assert not set(gone) & set(checkpoints[-last:])
    assert not {one.uri for one in gone} & protect
    assert not any(every and one.step % every == 0 for one in gone)
    kept = [one for one in checkpoints[:-last] if one not in gone]
    assert all(one.uri in protect or (every and one.step % every == 0) for one in kept)

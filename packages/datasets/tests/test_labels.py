"""Labels of keys and their numbers."""

from __future__ import annotations

import pickle
import random
from operator import methodcaller

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core.errors import ConfigurationError
from s3torch.datasets import S3MapDataset
from s3torch.datasets.transforms import ClassIndex, PathLabel, RegexLabel, WithLabel


def test_labels_are_parts_of_keys():
    assert PathLabel()("train/cat/1.jpg") == "cat"
    assert PathLabel(0)("train/cat/1.jpg") == "train"
    assert RegexLabel("class_([0-9]+)")("a/class_12/x.jpg") == "12"
    assert RegexLabel("(?P<kind>cat|dog)", "kind")("a/dog.jpg") == "dog"
    assert RegexLabel("cat|dog", 0)("a/dog.jpg") == "dog"


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ConfigurationError, match=r"'1.jpg' has no component -2"):
        PathLabel()("1.jpg")
    with pytest.raises(ConfigurationError, match=r"does not match"):
        RegexLabel("(x)")("a")
    for pattern, group in [("(", 1), ("a", 1), ("(a)", "name")]:
        with pytest.raises(ConfigurationError):
            RegexLabel(pattern, group)
    with pytest.raises(ConfigurationError, match="unknown label 'bird'"):
        ClassIndex(("cat", "dog"))("bird")


@given(st.lists(st.text(min_size=1), max_size=8), st.randoms(use_true_random=False))
def test_numbers_do_not_depend_on_the_order_of_keys(labels, rng):
    keys = [f"x/{label}" for label in labels]
    shuffled = keys[:]
    random.Random(rng.random()).shuffle(shuffled)
    first, second = (ClassIndex.from_keys(some, PathLabel(-1)) for some in (keys, shuffled))
    assert first == second == pickle.loads(pickle.dumps(first))
    assert [first(label) for label in first.classes] == list(range(len(first)))
    assert first.class_to_idx == {label: number for number, label in enumerate(first.classes)}


def test_samples_with_labels(memory, fill):
    keys = ["t/dog/1", "t/cat/1", "t/cat/2"]
    fill(*keys)
    index = ClassIndex.from_keys(keys, PathLabel())

    def samples(**options):
        return list(
            S3MapDataset.from_prefix(
                "s3://data/t/",
                region="us-east-1",
                s3client_config=memory,
                transform=WithLabel(methodcaller("read"), **options),
            )
        )

    assert samples(index=index) == [(b"t/cat/1", 0), (b"t/cat/2", 0), (b"t/dog/1", 1)]
    assert samples()[2] == (b"t/dog/1", "dog")

"""Which of the listed objects belong to a dataset."""

from __future__ import annotations

import pickle
from operator import attrgetter

import pytest

from s3torch.core.errors import ConfigurationError
from s3torch.datasets import S3IterableDataset, S3MapDataset, Selection

KEYS = ["a/", "a/1.jpg", "a/2.png", "a/b/3.jpg", "a/b/c/4.jpg", "ab/5.jpg", "c/long-name.jpg"]


@pytest.fixture
def keys_of(memory, fill):
    fill(*KEYS)

    def list_keys(make, *places, **options):
        defaults = {"transform": attrgetter("key"), "s3client_config": memory}
        return list(make(*places, **(defaults | options)))

    return list_keys


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (None, KEYS),
        (Selection(suffix=".png"), ["a/2.png"]),
        (Selection(suffix=(".png", "5.jpg")), ["a/2.png", "ab/5.jpg"]),
        (Selection(min_size=8, max_size=11), ["a/b/3.jpg", "a/b/c/4.jpg", "ab/5.jpg"]),
        (Selection(max_size=7), ["a/", "a/1.jpg", "a/2.png"]),
        (Selection(where=lambda item: item.object_info.size == 15), ["c/long-name.jpg"]),
        (Selection(suffix=".jpg", max_size=7), ["a/1.jpg"]),
    ],
)
def test_what_is_selected_is_all_there_is(keys_of, cls, select, expected):
    assert keys_of(cls.from_prefix, "s3://data/", select=select) == expected


def test_markers_are_skipped_only_where_that_was_asked_for(memory, keys_of):
    from s3torch.core import S3Client

    with S3Client(s3client_config=memory) as client:
        client.put_object("data", "d/empty/").close()
        client.put_object("data", "d/empty").close()
    assert keys_of(S3MapDataset.from_prefix, "s3://data/d") == ["d/empty", "d/empty/"]
    markers = Selection(skip_markers=True)
    assert keys_of(S3MapDataset.from_prefix, "s3://data/d", select=markers) == ["d/empty"]
    # A key that ends in a slash and has bytes is a sample.
    assert "a/" in keys_of(S3MapDataset.from_prefix, "s3://data/a", select=markers)
    uris = ["s3://data/a/", "s3://data/a/1.jpg"]
    assert keys_of(S3MapDataset.from_objects, uris, select=markers) == ["a/1.jpg"]


def test_sizes_have_to_be_known(keys_of):
    with pytest.raises(ConfigurationError, match="no size is known of s3://data/a/1.jpg"):
        keys_of(S3MapDataset.from_objects, "s3://data/a/1.jpg", select=Selection(min_size=1))


@pytest.mark.parametrize("wrong", [{"suffix": 3}, {"suffix": (".a", None)}, {"where": "x"}])
def test_a_wrong_selection_is_refused(wrong):
    with pytest.raises(ConfigurationError):
        Selection(**wrong)
    with pytest.raises(ConfigurationError, match="Selection"):
        S3MapDataset.from_prefix("s3://data/", select=".jpg")


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/*.jpg", ["a/1.jpg"]),
        ("a/?.*", ["a/1.jpg", "a/2.png"]),
        ("a/**/*.jpg", ["a/1.jpg", "a/b/3.jpg", "a/b/c/4.jpg"]),
        ("**/*.jpg", KEYS[1:2] + KEYS[3:]),
        ("a*/[!1-4].jpg", ["ab/5.jpg"]),
        ("*/[35].jpg", ["ab/5.jpg"]),
        ("a/1.jpg", ["a/1.jpg"]),
        ("{c,ab}/*.jpg", ["ab/5.jpg", "c/long-name.jpg"]),
        ("none/*", []),
    ],
)
def test_a_pattern_selects_keys(keys_of, cls, pattern, expected):
    assert keys_of(cls.from_glob, f"s3://data/{pattern}") == expected


def test_several_prefixes_come_one_after_the_other(keys_of):
    for cls in (S3MapDataset, S3IterableDataset):
        found = keys_of(cls.from_prefix, ["s3://data/c/", "s3://data/a/b/"])
        assert found == ["c/long-name.jpg", "a/b/3.jpg", "a/b/c/4.jpg"]
    for wrong in ([], ["s3://data/a", "s3://data/ab"], ["s3://data/a/", "s3://data/a/"]):
        with pytest.raises(ConfigurationError):
            S3MapDataset.from_prefix(wrong)


def test_a_dataset_of_a_pattern_travels(keys_of, memory):
    dataset = S3MapDataset.from_glob(
        "s3://data/a/*", s3client_config=memory, select=Selection(suffix=".jpg"), transform=attrgetter("key")
    )
    assert list(pickle.loads(pickle.dumps(dataset))) == ["a/1.jpg"]


def test_workers_share_the_pages_of_a_pattern(keys_of):
    from torch.utils.data import DataLoader

    found = keys_of(
        lambda *places, **options: DataLoader(
            S3IterableDataset.from_glob(*places, enable_sharding=True, **options),
            batch_size=None,
            num_workers=2,
            multiprocessing_context="fork",
        ),
        "s3://data/{c,ab}/*.jpg",
    )
    assert sorted(found) == ["ab/5.jpg", "c/long-name.jpg"]

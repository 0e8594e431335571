"""Where the objects of a dataset come from."""

from __future__ import annotations

import pathlib
import pickle

import pytest

from s3torch.core import S3BucketKeyData
from s3torch.core.errors import ConfigurationError
from s3torch.datasets.sources import ObjectsSource, PrefixSource


def test_uris_are_taken_once_and_keep_their_order():
    source = ObjectsSource.from_uris(f"s3://b/{name}" for name in "cab")
    expected = (S3BucketKeyData("b", "c"), S3BucketKeyData("b", "a"), S3BucketKeyData("b", "b"))
    assert source.objects == expected
    assert pickle.loads(pickle.dumps(source)).objects == expected


@pytest.mark.parametrize("one", ["s3://b/k", pathlib.PurePosixPath("s3://b/k")])
def test_one_uri_is_one_object(one):
    assert ObjectsSource.from_uris(one).objects == (S3BucketKeyData("b", "k"),)


@pytest.mark.parametrize("wrong", [None, 7, "", "b/k", "S3://b/k", "s3://", [None], ["s3://b/k", "b/k"]])
def test_wrong_uris_are_reported_at_once(wrong):
    with pytest.raises(ConfigurationError):
        ObjectsSource.from_uris(wrong)


@pytest.mark.parametrize("wrong", [None, "", "b/k", "http://b/k", "s3:///k"])
def test_a_wrong_prefix_is_reported_at_once(wrong):
    with pytest.raises(ConfigurationError):
        PrefixSource.from_uri(wrong)


def test_a_prefix_may_be_a_whole_bucket():
    assert PrefixSource.from_uri("s3://b").uris == (("b", ""),)

"""Where the objects of a dataset come from."""

from __future__ import annotations

import pathlib
import pickle
from dataclasses import replace
from itertools import count

import pytest

from s3torch.core import S3BucketKeyData, S3Client, S3Uri
from s3torch.core.errors import ConfigurationError
from s3torch.datasets.sources._sources import GlobSource, ObjectsSource, PrefixSource


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


def test_a_directory_bucket_has_one_order_for_all_ranks(memory, store, monkeypatch):
    bucket = "base--use1-az4--x-s3"
    keys = ["t/a/1", "t/b", "t/c", "t/ü"]
    store.create_bucket(bucket)
    for key in keys:
        store.put(bucket, key, b"x")
    list_in_order, times = store.list_objects, count()

    def list_in_any_order(*args, **options):
        page = list_in_order(*args, **options)
        turn = next(times) % 3
        return replace(page, object_info=page.object_info[turn:] + page.object_info[:turn])

    monkeypatch.setattr(store, "list_objects", list_in_any_order)
    source = PrefixSource.from_uri(f"s3://{bucket}/t/")
    with S3Client(s3client_config=memory) as client:
        for _ in range(3):
            pages = [item.key for page in client.list_objects(bucket, "t/") for item in page.object_info]
            assert [item.key for item in source(client)] == keys
            assert [item.key for item in source.whole(client)] == keys
            assert [item.key for item in GlobSource(S3Uri(bucket, "t/*"))(client)] == keys[1:]
            found, end = source.page(client, None)
            assert ([item.key for item in found], end) == (keys, None)
    assert pages != keys

"""Listings in progress."""

from __future__ import annotations

import pickle

import pytest

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.errors import ConfigurationError, NotFoundError, ServerError
from s3torch.testing.scripted import ScriptedAnswer

KEYS = ["a", "b/1", "b/2", "b/c/3", "d", "ü"]


@pytest.fixture(autouse=True)
def stored(store):
    for key in KEYS:
        store.put("bucket", key, key.encode())


def keys(listing):
    return [info.key for page in listing for info in page.object_info]


@pytest.mark.parametrize("max_keys", [1, 2, 4, 5, 1000])
def test_all_keys_in_order(client, max_keys):
    pages = list(client.list_objects("bucket", max_keys=max_keys))
    assert keys(pages) == KEYS
    assert all(0 < len(page.object_info) <= max_keys for page in pages)
    assert len(pages) == -(-len(KEYS) // max_keys)


def test_prefix_delimiter_and_start(client):
    assert keys(client.list_objects("bucket", "b/")) == ["b/1", "b/2", "b/c/3"]
    (page,) = client.list_objects("bucket", "", "/")
    assert ([info.key for info in page.object_info], page.common_prefixes) == (["a", "d", "ü"], ["b/"])
    (page,) = client.list_objects("bucket", "b/", "/")
    assert page.common_prefixes == ["b/c/"]
    assert keys(client.list_objects("bucket", start_after="b/2", max_keys=1)) == ["b/c/3", "d", "ü"]
    assert keys(client.list_objects("bucket", "nothing")) == []


def test_what_is_in_an_entry(client):
    info = next(client.list_objects("bucket")).object_info[1]
    assert (info.key, info.size, info.storage_class, info.restore_status) == ("b/1", 3, "STANDARD", None)
    assert info.etag.startswith('"')
    assert info.etag.endswith('"')
    assert isinstance(info.last_modified, int)


def test_a_listing_in_progress_can_be_pickled(client):
    listing = client.list_objects("bucket", max_keys=2)
    assert keys([next(listing)]) == KEYS[:2]
    again = pickle.loads(pickle.dumps(listing))
    assert (again.bucket, again.prefix, again.max_keys, again.complete) == ("bucket", "", 2, False)
    assert again.continuation_token == listing.continuation_token
    assert keys(again) == keys(listing) == KEYS[2:]
    assert again.complete
    assert keys(pickle.loads(pickle.dumps(again))) == []


def test_every_call_lists_anew(client, store):
    assert keys(client.list_objects("bucket")) == KEYS
    store.delete("bucket", "a")
    assert keys(client.list_objects("bucket")) == KEYS[1:]


def test_after_an_error_the_same_page_is_asked_for_again(client, store):
    listing = client.list_objects("bucket", max_keys=2)
    next(listing)
    store.delete_bucket("bucket")
    for _ in range(2):
        with pytest.raises(NotFoundError):
            next(listing)
    store.create_bucket("bucket")
    for key in KEYS:
        store.put("bucket", key, b"")
    assert keys(listing) == KEYS[2:]


@pytest.mark.parametrize("max_keys", [0, -1])
def test_a_page_has_a_size(client, max_keys):
    with pytest.raises(ConfigurationError, match="max_keys"):
        client.list_objects("bucket", max_keys=max_keys)


def test_a_bucket_is_needed(client):
    with pytest.raises(ConfigurationError, match="Bucket should be specified"):
        client.list_objects("")


def test_on_a_real_server(wire):
    for key in ("x/1", "x/2 +%ü", "y"):
        wire.put(key)
    client = wire.client()
    listing = client.list_objects(wire.bucket, max_keys=1)
    first = next(listing)
    rest = pickle.loads(pickle.dumps(listing))
    assert sorted(keys([first, *rest])) == ["x/1", "x/2 +%ü", "y"]
    (page,) = client.list_objects(wire.bucket, "", "/")
    assert page.common_prefixes == ["x/"]
    assert page.object_info[0].last_modified > 1_700_000_000


# Listings of stores that go astray.


@pytest.fixture(params=["crt", "http"])
def scripted(request, scripted_server, monkeypatch):
    """A client of a server that answers as a test says."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    config = S3ClientConfig(transport=request.param, max_attempts=1)
    with S3Client("us-east-1", endpoint=scripted_server.endpoint, s3client_config=config) as client:
        yield client


WAYS = {
    "list_objects": ("ListBucketResult", "NextContinuationToken", lambda c: c.list_objects("bucket")),
    "walk": ("ListBucketResult", "NextContinuationToken", lambda c: c.walk("bucket", requests=1)),
    "delete_prefix": ("ListBucketResult", "NextContinuationToken", lambda c: c.delete_prefix("bucket", "p")),
    "versions": ("ListVersionsResult", "NextKeyMarker", lambda c: c.list_object_versions("bucket")),
    "uploads": ("ListMultipartUploadsResult", "NextKeyMarker", lambda c: c.list_multipart_uploads("bucket")),
}


@pytest.mark.parametrize(("root", "element", "ask"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("markers", [[None], ["a", "a"], ["a", "b"], ["a", "b", "c", "d"]], ids=str)
def test_a_listing_that_does_not_end_is_an_error(scripted, scripted_server, root, element, ask, markers):
    def page(marker):
        told = "" if marker is None else f"<{element}>{marker}</{element}>"
        return ScriptedAnswer(
            body=f"<{root}><IsTruncated>true</IsTruncated>{told}<Unknown/></{root}>".encode()
        )

    scripted_server.will(*[page(marker) for marker in markers] * 9)
    with pytest.raises(ServerError, match="listing") as caught:
        list(ask(scripted))
    assert caught.value.code is None
    assert len(scripted_server.requests) <= 4 * len(markers)

from __future__ import annotations

import hashlib
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core._config import S3ClientConfig
from s3torch.core.errors import (
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    S3Error,
    TruncatedError,
)
from s3torch.core.models import CompletedPart, MultipartUpload, PutOptions
from s3torch.core.ranges import MIN_PART_SIZE
from s3torch.core.seam import TransportContext
from s3torch.core.transports.memory import MemoryStore, MemoryTransport, s3torch_create_transport
from s3torch.testing.transport_tests import TransportCalls


@pytest.fixture
def store():
    store = MemoryStore()
    store.create_bucket("b")
    return store


def keys_of(store, **how):
    return [info.key for info in store.list_objects("b", **how).object_info]


def test_clients_of_one_endpoint_share_a_store():
    endpoint = "http://test-of-sharing"
    MemoryStore.at(endpoint).create_bucket("b")
    context = TransportContext(S3ClientConfig(endpoint=endpoint + "/"), None, "agent")
    one, other = (TransportCalls(s3torch_create_transport(context)) for _ in range(2))
    try:
        one.put("b", "key", memoryview(b"data")).result(60)
        one.close()
        assert other.get("b", "key").result(60).data == b"data"
        assert "b" not in MemoryStore.at("http://other").buckets()
    finally:
        other.close()
        MemoryStore.forget(endpoint)
    assert MemoryStore.at(endpoint).buckets() == []
    MemoryStore.forget(endpoint)


def test_default_store_is_one():
    assert MemoryStore.at() is MemoryStore.at(None)


def test_objects_do_not_change_with_the_buffer(store):
    transport = TransportCalls(MemoryTransport(store))
    body = bytearray(b"before")
    transport.put("b", "key", memoryview(body)).result(60)
    body[:] = b"after!"
    assert store.get("b", "key").data == b"before"
    transport.close()


def test_buckets(store):
    store.create_bucket("a")
    store.put("b", "key", b"kept")
    store.create_bucket("b")
    assert store.buckets() == ["a", "b"]
    assert store.get("b", "key").data == b"kept"
    store.delete_bucket("b")
    store.delete_bucket("b")
    with pytest.raises(NotFoundError) as caught:
        store.put("b", "key", b"")
    assert caught.value.code == "NoSuchBucket"
    with pytest.raises(ConfigurationError):
        store.create_bucket("")


@pytest.mark.parametrize(
    ("options", "expected", "code"),
    [
        (PutOptions(if_none_match="*"), PreconditionFailedError, "PreconditionFailed"),
        (PutOptions(if_match='"other"'), PreconditionFailedError, "PreconditionFailed"),
    ],
)
def test_conditions(store, options, expected, code):
    store.put("b", "key", b"old")
    with pytest.raises(expected) as caught:
        store.put("b", "key", b"new", options=options)
    assert caught.value.code == code
    assert store.get("b", "key").data == b"old"


def test_if_match_without_an_object(store):
    with pytest.raises(NotFoundError) as caught:
        store.put("b", "key", b"new", options=PutOptions(if_match='"other"'))
    assert caught.value.code == "NoSuchKey"


def test_keys_have_limits(store):
    store.put("b", "ü" * 512, b"")
    with pytest.raises(S3Error) as caught:
        store.put("b", "ü" * 512 + "x", b"")
    assert (caught.value.code, caught.value.status) == ("KeyTooLongError", 400)
    with pytest.raises(ConfigurationError):
        store.put("b", "", b"")


def test_versions_are_unknown(store):
    transport = TransportCalls(MemoryTransport(store))
    store.put("b", "key", b"data")
    assert transport.get("b", "key", version_id="null").result(60).data == b"data"
    with pytest.raises(NotFoundError) as caught:
        transport.get("b", "key", version_id="v1").result(60)
    assert caught.value.code == "NoSuchVersion"
    transport.close()


def test_etag_of_multipart_upload(store):
    upload = store.create_upload("b", "key", options=PutOptions())
    parts = [store.put_part(upload, number, bytes(MIN_PART_SIZE)) for number in (1, 2)]
    assert store.uploads("b") == [upload]
    # As S3 computes it: the MD5 of the MD5 sums of the parts, and how many there are.
    digest = hashlib.md5(hashlib.md5(bytes(MIN_PART_SIZE)).digest() * 2).hexdigest()
    assert store.complete_upload(upload, parts).etag == f'"{digest}-2"'
    assert store.uploads("b") == []


@pytest.mark.parametrize(
    ("sizes", "order", "code"),
    [
        ([1, 1], [1, 2], "EntityTooSmall"),
        ([1, 1], [2, 1], "InvalidPartOrder"),
        ([1], [1, 1], "InvalidPartOrder"),
        ([1], [2], "InvalidPart"),
        ([1], [], "MalformedXML"),
    ],
)
def test_wrong_completion(store, sizes, order, code):
    upload = store.create_upload("b", "key", options=PutOptions())
    for number, size in enumerate(sizes, 1):
        etag = store.put_part(upload, number, bytes(size)).etag
    with pytest.raises(S3Error) as caught:
        store.complete_upload(upload, [CompletedPart(number, etag) for number in order])
    assert (caught.value.code, caught.value.status) == (code, 400)
    assert store.uploads("b") == [upload]


def test_part_that_was_replaced(store):
    upload = store.create_upload("b", "key", options=PutOptions())
    old = store.put_part(upload, 1, b"old")
    new = store.put_part(upload, 1, b"new")
    with pytest.raises(S3Error) as caught:
        store.complete_upload(upload, [old])
    assert caught.value.code == "InvalidPart"
    store.complete_upload(upload, [new])
    assert store.get("b", "key").data == b"new"


def test_upload_of_another_key(store):
    upload = store.create_upload("b", "key", options=PutOptions())
    with pytest.raises(NotFoundError) as caught:
        store.put_part(MultipartUpload("b", "other", upload.upload_id), 1, b"")
    assert caught.value.code == "NoSuchUpload"


def test_buffer_that_is_too_short(store):
    store.put("b", "key", b"12345")
    transport = TransportCalls(MemoryTransport(store))
    with pytest.raises(TruncatedError):
        transport.get("b", "key", into=memoryview(bytearray(4))).result(60)
    transport.close()


names = st.text(st.sampled_from("ab/é\U0001f525\uffee"), min_size=1, max_size=6)


@given(
    keys=st.sets(names, max_size=30),
    prefix=st.one_of(st.just(""), names),
    delimiter=st.sampled_from(["", "/", "a"]),
    max_keys=st.integers(1, 7),
)
def test_pages_hold_what_a_plain_search_finds(keys, prefix, delimiter, max_keys):
    store = MemoryStore()
    store.create_bucket("b")
    for key in keys:
        store.put("b", key, b"")
    expected_keys, expected_prefixes = set(), set()
    for key in keys:
        head, found, _ = key.removeprefix(prefix).partition(delimiter or "\0")
        if key.startswith(prefix) and found:
            expected_prefixes.add(prefix + head + found)
        elif key.startswith(prefix):
            expected_keys.add(key)
    found_keys, found_prefixes, after = [], [], ""
    while True:
        page = store.list_objects("b", prefix=prefix, delimiter=delimiter, max_keys=max_keys, after=after)
        assert len(page.object_info) + len(page.common_prefixes) <= max_keys
        found_keys += [info.key for info in page.object_info]
        found_prefixes += page.common_prefixes
        if page.continuation_token is None:
            break
        after = page.continuation_token
    assert found_keys == sorted(expected_keys, key=str.encode)
    assert found_prefixes == sorted(expected_prefixes, key=str.encode)


def test_listing_goes_on_behind_a_key_that_was_deleted(store):
    for key in "abcd":
        store.put("b", key, b"")
    token = store.list_objects("b", max_keys=2).continuation_token
    store.delete("b", "b")
    assert keys_of(store, after=token) == ["c", "d"]


def test_a_forked_child_has_a_copy(store):
    stop = threading.Event()

    def busy():
        number = 0
        while not stop.is_set():
            store.put("b", f"busy{number % 10}", b"x")
            number += 1

    thread = threading.Thread(target=busy)
    store.put("b", "key", b"parent")
    thread.start()
    try:
        for _ in range(5):
            assert fork_and_use(store) == 0
    finally:
        stop.set()
        thread.join()
    assert store.get("b", "key").data == b"parent"


def fork_and_use(store):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            known = store.get("b", "key").data
            store.put("b", "key", b"child")
            status = 0 if known == b"parent" and keys_of(store, prefix="key") == ["key"] else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

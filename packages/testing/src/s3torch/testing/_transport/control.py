"""Conformance of transports: facts, listings, deletions, copies, versions and keys."""

# ruff: noqa: S101 - In tests, assert is how they tell.

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from s3torch.core.errors import ConfigurationError, NotFoundError, PreconditionFailedError
from s3torch.core.models import PutOptions
from s3torch.testing._transport.case import (
    NOWHERE,
    PATIENCE,
    TransportCase,
    begin_upload,
    complete,
    get,
    put,
    refused,
    send_part,
)

if TYPE_CHECKING:
    from s3torch.core.models import ListObjectResult, ListVersionsResult
    from s3torch.testing._transport.case import TransportCalls

_DESCRIBED = PutOptions(content_type="text/x-test", metadata={"a": "b"}, cache_control="max-age=5")


class HeadTests(TransportCase):
    """The facts of an object."""

    def test_head(self, transport: TransportCalls, bucket: str, key: str) -> None:
        options = PutOptions(content_type="text/x-test", metadata={"a": "b"})
        stored = put(transport, bucket, key, b"12345", options=options)
        head = transport.head_object(bucket, key)
        assert head == get(transport, bucket, key).head
        assert (head.etag, head.size) == (stored.etag, 5)

    def test_head_of_missing_object(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """A missing object is an error, of which a HEAD may tell no code."""
        for where in (bucket, NOWHERE):
            with pytest.raises(NotFoundError) as caught:
                transport.head_object(where, key)
            error = caught.value
            assert (error.operation, error.bucket, error.key) == ("HeadObject", where, key)
            assert error.status == 404
            assert error.code in {None, "NoSuchKey", "NoSuchBucket"}


class ListTests(TransportCase):
    """Listings of objects."""

    def test_list_entries(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """An entry tells what a reader needs to do without a HEAD."""
        stored = put(transport, bucket, f"{prefix}one", b"12345")
        put(transport, bucket, f"{prefix}two", b"")
        page = transport.list_objects(bucket, prefix=prefix)
        assert [(info.key, info.size) for info in page.object_info] == [
            (f"{prefix}one", 5),
            (f"{prefix}two", 0),
        ]
        first = page.object_info[0]
        assert first.etag == stored.etag
        assert abs(first.last_modified - time.time()) < PATIENCE
        assert isinstance(first.last_modified, int)
        assert first.storage_class == "STANDARD"
        assert first.restore_status is None
        assert (page.common_prefixes, page.continuation_token) == ([], None)

    def test_list_pages(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        keys = [f"{prefix}{number:02}" for number in range(25)]
        _put_all(transport, bucket, keys)
        pages = _pages(transport, bucket, prefix=prefix, max_keys=10)
        assert [len(page.object_info) for page in pages] == [10, 10, 5]
        assert [info.key for page in pages for info in page.object_info] == keys

    def test_list_page_that_is_just_full(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """There is no empty page behind the last key."""
        _put_all(transport, bucket, [f"{prefix}{number}" for number in range(4)])
        pages = _pages(transport, bucket, prefix=prefix, max_keys=2)
        assert [len(page.object_info) for page in pages] == [2, 2]

    def test_list_delimiter(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """Keys below a common prefix are one entry, also over pages."""
        keys = ["a", "b/1", "b/2", "c/1/x", "c/2", "d"]
        _put_all(transport, bucket, [prefix + key for key in keys])
        for max_keys in (1, 2, 3, 1000):
            pages = _pages(transport, bucket, prefix=prefix, delimiter="/", max_keys=max_keys)
            found = [info.key for page in pages for info in page.object_info]
            common = [name for page in pages for name in page.common_prefixes]
            assert found == [prefix + "a", prefix + "d"]
            assert common == [prefix + "b/", prefix + "c/"]
        page = transport.list_objects(bucket, prefix=f"{prefix}c/", delimiter="/")
        assert [info.key for info in page.object_info] == [f"{prefix}c/2"]
        assert page.common_prefixes == [f"{prefix}c/1/"]

    def test_list_start_after(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        _put_all(transport, bucket, [prefix + name for name in "abcd"])
        for name, expected in (("b", "cd"), ("bb", "cd"), ("d", "")):
            page = transport.list_objects(bucket, prefix=prefix, start_after=prefix + name)
            assert [info.key for info in page.object_info] == [prefix + key for key in expected]

    def test_list_order(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        if not self.lists_in_key_order:
            pytest.skip("the store has an order of its own")
        names = ["a", "a-1", "a/b", "a/c", "a0", "b", "B", "é", "z", "~", "\uffee", "\U0001f525"]
        _put_all(transport, bucket, [prefix + name for name in names])
        ordered = sorted(names, key=str.encode)
        found = transport.list_objects(bucket, prefix=prefix).object_info
        assert [info.key for info in found] == [prefix + name for name in ordered]
        behind = transport.list_objects(bucket, prefix=prefix, start_after=f"{prefix}a-1").object_info
        assert [info.key for info in behind] == [prefix + name for name in ordered if name.encode() > b"a-1"]

    def test_list_nothing(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        page = transport.list_objects(bucket, prefix=prefix)
        assert (page.object_info, page.common_prefixes) == ([], [])
        assert page.continuation_token is None

    def test_list_missing_bucket(self, transport: TransportCalls) -> None:
        with refused("NoSuchBucket", "ListObjectsV2", NOWHERE):
            transport.list_objects(NOWHERE)


class DeleteTests(TransportCase):
    """Deletions."""

    def test_delete(self, transport: TransportCalls, bucket: str, key: str) -> None:
        put(transport, bucket, key)
        for _ in range(2):
            transport.delete_object(bucket, key)
            with pytest.raises(NotFoundError):
                get(transport, bucket, key)

    def test_delete_in_missing_bucket(self, transport: TransportCalls, key: str) -> None:
        with refused("NoSuchBucket", "DeleteObject", NOWHERE, key):
            transport.delete_object(NOWHERE, key)

    def test_delete_many(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """Many keys go at once; missing ones are no failure, others stay."""
        keys = [f"{prefix}{number}" for number in range(30)]
        _put_all(transport, bucket, [*keys, f"{prefix}kept"])
        assert transport.delete_objects(bucket, [*keys, f"{prefix}missing"]) == []
        left = transport.list_objects(bucket, prefix=prefix).object_info
        assert [info.key for info in left] == [f"{prefix}kept"]

    def test_delete_none(self, transport: TransportCalls, bucket: str) -> None:
        assert transport.delete_objects(bucket, []) == []

    def test_delete_too_many(self, transport: TransportCalls, bucket: str) -> None:
        """One request has a limit, and whoever asks has to know it."""
        with pytest.raises(ConfigurationError):
            transport.delete_objects(bucket, [f"{number}" for number in range(1001)])


class CopyTests(TransportCase):
    """Copies within the store."""

    def test_copy(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """The copy has the bytes and what describes them, and what was there is replaced."""
        put(transport, bucket, f"{prefix}from", b"new", options=_DESCRIBED)
        put(transport, bucket, f"{prefix}to", b"old")
        transport.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to")
        result = get(transport, bucket, f"{prefix}to")
        assert result.data == b"new"
        assert (result.head.content_type, result.head.metadata) == ("text/x-test", {"a": "b"})
        assert result.head.cache_control == "max-age=5"

    def test_copy_of_missing_object(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        with pytest.raises(NotFoundError) as caught:
            transport.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to")
        assert (caught.value.operation, caught.value.code) == ("CopyObject", "NoSuchKey")

    def test_copy_with_a_place_of_its_own(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """The storage class is that of the options; what describes the content still goes along."""
        put(transport, bucket, f"{prefix}from", options=_DESCRIBED)
        options = PutOptions(storage_class="STANDARD_IA")
        transport.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to", options=options)
        head = transport.head_object(bucket, f"{prefix}to")
        assert head.storage_class == "STANDARD_IA"
        assert (head.content_type, head.metadata) == ("text/x-test", {"a": "b"})

    def test_copy_with_other_metadata(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """Options that describe the content replace all that does."""
        put(transport, bucket, f"{prefix}from", options=_DESCRIBED)
        options = PutOptions(content_type="text/x-other", metadata={"c": "d"})
        transport.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to", options=options)
        head = transport.head_object(bucket, f"{prefix}to")
        assert (head.content_type, head.metadata) == ("text/x-other", {"c": "d"})
        assert head.cache_control is None

    @pytest.mark.parametrize("tags", [{}, {"new": "2"}], ids=["the same tags", "other tags"])
    def test_copy_with_tags(
        self, transport: TransportCalls, bucket: str, prefix: str, tags: dict[str, str]
    ) -> None:
        """Tags go along, unless the options have some."""
        put(transport, bucket, f"{prefix}from", options=PutOptions(tags={"old": "1"}))
        transport.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to", options=PutOptions(tags=tags))
        assert transport.object_tags(bucket, f"{prefix}to") == tags or {"old": "1"}

    def test_copy_of_a_version(self, transport: TransportCalls, versioned_bucket: str, prefix: str) -> None:
        first = put(transport, versioned_bucket, f"{prefix}from", b"first")
        put(transport, versioned_bucket, f"{prefix}from", b"second")
        transport.copy_object(
            versioned_bucket, f"{prefix}from", versioned_bucket, f"{prefix}to", version_id=first.version_id
        )
        assert get(transport, versioned_bucket, f"{prefix}to").data == b"first"

    def test_copy_if_match(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        if not self.checks_copy_conditions:
            pytest.skip("the store does not check the conditions of copies")
        known = put(transport, bucket, f"{prefix}from", b"first").etag
        transport.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to", if_match=known)
        put(transport, bucket, f"{prefix}from", b"second")
        with pytest.raises(PreconditionFailedError):
            transport.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to", if_match=known)
        assert get(transport, bucket, f"{prefix}to").data == b"first"


class VersionTests(TransportCase):
    """Versions are listed and deleted."""

    def test_list_versions(self, transport: TransportCalls, versioned_bucket: str, prefix: str) -> None:
        """All versions and markers are told, the latest of each key first."""
        first = put(transport, versioned_bucket, f"{prefix}a", b"1")
        second = put(transport, versioned_bucket, f"{prefix}a", b"22")
        transport.delete_object(versioned_bucket, f"{prefix}a")
        put(transport, versioned_bucket, f"{prefix}b", b"333")
        told = transport.list_object_versions(versioned_bucket, prefix=prefix)
        assert [(one.key, one.size, one.is_latest, one.is_delete_marker) for one in told.versions[:1]] == [
            (f"{prefix}a", 0, True, True)
        ]
        assert {one.version_id for one in told.versions[1:3]} == {first.version_id, second.version_id}
        last = told.versions[3]
        assert (last.key, last.size, last.is_latest, last.is_delete_marker) == (f"{prefix}b", 3, True, False)
        assert abs(last.last_modified - time.time()) < PATIENCE
        assert (told.common_prefixes, told.next_marker) == ([], None)
        with pytest.raises(NotFoundError):
            get(transport, versioned_bucket, f"{prefix}a")
        assert get(transport, versioned_bucket, f"{prefix}a", version_id=first.version_id).data == b"1"

    def test_list_version_pages(self, transport: TransportCalls, versioned_bucket: str, prefix: str) -> None:
        stored = {
            (f"{prefix}{name}", put(transport, versioned_bucket, f"{prefix}{name}").version_id)
            for name in "abab"
        }
        pages: list[ListVersionsResult] = []
        while not pages or pages[-1].next_marker is not None:
            marker = pages[-1].next_marker if pages else None
            pages.append(
                transport.list_object_versions(versioned_bucket, prefix=prefix, max_keys=1, marker=marker)
            )
        told = [(one.key, one.version_id) for page in pages for one in page.versions]
        assert len(told) == 4
        assert set(told) == stored

    def test_list_null_versions(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """Objects that are not versioned are of version ``null``."""
        put(transport, bucket, f"{prefix}a/b")
        put(transport, bucket, f"{prefix}c")
        told = transport.list_object_versions(bucket, prefix=prefix, delimiter="/")
        assert [(one.key, one.version_id, one.is_latest) for one in told.versions] == [
            (f"{prefix}c", "null", True)
        ]
        assert told.common_prefixes == [f"{prefix}a/"]

    def test_list_versions_in_missing_bucket(self, transport: TransportCalls) -> None:
        with refused("NoSuchBucket", "ListObjectVersions", NOWHERE):
            transport.list_object_versions(NOWHERE)

    def test_delete_one_version(self, transport: TransportCalls, versioned_bucket: str, key: str) -> None:
        """A version that is deleted is gone for good, and the one before is the latest again."""
        first = put(transport, versioned_bucket, key, b"first")
        second = put(transport, versioned_bucket, key, b"second")
        for _ in range(2):
            transport.delete_object(versioned_bucket, key, version_id=second.version_id)
        result = get(transport, versioned_bucket, key)
        assert (result.data, result.head.version_id) == (b"first", first.version_id)
        with pytest.raises(NotFoundError):
            get(transport, versioned_bucket, key, version_id=second.version_id)

    def test_delete_a_marker(self, transport: TransportCalls, versioned_bucket: str, key: str) -> None:
        """Without its delete marker an object is back."""
        put(transport, versioned_bucket, key)
        transport.delete_object(versioned_bucket, key)
        (marker, _) = transport.list_object_versions(versioned_bucket, prefix=key).versions
        assert marker.is_delete_marker
        assert transport.delete_versions(versioned_bucket, [(key, marker.version_id)]) == []
        assert get(transport, versioned_bucket, key).data == b"data"

    def test_delete_versions(self, transport: TransportCalls, versioned_bucket: str, prefix: str) -> None:
        for name in "aab":
            put(transport, versioned_bucket, f"{prefix}{name}")
        told = transport.list_object_versions(versioned_bucket, prefix=prefix).versions
        targets = [(one.key, one.version_id) for one in told]
        assert transport.delete_versions(versioned_bucket, targets) == []
        assert transport.list_object_versions(versioned_bucket, prefix=prefix).versions == []
        assert transport.delete_versions(versioned_bucket, []) == []

    def test_delete_too_many_versions(self, transport: TransportCalls, bucket: str) -> None:
        """One request has a limit, and whoever asks has to know it."""
        with pytest.raises(ConfigurationError):
            transport.delete_versions(bucket, [("key", f"{number}") for number in range(1001)])


def _put_all(transport: TransportCalls, bucket: str, keys: list[str]) -> None:
    transfers = [transport.put(bucket, key, memoryview(b"x")) for key in keys]
    for transfer in transfers:
        transfer.result(PATIENCE)


def _pages(
    transport: TransportCalls, bucket: str, *, prefix: str, max_keys: int, delimiter: str = ""
) -> list[ListObjectResult]:
    pages: list[ListObjectResult] = []
    token: str | None = None
    while not pages or token:
        page = transport.list_objects(
            bucket, prefix=prefix, delimiter=delimiter, max_keys=max_keys, continuation_token=token
        )
        assert len(page.object_info) + len(page.common_prefixes) <= max_keys
        pages.append(page)
        token = page.continuation_token
    return pages


AWKWARD_KEYS = (
    "a b",
    " leading and trailing ",
    "plus+plus",
    "percent%percent%20%2F%25",
    "question?mark=1&and#hash",
    "double//slash",
    "/leading/slash",
    "trailing/slash/",
    "dot/./dot",
    "dots/../dots",
    "quote'quote\"quote`",
    "<xml>&amp;</xml>",
    "semi;colon:comma,at@equal=dollar$",
    "star*(bracket)[square]{curly}|pipe^caret~tilde!",
    "back\\slash",
    "tab\tkey",
    "line\nbreak",
    "umlaut-ü-combined-u\u0308",
    "日本語/ключ/🔥",
    "n" * 1024,
    "/".join(["ü" * 63] * 8) + "/" + "x" * 8,
)
"""Keys that S3 takes and that are easily spoilt on the way; the last two have 1,024 bytes."""


class KeyTests(TransportCase):
    """Every key that S3 takes arrives as it is."""

    @pytest.mark.parametrize("awkward", AWKWARD_KEYS, ids=lambda key: repr(key[:24]))
    def test_key_through_everything(self, transport: TransportCalls, bucket: str, awkward: str) -> None:
        """The key is the same in every operation."""
        if awkward in self.unsupported_keys:
            pytest.skip("the store does not keep this key as it is")
        data = awkward.encode()
        put(transport, bucket, awkward, data)
        assert get(transport, bucket, awkward).data == data
        assert transport.head_object(bucket, awkward).size == len(data)
        listed = transport.list_objects(bucket, prefix=awkward).object_info
        assert [info.key for info in listed] == [awkward]
        transport.copy_object(bucket, awkward, bucket, "copied")
        assert get(transport, bucket, "copied").data == data
        transport.delete_object(bucket, awkward)
        with pytest.raises(NotFoundError):
            get(transport, bucket, awkward)
        upload = begin_upload(transport, bucket, awkward)
        complete(transport, upload, [send_part(transport, upload, data)], data)
        assert get(transport, bucket, awkward).data == data
        assert transport.delete_objects(bucket, [awkward, "copied"]) == []
        assert transport.list_objects(bucket, prefix=awkward).object_info == []

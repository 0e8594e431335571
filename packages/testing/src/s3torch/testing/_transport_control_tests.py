"""Conformance of control planes, and of keys through everything."""

# ruff: noqa: S101 - In tests, assert is how they tell.

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from s3torch.core.errors import ConfigurationError, NotFoundError
from s3torch.core.models import PutOptions
from s3torch.testing._calls import PATIENCE
from s3torch.testing._transport_case import (
    TransportCase,
    begin_upload,
    checksum_of,
    get,
    put,
    refused,
)

if TYPE_CHECKING:
    from s3torch.core.models import ListObjectResult
    from s3torch.testing._calls import TransportCalls

_NOWHERE = "s3torch-no-such-bucket"

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
        part = transport.upload_part(upload, 1, memoryview(data), checksum=checksum_of(data))
        transport.complete_multipart_upload(
            upload, [part.result(PATIENCE)], options=PutOptions(), checksum=checksum_of(data)
        ).result(PATIENCE)
        assert get(transport, bucket, awkward).data == data
        assert transport.delete_objects(bucket, [awkward, "copied"]) == []
        assert transport.list_objects(bucket, prefix=awkward).object_info == []


class HeadTests(TransportCase):
    """What ``ControlPlane.head_object`` owes."""

    def test_head(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """The facts are those that a GET tells."""
        options = PutOptions(content_type="text/x-test", metadata={"a": "b"})
        stored = put(transport, bucket, key, b"12345", options=options)
        head = transport.head_object(bucket, key)
        assert head == get(transport, bucket, key).head
        assert (head.etag, head.size) == (stored.etag, 5)

    def test_head_of_missing_object(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """A missing object is an error, of which a HEAD may tell no code."""
        for where in (bucket, _NOWHERE):
            with pytest.raises(NotFoundError) as caught:
                transport.head_object(where, key)
            error = caught.value
            assert (error.operation, error.bucket, error.key) == ("HeadObject", where, key)
            assert error.status == 404
            assert error.code in {None, "NoSuchKey", "NoSuchBucket"}


class ListTests(TransportCase):
    """What ``ControlPlane.list_objects`` owes."""

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
        """All keys come, each once, no more than asked for at a time."""
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
        """The listing begins behind this key, whether it is there or not."""
        _put_all(transport, bucket, [prefix + name for name in "abcd"])
        for name, expected in (("b", "cd"), ("bb", "cd"), ("d", "")):
            page = transport.list_objects(bucket, prefix=prefix, start_after=prefix + name)
            assert [info.key for info in page.object_info] == [prefix + key for key in expected]

    def test_list_order(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """Keys come in the order of their UTF-8 bytes."""
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
        """No keys are no error."""
        page = transport.list_objects(bucket, prefix=prefix)
        assert (page.object_info, page.common_prefixes) == ([], [])
        assert page.continuation_token is None

    def test_list_missing_bucket(self, transport: TransportCalls) -> None:
        """A missing bucket is not an empty one."""
        with refused(
            NotFoundError,
            operation="ListObjectsV2",
            bucket=_NOWHERE,
            code="NoSuchBucket",
            status=404,
        ):
            transport.list_objects(_NOWHERE)


class DeleteTests(TransportCase):
    """What deleting owes."""

    def test_delete(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """Deleting is idempotent."""
        put(transport, bucket, key)
        for _ in range(2):
            transport.delete_object(bucket, key)
            with pytest.raises(NotFoundError):
                get(transport, bucket, key)

    def test_delete_in_missing_bucket(self, transport: TransportCalls, key: str) -> None:
        """A missing bucket is an error."""
        with refused(
            NotFoundError,
            operation="DeleteObject",
            bucket=_NOWHERE,
            key=key,
            code="NoSuchBucket",
            status=404,
        ):
            transport.delete_object(_NOWHERE, key)

    def test_delete_many(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """Many keys go at once; missing ones are no failure, others stay."""
        keys = [f"{prefix}{number}" for number in range(30)]
        _put_all(transport, bucket, [*keys, f"{prefix}kept"])
        assert transport.delete_objects(bucket, [*keys, f"{prefix}missing"]) == []
        left = transport.list_objects(bucket, prefix=prefix).object_info
        assert [info.key for info in left] == [f"{prefix}kept"]

    def test_delete_none(self, transport: TransportCalls, bucket: str) -> None:
        """No keys are nothing to do."""
        assert transport.delete_objects(bucket, []) == []

    def test_delete_too_many(self, transport: TransportCalls, bucket: str) -> None:
        """One request has a limit, and whoever asks has to know it."""
        with pytest.raises(ConfigurationError):
            transport.delete_objects(bucket, [f"{number}" for number in range(1001)])


def _put_all(transport: TransportCalls, bucket: str, keys: list[str]) -> None:
    transfers = [transport.put(bucket, key, memoryview(b"x"), options=PutOptions()) for key in keys]
    for transfer in transfers:
        transfer.result(PATIENCE)


def _pages(
    transport: TransportCalls, bucket: str, *, prefix: str, max_keys: int, delimiter: str = ""
) -> list[ListObjectResult]:
    pages: list[ListObjectResult] = []
    token: str | None = None
    while not pages or token:
        page = transport.list_objects(
            bucket,
            prefix=prefix,
            delimiter=delimiter,
            max_keys=max_keys,
            continuation_token=token,
        )
        assert len(page.object_info) + len(page.common_prefixes) <= max_keys
        pages.append(page)
        token = page.continuation_token
    return pages

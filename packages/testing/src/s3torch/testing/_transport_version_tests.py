"""Conformance of control planes: versions."""

# ruff: noqa: S101 - In tests, assert is how they tell.

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from s3torch.core.errors import ConfigurationError, NotFoundError
from s3torch.testing._calls import PATIENCE
from s3torch.testing._transport_case import TransportCase, get, put, refused

if TYPE_CHECKING:
    from s3torch.core.models import ListVersionsResult
    from s3torch.testing._calls import TransportCalls

_NOWHERE = "s3torch-no-such-bucket"


class VersionTests(TransportCase):
    """What ``SupportsVersions`` owes, and ``delete_object`` with a version."""

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

    def test_list_versions_in_pages(
        self, transport: TransportCalls, versioned_bucket: str, prefix: str
    ) -> None:
        """All versions come, each once."""
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

    def test_list_versions_of_unversioned_bucket(
        self, transport: TransportCalls, bucket: str, prefix: str
    ) -> None:
        """Objects that are not versioned are of version ``null``."""
        put(transport, bucket, f"{prefix}a/b")
        put(transport, bucket, f"{prefix}c")
        told = transport.list_object_versions(bucket, prefix=prefix, delimiter="/")
        assert [(one.key, one.version_id, one.is_latest) for one in told.versions] == [
            (f"{prefix}c", "null", True)
        ]
        assert told.common_prefixes == [f"{prefix}a/"]

    def test_list_versions_in_missing_bucket(self, transport: TransportCalls) -> None:
        """A missing bucket is an error."""
        with refused(
            NotFoundError, operation="ListObjectVersions", bucket=_NOWHERE, code="NoSuchBucket", status=404
        ):
            transport.list_object_versions(_NOWHERE)

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

    def test_delete_marker_can_be_deleted(
        self, transport: TransportCalls, versioned_bucket: str, key: str
    ) -> None:
        """Without its delete marker an object is back."""
        put(transport, versioned_bucket, key)
        transport.delete_object(versioned_bucket, key)
        (marker, _) = transport.list_object_versions(versioned_bucket, prefix=key).versions
        assert marker.is_delete_marker
        assert transport.delete_versions(versioned_bucket, [(key, marker.version_id)]) == []
        assert get(transport, versioned_bucket, key).data == b"data"

    def test_delete_many_versions(
        self, transport: TransportCalls, versioned_bucket: str, prefix: str
    ) -> None:
        """Many versions go at once, and nothing stays of them."""
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

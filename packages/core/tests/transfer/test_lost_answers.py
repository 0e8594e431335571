"""Uploads whose success was not heard of, and whose next attempt is then refused."""

from __future__ import annotations

import pytest

from s3torch.core.errors import PreconditionFailedError
from s3torch.core.models import PutOptions
from s3torch.core.ranges import MIB
from s3torch.testing.faults import Fault

NEW = PutOptions(if_none_match="*")
SIZES = pytest.mark.parametrize("size", [10, 11 * MIB], ids=["one request", "in parts"])


def write(client, wire, data, options):
    with client.put_object(wire.bucket, "k", options=options) as writer:
        writer.write(data)


def lose_an_answer(wire, size):
    """Lets the server make the object appear, and the client not hear of it."""
    completes = "POST" if size > MIB else "PUT"
    # A POST begins a multipart upload as well.
    skip = 1 if size > MIB else 0
    return wire.proxy.add(Fault.drop(side="response"), method=completes, skip=skip, times=1)


@SIZES
@pytest.mark.parametrize("checksum", ["CRC64NVME", "off"])
def test_what_was_stored_is_no_failure(wire, size, checksum):
    client = wire.client(checksum_algorithm=checksum)
    rule = lose_an_answer(wire, size)
    write(client, wire, wire.content(size), NEW)
    assert rule.hits == 1
    assert wire.get("k") == wire.content(size)
    assert wire.uploads() == []


def test_what_was_replaced_is_no_failure(wire):
    wire.put("k", b"old")
    client = wire.client()
    known = client.head_object(wire.bucket, "k").etag
    lose_an_answer(wire, 10)
    write(client, wire, b"new", PutOptions(if_match=known))
    assert wire.get("k") == b"new"


@SIZES
def test_the_object_of_another_is_a_failure(wire, size):
    wire.put("k", b"theirs")
    client = wire.client()
    rule = lose_an_answer(wire, size)
    with pytest.raises(PreconditionFailedError):
        write(client, wire, wire.content(size), NEW)
    assert rule.hits == 1
    assert wire.get("k") == b"theirs"
    assert wire.uploads() == []


def test_the_same_bytes_of_another_are_a_failure_where_nothing_was_lost(wire):
    wire.put("k", b"the same")
    with pytest.raises(PreconditionFailedError):
        write(wire.client(), wire, b"the same", NEW)


def test_a_multipart_upload_that_is_gone_may_be_complete(wire):
    # Without a condition as well: the second completion finds no upload.
    client = wire.client()
    lose_an_answer(wire, 11 * MIB)
    write(client, wire, wire.content(11 * MIB), PutOptions())
    assert wire.get("k") == wire.content(11 * MIB)

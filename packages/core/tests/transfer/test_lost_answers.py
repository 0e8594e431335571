"""Uploads whose success was not heard of, or not in words that can be judged."""

from __future__ import annotations

import pytest

from s3torch.core.errors import (
    ConflictError,
    PreconditionFailedError,
    S3ConnectionError,
    S3Error,
    ServerError,
)
from s3torch.core.models import PutOptions
from s3torch.core.ranges import MIB
from s3torch.testing.faults import Fault

NEW = PutOptions(if_none_match="*")
PAGE = "<!DOCTYPE html>\n<html><body>Please log in</body></html>"
SIZES = pytest.mark.parametrize("size", [10, 11 * MIB], ids=["one request", "in parts"])


def write(client, wire, data, options):
    with client.put_object(wire.bucket, "k", options=options) as writer:
        writer.write(data)


def fault(wire, size, fault, **how):
    """Makes something happen to the requests that make an object of this size appear."""
    # A POST begins a multipart upload as well.
    completes = {"method": "POST", "match": lambda request: "uploadId" in request.query}
    return wire.proxy.add(fault, **(completes if size > MIB else {"method": "PUT"}), **how)


def lose_an_answer(wire, size):
    """Lets the server make the object appear, and the client not hear of it."""
    return fault(wire, size, Fault.drop(side="response"), times=1)


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


@SIZES
@pytest.mark.parametrize("checksum", ["CRC64NVME", "off"])
@pytest.mark.parametrize("answer", [Fault.answer(PAGE), Fault.drop()], ids=["a web page", "none"])
def test_what_was_stored_is_found_where_no_answer_says_so(wire, size, checksum, answer):
    client = wire.client(checksum_algorithm=checksum)
    lose_an_answer(wire, size)
    # Where the proxy answers, the server does not see the request.
    rule = fault(wire, size, answer, skip=1)
    write(client, wire, wire.content(size), PutOptions())
    # On a kept connection a lost answer may mean that it was closed before, and is no attempt.
    assert rule.hits >= 2
    assert wire.methods.count("HEAD") == 1
    assert wire.get("k") == wire.content(size)
    assert wire.uploads() == []


@pytest.mark.promise(1)
@SIZES
@pytest.mark.parametrize(
    "body",
    [PAGE, "", " \n", '<CompleteMultipartUploadResult><ETag>"e"'],
    ids=["page", "empty", "space", "half"],
)
def test_a_success_that_says_nothing_stores_nothing(wire, size, body):
    wire.put("k", b"old")
    if size < MIB:
        body = PAGE
    rule = fault(wire, size, Fault.answer(body) | Fault.header("ETag", '"e"'))
    with pytest.raises(ServerError) as caught:
        write(wire.client(max_attempts=2), wire, wire.content(size), PutOptions())
    assert (caught.value.status, caught.value.attempts, rule.hits) == (200, 2, 2)
    assert wire.get("k") == b"old"
    assert wire.uploads() == []


def test_no_answer_to_anything_is_an_error(wire):
    wire.proxy.add(Fault.drop())
    with pytest.raises(S3ConnectionError) as caught:
        write(wire.client(max_attempts=1), wire, b"new", PutOptions())
    assert "Could not check" in "".join(caught.value.__notes__)


@SIZES
def test_a_conflict_is_no_loss(wire, size):
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html: retry the upload.
    rule = fault(wire, size, Fault.error(409, "ConditionalRequestConflict"), times=2)
    write(wire.client(), wire, wire.content(size), NEW)
    assert rule.hits == 2
    assert "HEAD" not in wire.methods
    assert wire.get("k") == wire.content(size)
    assert wire.uploads() == []


def test_a_conflict_that_takes_the_parts_wants_the_upload_again(wire):
    size = 11 * MIB
    fault(wire, size, Fault.error(409, "ConditionalRequestConflict"), times=1)
    fault(wire, size, Fault.error(404, "NoSuchUpload"), skip=1)
    with pytest.raises(ConflictError, match="write it again") as caught:
        write(wire.client(), wire, wire.content(size), NEW)
    error = caught.value
    assert (error.operation, error.bucket, error.key) == ("CompleteMultipartUpload", wire.bucket, "k")
    assert wire.get("k") is None
    wire.proxy.heal()
    write(wire.client(), wire, wire.content(size), NEW)
    assert wire.get("k") == wire.content(size)


@SIZES
def test_a_conflict_that_another_wins_is_told(wire, size):
    wire.put("k", b"theirs")
    fault(wire, size, Fault.error(409, "ConditionalRequestConflict"), times=1)
    with pytest.raises(PreconditionFailedError):
        write(wire.client(), wire, wire.content(size), NEW)
    assert wire.get("k") == b"theirs"


@SIZES
@pytest.mark.parametrize("status", [400, 501])
def test_a_store_without_conditions_is_named(wire, size, status):
    fault(wire, size, Fault.error(status, "NotImplemented"))
    with pytest.raises(S3Error, match="not every store knows If-None-Match") as caught:
        write(wire.client(), wire, wire.content(size), NEW)
    assert (caught.value.status, caught.value.code) == (status, "NotImplemented")
    assert wire.get("k") is None
    wire.proxy.clear()
    with pytest.raises(S3Error) as caught:
        write(wire.client(), wire, wire.content(size), PutOptions())
    assert "If-None-Match" not in str(caught.value)


def refuse_the_second_copy(wire):
    """Lets the server copy, and the client hear only of the refusal that the next attempt meets."""
    lose_an_answer(wire, 10)
    return fault(wire, 10, Fault.error(412, "PreconditionFailed"), skip=1)


@pytest.mark.promise(1)
def test_a_copy_that_was_made_is_no_failure(wire):
    wire.put("k", b"source")
    rule = refuse_the_second_copy(wire)
    wire.client().copy_object(wire.bucket, "k", wire.bucket, "copy", options=NEW)
    assert rule.hits == 1
    assert wire.get("copy") == b"source"


def test_a_copy_that_another_prevented_is_a_failure(wire):
    wire.put("k", b"source")
    wire.put("copy", b"theirs")
    fault(wire, 10, Fault.drop(), times=1)
    fault(wire, 10, Fault.error(412, "PreconditionFailed"), skip=1)
    with pytest.raises(PreconditionFailedError):
        wire.client().copy_object(wire.bucket, "k", wire.bucket, "copy", options=NEW)
    assert wire.get("copy") == b"theirs"

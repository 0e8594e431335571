"""When the wire or the server misbehaves during an upload: no partial object, no part left behind."""

from __future__ import annotations

import time

import pytest

from s3torch.core.errors import AccessDeniedError, ChecksumMismatchError
from s3torch.core.ranges import MIB
from s3torch.core.transfer import _upload_parts
from s3torch.testing.faults import Fault

PART = 5 * MIB
SIZE = 2 * PART + 1000
DATA = (bytes(range(251)) * (SIZE // 251 + 1))[:SIZE]


@pytest.mark.promise(2)
@pytest.mark.parametrize("size", [1000, PART + 1000])
def test_a_flipped_bit_of_an_upload_is_refused(wire, size):
    wire.put("k", b"old")
    wire.proxy.add(Fault.flip(size // 4, side="request"), method="PUT")
    with pytest.raises(ChecksumMismatchError), wire.client().put_object(wire.bucket, "k") as writer:
        writer.write(DATA[:size])
    wire.proxy.heal()
    assert wire.get("k") == b"old"
    assert wire.uploads() == []


@pytest.mark.parametrize("size", [1000, PART + 1000])
def test_an_upload_that_breaks_is_sent_again(wire, size):
    rules = [
        wire.proxy.add(Fault.reset(100, side="request"), method="PUT", times=1),
        wire.proxy.add(Fault.slow_down(), method="PUT", skip=1, times=1),
    ]
    with wire.client().put_object(wire.bucket, "k") as writer:
        writer.write(DATA[:size])
    assert [rule.hits for rule in rules] == [1, 1]
    assert wire.get("k") == DATA[:size]
    assert wire.uploads() == []


@pytest.mark.parametrize("size", [1000, PART + 1000])
def test_an_upload_that_is_not_answered_is_sent_again(wire, size):
    rule = wire.proxy.add(Fault.stall(60), method="PUT", times=1)
    with wire.client(read_timeout=1).put_object(wire.bucket, "k") as writer:
        writer.write(DATA[:size])
    assert rule.hits == 1
    assert wire.get("k") == DATA[:size]
    assert wire.uploads() == []


@pytest.mark.parametrize(("size", "number"), [(1000, ""), (SIZE, "1"), (SIZE, "3")])
def test_an_upload_that_fails_leaves_the_old_object(wire, size, number):
    wire.put("k", b"old")
    rule = wire.proxy.add(
        Fault.error(403, "AccessDenied"),
        method="PUT",
        match=lambda request: request.query.get("partNumber", "") == number,
    )
    with pytest.raises(AccessDeniedError) as caught, wire.client().put_object(wire.bucket, "k") as writer:
        writer.write(DATA[:size])
    with pytest.raises(AccessDeniedError) as again:
        writer.close()
    assert again.value is caught.value
    assert rule.hits == 1
    assert wire.get("k") == b"old"
    assert wire.uploads() == []


@pytest.mark.promise(1)
def test_an_upload_that_cannot_be_completed_leaves_the_old_object(wire):
    wire.put("k", b"old")
    fault = Fault.error(403, "AccessDenied")
    wire.proxy.add(fault, method="POST", match=lambda request: "uploadId" in request.query)
    with pytest.raises(AccessDeniedError) as caught, wire.client().put_object(wire.bucket, "k") as writer:
        writer.write(DATA)
    assert caught.value.operation == "CompleteMultipartUpload"
    assert wire.get("k") == b"old"
    assert wire.uploads() == []


def test_an_upload_that_cannot_even_be_aborted_raises_the_first_error(wire):
    wire.proxy.add(Fault.error(403, "AccessDenied"), method="PUT")
    wire.proxy.add(Fault.error(500, "InternalError"), method="DELETE")
    client = wire.client(max_attempts=1)
    with pytest.raises(AccessDeniedError) as caught, client.put_object(wire.bucket, "k") as writer:
        writer.write(DATA)
    assert "could not be aborted" in "".join(caught.value.__notes__)
    wire.proxy.heal()


def test_the_writer_does_not_wait_for_the_beginning_of_its_upload(wire):
    wire.proxy.add(Fault(latency=3), method="POST", match=lambda request: "uploads" in request.query)
    with wire.client().put_object(wire.bucket, "k") as writer:
        writer.write(DATA)
        assert "PUT" not in wire.methods  # There is no upload id yet.
    assert wire.get("k") == DATA


def test_lent_bytes_are_not_copied_and_must_not_change(wire):
    wire.proxy.add(Fault(latency=0.5), method="POST", match=lambda request: "uploads" in request.query)
    lent = bytearray(DATA)
    wire.put("k", b"old")
    with pytest.raises(ChecksumMismatchError), wire.client().put_object(wire.bucket, "k") as writer:
        writer.lend(lent)
        lent[0] ^= 1  # Nothing was sent yet, but the checksum is made.
    assert wire.get("k") == b"old"
    assert wire.uploads() == []


def test_an_upload_that_is_aborted_before_it_has_begun_sends_no_part(wire):
    wire.proxy.add(Fault(latency=0.5), method="POST", match=lambda request: "uploads" in request.query)
    with pytest.raises(KeyError), wire.client().put_object(wire.bucket, "k") as writer:
        writer.write(DATA)
        raise KeyError
    assert wire.proxy.requests("PUT") == []
    assert wire.uploads() == []


def test_parts_on_their_way_have_their_answers_before_the_abort(wire, monkeypatch):
    unanswered = []
    # A busy machine, or SeaweedFS that makes room in a new bucket, takes longer than parts are waited for.
    monkeypatch.setattr(_upload_parts, "_GRACE_SECONDS", 60)

    def note(request):
        unanswered.append([part.query for part in wire.proxy.requests("PUT") if part.status is None])
        return False

    wire.proxy.add(Fault(latency=0.3), method="PUT")
    wire.proxy.add(Fault(), method="DELETE", match=note)
    with pytest.raises(KeyError), wire.client().put_object(wire.bucket, "k") as writer:
        writer.write(DATA)
        while len(wire.proxy.requests("PUT")) < 2:
            time.sleep(0.01)
        raise KeyError
    assert unanswered == [[]]
    assert wire.uploads() == []


def test_an_upload_with_a_part_that_was_cut_off_is_aborted_again(wire):
    rule = wire.proxy.add(Fault.stall(60), method="PUT")
    writer = wire.client().put_object(wire.bucket, "k")
    writer.write(DATA)
    while not rule.hits:
        time.sleep(0.01)
    writer.abort()
    assert len(wire.proxy.requests("DELETE")) > 1
    assert wire.uploads() == []


@pytest.mark.promise(7)
def test_an_upload_that_cannot_begin_is_an_error(wire):
    wire.proxy.add(Fault.error(403, "AccessDenied"), method="POST")
    with pytest.raises(AccessDeniedError) as caught, wire.client().put_object(wire.bucket, "k") as writer:
        writer.write(DATA)
    assert caught.value.operation == "CreateMultipartUpload"
    assert wire.get("k") is None

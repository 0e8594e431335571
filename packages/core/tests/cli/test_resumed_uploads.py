"""``cp --resume`` of a large file: its parts stay in S3, and the same command continues with them."""

from __future__ import annotations

import time

import pytest

from s3torch.core.cli import _process, _transfers
from s3torch.core.models import PutOptions
from s3torch.core.observers import TransferCounters, observe
from s3torch.testing import Fault

PART = 8 * 2**20
LARGE = bytes(range(251)) * (4 * PART // 251)


@pytest.fixture(autouse=True)
def notes(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder / "s3torch" / "uploads"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


@pytest.fixture
def stop(command, file, monkeypatch):
    """Stops an upload as Ctrl-C does, after two parts have been read."""

    def stop(*options):
        check, calls = _transfers._stop_if_asked, []

        def count():
            calls.append(None)
            if len(calls) == 4:
                _process.stopping.set()
            check()

        with monkeypatch.context() as patch:
            patch.setattr(_transfers, "_stop_if_asked", count)
            command("cp", "--resume", *options, file, "s3://bucket/a", code=1)

    return stop


def test_an_upload_continues_with_the_parts_that_are_there(command, client, store, file, stop, notes):
    stop()
    (upload,) = store.uploads("bucket")
    begun = sum(part.size for part in store.list_parts(upload))
    assert PART <= begun < len(LARGE)
    assert notes.stat().st_mode & 0o077 == 0
    with observe(TransferCounters()) as counters:
        command("cp", "--resume", file, "s3://bucket/a")
    assert counters.snapshot().bytes_written == len(LARGE) - begun
    assert client.get_object("bucket", "a").read() == LARGE
    assert store.uploads("bucket") == []
    assert list(notes.iterdir()) == []


@pytest.mark.promise(2)
def test_a_part_with_other_bytes_is_sent_again(command, client, store, file, stop):
    stop()
    (upload,) = store.uploads("bucket")
    store.put_part(upload, 1, b"x" * PART)
    command("cp", "--resume", file, "s3://bucket/a")
    assert client.get_object("bucket", "a").read() == LARGE


def test_an_upload_that_is_gone_begins_again(command, client, store, file, stop):
    stop()
    (upload,) = store.uploads("bucket")
    store.abort_upload(upload)
    command("cp", "--resume", file, "s3://bucket/a")
    assert client.get_object("bucket", "a").read() == LARGE
    assert store.uploads("bucket") == []


def test_another_file_or_other_settings_do_not_continue_it(command, client, store, file, stop):
    stop()
    (upload,) = store.uploads("bucket")
    command("cp", "--resume", "--content-type", "text/plain", file, "s3://bucket/a")
    assert client.head_object("bucket", "a").content_type == "text/plain"
    file.write_bytes(LARGE[::-1])
    command("cp", "--resume", file, "s3://bucket/a")
    assert client.get_object("bucket", "a").read() == LARGE[::-1]
    # What the first command left is for `gc`.
    assert store.uploads("bucket") == [upload]


@pytest.mark.promise(9)
def test_uploads_of_others_are_left_alone(command, client, store, file):
    others = store.create_upload("bucket", "a", options=PutOptions())
    store.put_part(others, 1, LARGE[:PART])
    command("cp", "--resume", file, "s3://bucket/a")
    assert store.uploads("bucket") == [others]


def test_a_file_that_changes_meanwhile_leaves_nothing(command, store, file, notes, monkeypatch):
    pump = _transfers.Copier._pump

    def change(copier, source, target):
        count = pump(copier, source, target)
        file.write_bytes(b"other")
        return count

    monkeypatch.setattr(_transfers.Copier, "_pump", change)
    ran = command("cp", "--resume", file, "s3://bucket/a", code=1)
    assert "changed while it was read" in ran.err
    assert store.uploads("bucket") == []
    assert list(notes.iterdir()) == []


@pytest.mark.parametrize("algorithm", ["CRC64NVME", None])
def test_a_killed_upload_continues_on_a_real_store(process, seaweedfs, fault_proxy, file, algorithm):
    """Killed, so that nothing can be tidied up; the proxy makes it slow and counts what is sent."""
    bucket, proxy = seaweedfs.create_bucket(), fault_proxy(seaweedfs)
    environment = seaweedfs.at(proxy.endpoint).environment()
    if algorithm is None:
        environment["AWS_REQUEST_CHECKSUM_CALCULATION"] = "when_required"
    client = seaweedfs.client()
    arguments = ("cp", "--resume", file, f"s3://{bucket}/a")

    def once_a_part_is_there():
        end = time.monotonic() + 30
        while time.monotonic() < end:
            for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
                parts = client.list_parts(Bucket=bucket, Key="a", UploadId=upload["UploadId"])
                if parts.get("Parts"):
                    return
            time.sleep(0.05)
        raise AssertionError("no part arrived")

    slow = proxy.add(
        Fault(bandwidth=1e6), match=lambda request: request.query.get("partNumber", "1") in {"2", "3", "4"}
    )
    process(*arguments, environment=environment, kill=once_a_part_is_there)
    proxy.remove(slow)
    before = len(proxy.requests("PUT", key="a"))
    ran = process(*arguments, environment=environment)
    assert ran.code == 0, ran.err
    assert len(proxy.requests("PUT", key="a")) - before == 3
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == LARGE
    assert client.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []

"""``cp`` both ways and within a store, and what it leaves behind where it fails or is stopped."""

from __future__ import annotations

import os
import time

import pytest

from s3torch.core.cli import _process, _transfers
from s3torch.core.observers import TransferCounters, observe
from s3torch.testing import Fault

SIZE = 12 * 2**20
LARGE = bytes(range(251)) * (SIZE // 251)


def left_over(folder):
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


def test_an_object_to_a_file(command, put, tmp_path):
    put({"a/large": LARGE})
    ran = command("cp", "s3://bucket/a/large", tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == LARGE
    assert ran.err == "Copied 1 object, 12.0 MiB.\n"


def test_an_object_keeps_its_name_in_a_folder(command, put, tmp_path):
    put({"a/name": b"data"})
    command("cp", "s3://bucket/a/name", tmp_path)
    command("cp", "s3://bucket/a/name", f"{tmp_path}/new/")
    assert (tmp_path / "name").read_bytes() == (tmp_path / "new" / "name").read_bytes() == b"data"


def test_a_file_to_an_object(command, client, tmp_path):
    (tmp_path / "image.png").write_bytes(LARGE)
    command("cp", tmp_path / "image.png", "s3://bucket/to/")
    command("cp", "--content-type", "text/plain", tmp_path / "image.png", "s3://bucket/as")
    assert client.get_object("bucket", "to/image.png").read() == LARGE
    assert client.head_object("bucket", "to/image.png").content_type == "image/png"
    assert client.head_object("bucket", "as").content_type == "text/plain"


def test_a_folder_both_ways_and_within_the_store(command, put, keys, tmp_path):
    objects = {"a": b"no", "a/b": b"1", "a/c/d": b"22", "a/c/": b"", "ab": b"no"}
    put(objects)
    command("cp", "-r", "s3://bucket/a", tmp_path / "down")
    found = {path.relative_to(tmp_path / "down").as_posix() for path in (tmp_path / "down").rglob("*")}
    assert found == {"b", "c", "c/d"}
    command("cp", "-r", tmp_path / "down", "s3://bucket/up")
    command("cp", "-r", "s3://bucket/up", "s3://bucket/across/")
    assert keys("up") == ["up/b", "up/c/d"]
    assert keys("across") == ["across/b", "across/c/d"]


def test_standard_streams(process, seaweedfs):
    bucket, environment = seaweedfs.create_bucket(), seaweedfs.environment()
    assert process("cp", "-", f"s3://{bucket}/a", environment=environment, stdin="piped").code == 0
    assert process("cp", f"s3://{bucket}/a", "-", environment=environment).out == "piped"


@pytest.mark.parametrize("key", ["../out", "x/../../out", "/out", "x//out", "./out"])
@pytest.mark.promise(9)
def test_keys_that_lead_out_of_the_folder(command, put, tmp_path, key):
    put({"a/fine": b"fine", f"a/{key}": b"no"})
    ran = command("cp", "-r", "s3://bucket/a/", tmp_path / "in", code=6)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "fine"]
    assert "names no file below" in ran.err
    assert "1 object could not be copied" in ran.err


@pytest.mark.promise(9)
def test_a_link_on_the_way_out(command, put, tmp_path):
    put({"a/link/file": b"no"})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    assert "outside of" in command("cp", "-r", "s3://bucket/a", tmp_path / "in", code=1).err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_key_that_is_also_a_folder_hurts_only_itself(command, put, tmp_path):
    put({"a/x": b"file", "a/x/y": b"below", "a/z": b"fine"})
    command("cp", "-r", "s3://bucket/a", tmp_path, "--jobs", 1, code=6)
    assert (tmp_path / "z").read_bytes() == b"fine"
    assert left_over(tmp_path) == []


def test_a_dry_run(command, put, tmp_path):
    put({"a/b": b"data"})
    ran = command("cp", "-r", "-n", "s3://bucket/a", tmp_path)
    assert ran.lines == [f"s3://bucket/a/b -> {tmp_path}/b"]
    assert list(tmp_path.iterdir()) == []


def test_json_tells_each_object(command, put, tmp_path):
    put({"a/b": b"data", "a/../c": b"no"})
    documents = {
        one["source"]: one
        for one in command("cp", "-r", "--json", "s3://bucket/a", tmp_path, code=6).documents
    }
    assert documents["s3://bucket/a/b"]["nbytes"] == 4
    assert documents["s3://bucket/a/../c"]["error"] == "ValueError"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("s3://bucket/nothing", "here"), 3, "no such key"),
        (("s3://bucket/a/", "here"), 2, "--recursive"),
        (("-r", "s3://bucket/nothing", "here"), 3, "there is nothing in"),
        (("here", "there"), 2, "neither SOURCE nor TARGET"),
        (("-r", "missing", "s3://bucket/a"), 3, "is not a folder"),
        (("missing", "s3://bucket/a"), 3, "No such file"),
    ],
)
def test_what_cannot_be_copied(command, tmp_path, monkeypatch, arguments, code, told):
    monkeypatch.chdir(tmp_path)
    error = command("cp", *arguments, code=code).err
    assert told in error
    # What is wrong is named once.
    assert error.partition("Error: ")[2].count(arguments[-2]) == 1 or code == 2
    assert list(tmp_path.iterdir()) == []


class TestResume:
    def test_what_is_there_is_left_out(self, command, put, client, tmp_path):
        put({"a/b": b"data", "a/c": LARGE})
        command("cp", "-r", "s3://bucket/a", tmp_path)
        (tmp_path / "b").write_bytes(b"date")
        with observe(TransferCounters()) as counters:
            ran = command("cp", "-r", "--resume", "s3://bucket/a", tmp_path)
        assert ran.err == "Copied 1 object, 4 B; left out 1 object that is there.\n"
        assert counters.snapshot().bytes_read == 4
        assert (tmp_path / "b").read_bytes() == b"data"

    def test_uploads_and_copies(self, command, client, tmp_path):
        (tmp_path / "b").write_bytes(b"data")
        (tmp_path / "c").write_bytes(LARGE)
        command("cp", "-r", tmp_path, "s3://bucket/a")
        command("cp", "-r", "s3://bucket/a", "s3://bucket/z")
        (tmp_path / "b").write_bytes(b"date")
        with observe(TransferCounters()) as counters:
            command("cp", "-r", "--resume", tmp_path, "s3://bucket/a")
            command("cp", "-r", "--resume", "s3://bucket/a", "s3://bucket/z")
        assert counters.snapshot().bytes_written == 4
        assert counters.snapshot().of("CopyObject").transfers == 1
        assert client.get_object("bucket", "z/b").read() == b"date"

    def test_a_download_goes_on_where_it_was_stopped(self, command, put, client, tmp_path, monkeypatch):
        put({"a": LARGE})
        self._stop_after_a_piece(command, tmp_path, monkeypatch)
        (part,) = left_over(tmp_path)
        begun = part.stat().st_size
        assert 0 < begun < len(LARGE)
        with observe(TransferCounters()) as counters:
            command("cp", "--resume", "s3://bucket/a", tmp_path / "here")
        assert counters.snapshot().bytes_read <= len(LARGE) - begun
        assert (tmp_path / "here").read_bytes() == LARGE
        assert left_over(tmp_path) == []

    @pytest.mark.promise(2)
    def test_a_begun_download_that_rots_is_noticed(self, command, put, tmp_path, monkeypatch):
        put({"a": LARGE})
        self._stop_after_a_piece(command, tmp_path, monkeypatch)
        (part,) = left_over(tmp_path)
        with part.open("r+b") as file:
            file.write(b"rotten")
        ran = command("cp", "--resume", "s3://bucket/a", tmp_path / "here", code=1)
        assert "does not have the stored checksum" in ran.err
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.promise(9)
    @pytest.mark.parametrize("plant", ["link", "fifo", "of somebody else"])
    def test_what_others_have_put_in_its_place_is_refused(self, command, put, tmp_path, monkeypatch, plant):
        put({"a": LARGE})
        self._stop_after_a_piece(command, tmp_path, monkeypatch)
        (part,) = left_over(tmp_path)
        begun, elsewhere = part.read_bytes(), tmp_path / "elsewhere"
        if plant == "of somebody else":
            monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        else:
            part.rename(elsewhere)
            part.symlink_to(elsewhere) if plant == "link" else os.mkfifo(part)
        code = 1 if plant == "link" else 4
        command("cp", "--resume", "s3://bucket/a", tmp_path / "here", code=code)
        assert not (tmp_path / "here").exists()
        assert (part if plant == "of somebody else" else elsewhere).read_bytes() == begun

    @staticmethod
    def _stop_after_a_piece(command, tmp_path, monkeypatch):
        """As Ctrl-C does, while the first piece of a large object is written."""
        check, calls = _transfers._stop_if_asked, []

        def stop():
            calls.append(None)
            if len(calls) == 3:
                _process.stopping.set()
            check()

        with monkeypatch.context() as patch:
            patch.setattr(_transfers, "_stop_if_asked", stop)
            command("cp", "--resume", "s3://bucket/a", tmp_path / "here", code=1)


@pytest.mark.promise(2)
def test_a_damaged_download_is_no_file(process, seaweedfs, fault_proxy, tmp_path):
    """The proxy flips a bit in each answer; the checksum of the store tells."""
    bucket, proxy = seaweedfs.create_bucket(), fault_proxy(seaweedfs)
    seaweedfs.client().put_object(Bucket=bucket, Key="a", Body=LARGE, ChecksumAlgorithm="CRC32")
    proxy.add(Fault.flip(1000), method="GET", key="a")
    environment = seaweedfs.at(proxy.endpoint).environment()
    ran = process("cp", f"s3://{bucket}/a", tmp_path / "here", environment=environment)
    assert ran.code == 1
    assert "was stored" in ran.err
    assert list(tmp_path.iterdir()) == []
    # What flips on the way once is right the next time.
    for options in ((), ("--resume",)):
        proxy.heal()
        rule = proxy.add(Fault.flip(1000), method="GET", key="a", times=1)
        process("cp", *options, f"s3://{bucket}/a", tmp_path / "here", environment=environment)
        assert rule.hits == 1
        assert (tmp_path / "here").read_bytes() == LARGE
        (tmp_path / "here").unlink()


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.promise(1)
def test_ctrl_c_leaves_nothing_behind(process, seaweedfs, fault_proxy, tmp_path, way):
    bucket, proxy = seaweedfs.create_bucket(), fault_proxy(seaweedfs)
    direct = seaweedfs.client()
    proxy.add(Fault(bandwidth=2e6), method="GET" if way == "down" else "PUT", key="file")
    environment = seaweedfs.at(proxy.endpoint).environment()
    if way == "down":
        for number in range(3):
            direct.put_object(Bucket=bucket, Key=f"in/file{number}", Body=LARGE)
        arguments = ("-r", f"s3://{bucket}/in", tmp_path / "out")
    else:
        (tmp_path / "in").mkdir()
        for number in range(3):
            (tmp_path / "in" / f"file{number}").write_bytes(LARGE)
        arguments = ("-r", tmp_path / "in", f"s3://{bucket}/out")

    def once_it_moves():
        end = time.monotonic() + 30
        while not proxy.requests("GET" if way == "down" else "PUT", key="file"):
            assert time.monotonic() < end
            time.sleep(0.02)

    ran = process("cp", *arguments, environment=environment, interrupt=once_it_moves)
    assert ran.code == 130, ran.err
    assert "Traceback" not in ran.err
    assert left_over(tmp_path) == []
    assert {path.stat().st_size for path in (tmp_path / "out").glob("*")} <= {len(LARGE)}
    # An object that was complete already stays, whole.
    stored = direct.list_objects_v2(Bucket=bucket, Prefix="out/").get("Contents", [])
    assert {one["Size"] for one in stored} <= {len(LARGE)}
    assert direct.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []

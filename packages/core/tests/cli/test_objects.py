"""``ls``, ``rm`` and ``gc`` on a store in memory."""

from __future__ import annotations

from datetime import timedelta

import pytest

from s3torch.core import requests
from s3torch.core.models import PutOptions

OBJECTS = {"a": b"1", "a/b": b"22", "a/c/d": b"333", "ab/c": b"4444"}


@pytest.fixture(autouse=True)
def _objects(put):
    put(OBJECTS)


class TestLs:
    def test_one_level(self, command):
        ran = command("ls", "s3://bucket/")
        assert [line[21:].split() for line in ran.lines] == [
            ["1", "B", "a"],
            ["folder", "a/"],
            ["folder", "ab/"],
        ]

    def test_all_below_with_the_total(self, command):
        ran = command("ls", "-r", "--total", "--bytes", "s3://bucket/a/")
        assert [line.split()[-1] for line in ran.lines] == ["a/b", "a/c/d", "bytes"]
        assert ran.lines[-1] == "2 objects, 5 bytes"

    def test_a_pattern(self, command):
        ran = command("ls", "--glob", "s3://bucket/a*/**/d")
        assert [line.split()[-1] for line in ran.lines] == ["a/c/d"]

    def test_json(self, command):
        documents = command("ls", "--json", "s3://bucket").documents
        assert [one.get("key") or one.get("folder") for one in documents] == ["a", "a/", "ab/"]
        assert documents[0]["size"] == 1

    def test_a_bucket_without_objects_is_no_error_and_a_prefix_is(self, command, store):
        store.create_bucket("empty")
        assert command("ls", "s3://empty").out == ""
        assert "Nothing begins with s3://bucket/nothing" in command("ls", "s3://bucket/nothing", code=3).err

    def test_what_would_move_the_cursor_is_escaped(self, command, put):
        put({"bad\x1b[2J\n": b""})
        ran = command("ls", "s3://bucket/bad")
        assert "\x1b" not in ran.out
        assert ran.lines[0].endswith(r"bad\x1b[2J\n")
        assert command("ls", "--json", "s3://bucket/bad").documents[0]["key"] == "bad\x1b[2J\n"

    @pytest.mark.parametrize(("uri", "code"), [("bucket/a", 2), ("s3://", 2), ("s3://nowhere/", 3)])
    def test_exit_codes(self, command, uri, code):
        assert command("ls", uri, code=code).err.startswith("Error: ")

    def test_an_error_as_json(self, command):
        (document,) = command("ls", "--json", "s3://nowhere/", code=3).documents
        assert document["error"] == "NotFoundError"
        assert document["code"] == "NoSuchBucket"


@pytest.mark.promise(9)
class TestRm:
    def test_a_key_is_exact(self, command, keys):
        ran = command("rm", "--yes", "s3://bucket/a")
        assert ran.lines == ["Deleted 1 object."]
        assert keys() == ["a/b", "a/c/d", "ab/c"]

    def test_a_folder_is_neither_the_object_nor_another_folder(self, command, keys):
        command("rm", "-r", "-y", "s3://bucket/a")
        assert keys() == ["a", "ab/c"]

    def test_a_missing_key_deletes_nothing(self, command, keys):
        ran = command("rm", "-y", "s3://bucket/a", "s3://bucket/nothing", code=3)
        assert "s3://bucket/nothing" in ran.err
        assert len(keys()) == 4

    def test_without_yes_and_a_terminal_nothing_is_deleted(self, command, keys):
        ran = command("rm", "-r", "s3://bucket/a", code=2)
        assert "--yes" in ran.err
        assert "a/c/d" in ran.err
        assert len(keys()) == 4

    def test_a_dry_run_shows_what_would_go(self, command, keys):
        assert "2 objects in s3://bucket" in command("rm", "-r", "-n", "s3://bucket/a").err
        documents = command("rm", "-r", "-n", "--json", "s3://bucket/a").documents
        assert [one.get("key") for one in documents[:2]] == ["a/b", "a/c/d"]
        assert documents[-1] == {"found": 2, "deleted": 0}
        assert len(keys()) == 4

    def test_a_bucket_needs_recursive(self, command, keys):
        assert "--recursive" in command("rm", "-y", "s3://bucket", code=2).err
        command("rm", "-r", "-y", "s3://bucket")
        assert keys() == []

    def test_versions_go_for_good(self, command, store, client):
        store.create_bucket("kept", keeps_versions=True)
        for data in (b"old", b"new"):
            with client.put_object("kept", "a") as writer:
                writer.write(data)
        client.delete_object("kept", "a")
        command("rm", "--versions", "-y", "s3://kept/a")
        assert [one for page in client.list_object_versions("kept") for one in page.versions] == []


@pytest.mark.promise(9)
class TestGc:
    @pytest.fixture(autouse=True)
    def _no_plugins(self, monkeypatch):
        # s3torch-dcp has tests of its own.
        monkeypatch.setattr("s3torch.core.cli._garbage.leftover_finders", list)

    @pytest.fixture
    def upload(self, client):
        def begin(key):
            return client._handle.call(requests.create_multipart_upload("bucket", key, options=PutOptions()))

        return begin

    def test_stale_uploads_are_removed_in_the_folder_alone(self, command, client, upload):
        for key in ("a/x", "ab/x"):
            upload(key)
        assert "Found 1 upload and 0 files" in command("gc", "--older-than", "0m", "-n", "s3://bucket/a").out
        assert "Removed 1 upload" in command("gc", "--older-than", "0m", "-y", "s3://bucket/a").out
        assert [one.key for one in client.list_multipart_uploads("bucket")] == ["ab/x"]

    def test_young_ones_stay(self, command, client, upload):
        upload("a/x")
        assert "Found 0 uploads" in command("gc", "--older-than", "1h", "s3://bucket").out
        assert len(list(client.list_multipart_uploads("bucket"))) == 1

    def test_an_age_that_is_none(self, command):
        assert "30m, 12h, 7d, 2w" in command("gc", "--older-than", "soon", "s3://bucket", code=2).err

    def test_what_plugins_know_to_be_left_over(self, command, client, keys, monkeypatch):
        asked = []

        def find(client, uri, older_than):
            asked.append((uri, older_than))
            return client.walk("bucket", "a/c/")

        monkeypatch.setattr("s3torch.core.cli._garbage.leftover_finders", lambda: [find])
        ran = command("gc", "-y", "--older-than", "2d", "s3://bucket/a")
        assert asked == [("s3://bucket/a", timedelta(days=2))]
        assert "Removed 0 uploads and 1 file" in ran.out
        assert keys() == ["a", "a/b", "ab/c"]

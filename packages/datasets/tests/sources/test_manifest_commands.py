"""``s3torch manifest``."""

from __future__ import annotations

import json
import uuid

import pytest
from click.testing import CliRunner

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.cli._application import application
from s3torch.core.transports.memory import MemoryStore


@pytest.fixture
def client():
    endpoint = f"http://{uuid.uuid4().hex}.invalid"
    MemoryStore.at(endpoint).create_bucket("bucket")
    config = S3ClientConfig(transport="memory", endpoint=endpoint)
    with S3Client("us-east-1", s3client_config=config) as client:
        yield client
    MemoryStore.forget(endpoint)


@pytest.fixture
def put(client):
    def put(*keys, data=b"data"):
        for key in keys:
            with client.put_object("bucket", key) as writer:
                writer.write(data)

    return put


@pytest.fixture
def command(client):
    where = ("--region", "us-east-1", "--transport", "memory", "--endpoint", client.s3client_config.endpoint)

    def run(*arguments, code=0):
        result = CliRunner().invoke(application, ["manifest", *map(str, arguments), *where])
        assert result.exit_code == code, result.output
        return result.stdout + result.stderr

    return run


@pytest.mark.parametrize("place", ["local", "s3"])
def test_build_check_and_refresh(command, client, put, tmp_path, place):
    path = tmp_path / "list.jsonl.gz" if place == "local" else "s3://bucket/lists/list.jsonl.gz"
    put("train/a", "train/b", "train/c", "other")
    assert "3 objects, 12 B, identity " in command("build", path, "s3://bucket/train/")
    assert "0 added, 0 dropped, 0 changed" in command("check", path)
    put("train/b", data=b"date")
    put("train/d")
    client.delete_object("bucket", "train/c")
    told = command("check", path, code=1)
    assert "dropped  s3://bucket/train/c" in told
    assert "changed  s3://bucket/train/b" in told
    assert "added    s3://bucket/train/d" in command("check", path, "s3://bucket/train/", code=1)
    command("refresh", "--dry-run", path, "s3://bucket/train/")
    command("check", path, code=1)
    assert "1 added, 1 dropped, 1 changed" in command("refresh", path, "s3://bucket/train/")
    assert "0 added, 0 dropped, 0 changed" in command("check", path, "s3://bucket/train/")


def test_a_pattern_and_json(command, put, tmp_path):
    put("a/1.jpg", "a/2.txt", "b/3.jpg")
    told = json.loads(command("build", "--json", "--glob", tmp_path / "m.jsonl", "s3://bucket/**/*.jpg"))
    assert told["objects"] == 2
    put("a/1.jpg", data=b"date")
    documents = [
        json.loads(line) for line in command("check", "--json", tmp_path / "m.jsonl", code=1).splitlines()
    ]
    assert documents[0] == {"change": "changed", "uri": "s3://bucket/a/1.jpg"}


def test_a_name_that_is_no_manifest(command, put, tmp_path):
    assert ".jsonl" in command("build", tmp_path / "m.csv", "s3://bucket/", code=2)
    assert "No such file" in command("check", tmp_path / "m.jsonl", code=3)

"""What S3 keeps with objects besides their bytes, buckets, and URLs for others."""

from __future__ import annotations

import urllib.request

import pytest

from s3torch.core import ConfigurationError
from s3torch.core.transports.memory import MemoryStore
from s3torch.fsspec import DirectoryNotEmptyError, ObjectExistsError, S3FileSystem

MIB = 1024 * 1024

on_servers = pytest.mark.parametrize("options", ["seaweedfs", "moto"], indirect=True)
on_moto = pytest.mark.parametrize("options", ["moto"], indirect=True)
in_memory = pytest.mark.parametrize("options", ["memory"], indirect=True)


# Buckets


def test_buckets_are_listed(fs, root):
    bucket = root.partition("/")[0]
    entries = {entry["name"]: entry for entry in fs.ls("")}
    assert entries[bucket]["type"] == "directory"
    assert entries[bucket]["StorageClass"] == "BUCKET"
    assert bucket in fs.ls("s3://", detail=False)
    assert bucket in fs.glob(f"{bucket[:-2]}*")
    assert fs.glob("no-such-bucket*") == []


def test_patterns_of_buckets_are_asked_for_in_each_that_matches(fs, root):
    bucket, _, prefix = root.partition("/")
    fs.pipe_file(f"{root}/a.txt", b"")
    pattern = f"{bucket[:-1]}?/{prefix}/*.txt"
    assert fs.glob(pattern) == [f"{root}/a.txt"]
    assert fs.glob(pattern, detail=True)[f"{root}/a.txt"]["size"] == 0


def test_buckets_are_neither_made_nor_removed(fs, root):
    bucket = root.partition("/")[0]
    fs.makedirs(bucket, exist_ok=True)
    with pytest.raises(ObjectExistsError):
        fs.mkdir(bucket)
    with pytest.raises(
        ConfigurationError, match="s3torch does not create buckets.*aws s3 mb s3://no-such-bucket"
    ):
        fs.mkdir("no-such-bucket")
    with pytest.raises(ConfigurationError, match="does not create buckets"):
        fs.makedirs("s3://no-such-bucket", exist_ok=True)
    with pytest.raises(ConfigurationError, match="does not delete buckets"):
        fs.rmdir(bucket)


# Metadata, tags


def test_metadata_is_set_read_and_removed(fs, root):
    path = f"{root}/a"
    fs.pipe_file(path, b"abc", Metadata={"one": "1", "two": "2"}, ContentType="text/x-mine")
    assert fs.metadata(path) == {"one": "1", "two": "2"}
    assert fs.getxattr(path, "one") == "1"
    assert fs.getxattr(path, "none") is None
    fs.setxattr(path, copy_kwargs={"CacheControl": "no-cache"}, two=None, three_four="34")
    assert fs.metadata(path) == {"one": "1", "three-four": "34"}
    assert fs.getxattr(path, "three_four") == "34"
    assert fs.info(path)["ContentType"] == "text/x-mine"
    assert fs.cat_file(path) == b"abc"
    with fs.open(path) as file:
        assert file.metadata() == fs.metadata(path)
        assert file.getxattr("one") == "1"


def test_tags_are_set_and_merged(fs, root):
    path = f"{root}/a"
    fs.pipe_file(path, b"", Tagging="a=1&b=2")
    assert fs.get_tags(path) == {"a": "1", "b": "2"}
    fs.put_tags(path, {"b": "3", "c": "4"}, mode="m")
    assert fs.get_tags(path) == {"a": "1", "b": "3", "c": "4"}
    fs.put_tags(path, {"d": "5"})
    assert fs.get_tags(path) == {"d": "5"}
    with pytest.raises(ConfigurationError, match="mode must be"):
        fs.put_tags(path, {}, mode="x")


def test_objects_are_stored_and_copied_as_told(fs, root, tmp_path):
    stored = {"StorageClass": "STANDARD_IA", "ContentType": "text/x-mine", "Metadata": {"a": "1"}}
    (tmp_path / "local").write_bytes(b"abc")
    with fs.open(f"{root}/open", "wb", **stored) as file:
        file.write(b"abc")
    fs.pipe_file(f"{root}/pipe", b"abc", chunksize=5 * MIB, max_concurrency=3, **stored)
    fs.pipe({f"{root}/many": b"abc"}, **stored)
    fs.put_file(tmp_path / "local", f"{root}/put", **stored)
    fs.put(str(tmp_path / "local"), f"{root}/puts", **stored)
    fs.touch(f"{root}/touch", **stored)
    fs.pipe_file(f"{root}/plain", b"abc")
    fs.cp_file(f"{root}/plain", f"{root}/copy", preserve_etag=True, **stored)
    fs.copy(f"{root}/plain", f"{root}/copies", **stored)
    fs.mv(f"{root}/plain", f"{root}/moved", **stored)
    for name in ("open", "pipe", "many", "put", "puts", "touch", "copy", "copies", "moved"):
        entry = fs.info(f"{root}/{name}")
        assert (entry["StorageClass"], entry["ContentType"]) == ("STANDARD_IA", "text/x-mine"), name
        assert fs.metadata(f"{root}/{name}") == {"a": "1"}, name


@in_memory
def test_the_options_of_the_filesystem_are_those_of_all_objects(options, root):
    fs = S3FileSystem(
        s3_additional_kwargs={"StorageClass": "GLACIER_IR", "ACL": "bucket-owner-full-control"}, **options
    )
    fs.pipe_file(f"{root}/a", b"", StorageClass="STANDARD_IA")
    fs.pipe_file(f"{root}/b", b"")
    assert [entry["StorageClass"] for entry in fs.ls(root)] == ["STANDARD_IA", "GLACIER_IR"]
    store = MemoryStore.at(options["s3client_config"].endpoint)
    kept = [store._buckets["test-bucket"].objects[f"{root.partition('/')[2]}/{name}"] for name in "ab"]
    assert [one.options.acl for one in kept] == ["bucket-owner-full-control"] * 2


# URLs


@on_servers
def test_urls_read_and_store(fs, root):
    with urllib.request.urlopen(
        urllib.request.Request(
            fs.url(f"{root}/a b", client_method="put_object", expires=60),
            b"abc",
            {"Content-Type": "text/plain"},
            method="PUT",
        ),
        timeout=30,
    ):
        assert fs.cat_file(f"{root}/a b") == b"abc"
    with fs.open(f"{root}/a b") as file:
        urls = fs.sign(f"{root}/a b"), fs.sign(f"{root}/a b", expiration=60), file.url(expires=60)
    for url in urls:
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.read() == b"abc"
    with pytest.raises(ConfigurationError, match="client_method must be"):
        fs.url(f"{root}/a b", client_method="delete_object")


# Merging


@pytest.mark.parametrize("size", [5 * MIB, 3], ids=["within S3", "read and stored"])
def test_files_are_merged_in_order(fs, root, size):
    parts = {f"{root}/{name}": name.encode() * size for name in "bac"} | {f"{root}/e": b""}
    fs.pipe(parts)
    fs.merge(f"{root}/whole", list(parts), ContentType="text/x-mine")
    assert fs.cat_file(f"{root}/whole") == b"".join(parts.values())
    assert fs.info(f"{root}/whole")["ContentType"] == "text/x-mine"


# Versions


@pytest.fixture
def versioned(request, options, fs):
    """A bucket with two versions of ``d/a`` and one of ``d/e/b``, and the older version of the first."""
    if "endpoint_url" not in options:
        bucket = "versioned"
        MemoryStore.at(options["s3client_config"].endpoint).create_bucket(bucket, keeps_versions=True)
    else:
        moto = request.getfixturevalue("moto")
        bucket = moto.create_bucket()
        moto.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    fs.pipe_file(f"{bucket}/d/a", b"old")
    version = fs.info(f"{bucket}/d/a")["VersionId"]
    fs.pipe_file(f"{bucket}/d/a", b"newer")
    fs.pipe_file(f"{bucket}/d/e/b", b"b")
    return bucket, version


@pytest.mark.parametrize("options", ["memory", "moto"], indirect=True)
def test_paths_with_versions(options, fs, versioned, tmp_path):
    bucket, version = versioned
    aware = S3FileSystem(version_aware=True, **options)
    path, old = f"{bucket}/d/a", f"{bucket}/d/a?versionId={version}"
    assert aware.cat_file(old) == aware.cat(old) == aware.open(old).read() == b"old"
    assert aware.info(old)["size"] == aware.size(old) == 3
    assert aware.exists(old)
    assert aware.isfile(old)
    assert not aware.exists(f"{path}?versionId=00000000000000000000000000000000")
    aware.get_file(old, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"
    aware.copy(old, f"{bucket}/copy")
    assert aware.cat_file(f"{bucket}/copy") == b"old"
    names = aware.ls(f"{bucket}/d", detail=False, versions=True)
    assert f"{bucket}/d/e" in names
    assert old in names
    assert len(names) == 3
    found = aware.find(f"{bucket}/d", versions=True, detail=True)
    assert [entry["size"] for name, entry in found.items() if name.startswith(f"{path}?")] in ([3, 5], [5, 3])
    assert len(aware.ls(path, versions=True)) == 2
    told = aware.object_version_info(path)
    assert [(one["Size"], one["IsLatest"]) for one in told] == [(5, True), (3, False)]
    assert fs.object_version_info(path) == told
    aware.rm_file(old)
    assert not aware.exists(old)
    assert aware.cat_file(path) == b"newer"
    with pytest.raises(ConfigurationError, match="version_aware=True"):
        fs.ls(f"{bucket}/d", versions=True)
    with pytest.raises(ConfigurationError, match="another version"):
        aware.info(old, version_id="other")


@in_memory
def test_without_versions_a_path_is_exact(fs, root):
    fs.pipe_file(f"{root}/a?versionId=1", b"exact")
    assert fs.cat_file(f"{root}/a?versionId=1") == b"exact"
    assert S3FileSystem._get_kwargs_from_urls("s3://b/a?versionId=1") == {"version_aware": True}
    assert S3FileSystem._get_kwargs_from_urls("s3://b/a") == {}


def test_directories_that_are_not_empty_stay(fs, root):
    fs.pipe_file(f"{root}/d/a", b"")
    with pytest.raises(DirectoryNotEmptyError):
        fs.rmdir(f"{root}/d")

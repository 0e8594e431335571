"""What users of s3fs and fsspec are used to."""

from __future__ import annotations

import zipfile
from datetime import datetime

import fsspec
import pytest
from fsspec.generic import rsync
from packaging.version import Version

from s3torch.fsspec import S3FileSystem

on_a_server = pytest.mark.parametrize("options", ["seaweedfs"], indirect=True)


@pytest.fixture
def chained(options):
    """Storage options for URLs with several filesystems."""
    return {"s3": options}


@on_a_server
def test_a_filesystem_made_as_with_s3fs(options, root):
    fs = S3FileSystem(
        anon=False,
        key=options["key"],
        secret=options["secret"],
        use_ssl=False,
        client_kwargs={"endpoint_url": options["endpoint_url"], "region_name": options["region"]},
        config_kwargs={"s3": {"addressing_style": "path"}, "retries": {"max_attempts": 3}},
        s3_additional_kwargs={"ContentType": "text/x-mine"},
        default_block_size=2**20,
        default_fill_cache=False,
        default_cache_type="none",
        max_concurrency=5,
        cache_regions=False,
        requester_pays=False,
    )
    with fs.open(f"s3://{root}/a", "wb", block_size=5 * 2**20, acl=False) as file:
        file.write(b"abc")
    with fs.open(f"{root}/a", "rb", cache_type="readahead", fill_cache=True) as file:
        assert file.read(2) == b"ab"
    assert fs.info(f"{root}/a")["ContentType"] == "text/x-mine"


def test_the_other_names_of_methods(fs, root, tmp_path):
    fs.makedirs(f"{root}/d", exist_ok=True)
    fs.mkdirs(f"{root}/d", exist_ok=True)
    fs.write_bytes(f"{root}/d/a", b"abcdef")
    fs.write_text(f"{root}/d/t", "text")
    assert fs.read_bytes(f"{root}/d/a", 1, 3) == b"bc"
    assert fs.read_text(f"{root}/d/t") == "text"
    assert fs.head(f"{root}/d/a", 2) == b"ab"
    assert fs.tail(f"{root}/d/a", 2) == b"ef"
    assert fs.stat(f"{root}/d/a") == fs.info(f"{root}/d/a")
    assert sorted(fs.listdir(f"{root}/d", detail=False)) == [f"{root}/d/a", f"{root}/d/t"]
    assert fs.disk_usage(f"{root}/d") == 10
    assert fs.sizes([f"{root}/d/a", f"{root}/d/t"]) == [6, 4]
    fs.download(f"{root}/d/a", str(tmp_path / "a"))
    fs.upload(str(tmp_path / "a"), f"{root}/d/b", batch_size=3)
    fs.get(f"{root}/d", str(tmp_path / "all"), recursive=True, batch_size=3)
    assert (tmp_path / "all" / "b").read_bytes() == b"abcdef"
    fs.rename(f"{root}/d/b", f"{root}/d/c")
    fs.move(f"{root}/d/c", f"{root}/d/e")
    fs.cp(f"{root}/d/e", f"{root}/d/f")
    fs.delete(f"{root}/d/f")
    fs.rm(f"{root}/d/e", batch_size=100)
    entry = fs.ls(f"{root}/d", detail=True)[0]
    assert entry["Key"] == entry["name"] == f"{root}/d/a"
    assert isinstance(entry["LastModified"], datetime)
    assert fs.unstrip_protocol(f"{root}/d/a") == f"s3://{root}/d/a"
    assert fs.lexists(f"{root}/d/a")
    fs.touch(f"{root}/d/a", truncate=True)
    assert fs.size(f"{root}/d/a") == 0


def test_mappers(fs, root):
    mapper = fs.get_mapper(f"s3://{root}/m", create=True)
    mapper["a/b"] = b"1"
    mapper.setitems({"c": b"2", "d": b"3"})
    assert dict(mapper) == {"a/b": b"1", "c": b"2", "d": b"3"}
    assert mapper.getitems(["c", "none"], on_error="omit") == {"c": b"2"}
    assert "c" in mapper
    with pytest.raises(KeyError):
        mapper["none"]
    del mapper["c"]
    mapper.delitems(["d"])
    assert list(mapper) == ["a/b"]
    mapper.clear()
    assert list(mapper) == []


@pytest.mark.skipif(
    Version(fsspec.__version__) < Version("2026.9"), reason="fsspec itself leaves the local copy open"
)
def test_many_files_and_local_copies(fs, root, options, tmp_path):
    with fsspec.open_files(f"s3://{root}/part-*.txt", "wt", num=3, **options) as files:
        for number, file in enumerate(files):
            file.write(str(number))
    with fsspec.open_files(f"s3://{root}/part-*.txt", "rt", **options) as files:
        assert [file.read() for file in files] == ["0", "1", "2"]
    local = fsspec.open_local(
        f"simplecache::s3://{root}/part-1.txt", s3=options, simplecache={"cache_storage": str(tmp_path)}
    )
    with open(local) as file:  # noqa: PTH123
        assert file.read() == "1"
    assert len(fs.glob(f"{root}/part-?.txt")) == 3


def test_filesystems_on_this_one(fs, root, chained, options):
    with fs.open(f"{root}/a.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("inner.txt", "inside")
    with fsspec.open(f"zip://inner.txt::s3://{root}/a.zip", "rt", **chained) as file:
        assert file.read() == "inside"
    below = fsspec.filesystem("dir", path=root, fs=fs)
    below.pipe_file("x/y", b"1")
    assert below.find("") == ["a.zip", "x/y"]
    parts = {"data/0": [f"s3://{root}/a.zip", 0, 2], "data/1": [f"s3://{root}/x/y"], "data/2": "inline"}
    reference = fsspec.filesystem("reference", fo=parts, remote_protocol="s3", remote_options=options)
    assert reference.cat(["data/0", "data/1", "data/2"]) == {
        "data/0": b"PK",
        "data/1": b"1",
        "data/2": b"inline",
    }


@pytest.mark.skipif(
    Version(fsspec.__version__) < Version("2026.7"), reason="fsspec itself drops the storage options"
)
def test_a_tree_is_synchronised(fs, root, options, tmp_path):
    for name in ("a", "d/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    how = {"s3": options, "file": {"auto_mkdir": True}}
    rsync(
        f"file://{tmp_path}",
        f"s3://{root}/sync",
        inst_kwargs={"default_method": "options", "storage_options": how},
    )
    assert fs.find(f"{root}/sync") == [f"{root}/sync/a", f"{root}/sync/d/b"]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [(FileNotFoundError, "none"), (FileNotFoundError, "none/"), (IsADirectoryError, "")],
)
def test_errors_are_those_of_files(fs, root, kind, wrong):
    path = f"{root}/{wrong}" if wrong else root.partition("/")[0]
    with pytest.raises(kind):
        fs.cat_file(path)
    with pytest.raises(kind):
        fs.open(path).read()

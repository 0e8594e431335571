"""What others have put where files of this package go, and keys that would lead elsewhere."""

from __future__ import annotations

import os
from operator import methodcaller

import pytest

from s3torch.core import S3Client
from s3torch.datasets import DiskCache, S3IndexedTarDataset, S3MapDataset
from s3torch.datasets.sources._shared import SharedFolder

pytestmark = pytest.mark.promise(9)
FOLDER = "s3torch-cache-1"


@pytest.fixture
def cache(tmp_path):
    cache = DiskCache(tmp_path / "cache")
    cache.put("a", memoryview(b"data"))
    return cache


def entry_of(cache):
    (path,) = [path for path in cache.directory.rglob("*") if path.is_file() and len(path.parent.name) == 2]
    return path


def reopened(cache):
    return DiskCache(cache.directory)


@pytest.fixture
def as_somebody_else(monkeypatch):
    """What was made before belongs to another user from now on."""
    return lambda: monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


def test_nobody_else_can_look_into_a_cache(cache):
    for path in [cache.directory, *cache.directory.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_cache_of_an_older_release_is_closed_to_others(cache):
    (cache.directory / FOLDER).chmod(0o775)
    assert bytes(reopened(cache).get("a", 4)) == b"data"
    assert (cache.directory / FOLDER).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("plant", [os.symlink, lambda target, path: os.mkfifo(path)], ids=["link", "fifo"])
def test_an_entry_that_is_no_file_is_not_read_and_is_replaced(cache, tmp_path, plant):
    path = entry_of(cache)
    moved = path.rename(tmp_path / "elsewhere")
    plant(moved, path)
    cache = reopened(cache)
    assert cache.get("a", 4) is None
    cache.put("a", memoryview(b"data"))
    assert bytes(cache.get("a", 4)) == b"data"
    assert path.is_file()
    assert not path.is_symlink()


@pytest.mark.parametrize("name", ["root", "entries"])
def test_a_folder_that_is_a_link_is_not_used(cache, tmp_path, name, caplog):
    path = cache.directory / FOLDER if name == "root" else entry_of(cache).parent
    elsewhere = path.rename(tmp_path / "elsewhere")
    path.symlink_to(elsewhere)
    cache = reopened(cache)
    if name == "root":
        assert cache.get("a", 4) is None
        before = sorted(elsewhere.rglob("*"))
    else:
        (elsewhere / entry_of_name(elsewhere)).unlink()
        before = []
    cache.put("a", memoryview(b"data"))
    assert sorted(elsewhere.rglob("*")) == before
    assert "cannot be used" in caplog.text


def entry_of_name(folder):
    (path,) = folder.iterdir()
    return path.name


def test_a_cache_of_somebody_else_is_not_used(cache, as_somebody_else, memory, fill, caplog):
    fill("a")
    as_somebody_else()
    before = entry_of(cache).stat()
    dataset = S3MapDataset.from_prefix(
        "s3://data/", s3client_config=memory, transform=methodcaller("read"), cache_dir=cache.directory
    )
    assert list(dataset) == [b"a"]
    assert entry_of(cache).stat() == before
    assert "belongs to another user" in caplog.text


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_an_entry_of_somebody_else_is_not_served(cache):
    os.chown(entry_of(cache), 12345, 12345)
    cache = reopened(cache)
    assert cache.get("a", 4) is None
    cache.put("a", memoryview(b"data"))
    assert bytes(cache.get("a", 4)) == b"data"


def test_a_link_in_the_folder_of_ranks_is_not_followed(tmp_path):
    folder = SharedFolder()
    with folder.locked("listing.lock"):
        pass
    target = tmp_path / "target"
    (folder.path / "other.lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"), folder.locked("other.lock"):
        pass
    assert not target.exists()


ODD_KEYS = ["../../up.tar", "/root.tar", "a//b.tar", "./dot.tar", "long/" + "x" * 300 + ".tar"]


@pytest.mark.parametrize("key", ["plain/a.tar", *ODD_KEYS])
def test_an_index_stays_in_its_folder(tmp_path, memory, make_tar, key):
    place = tmp_path / "in" / "indexes"
    with S3Client(s3client_config=memory) as client, client.put_object("data", key) as writer:
        writer.write(make_tar([("1.txt", b"one")]))

    def dataset():
        return S3IndexedTarDataset.from_objects(
            f"s3://data/{key}", s3client_config=memory, index_location=place, save_indexes=True
        )

    assert dataset()[0]["txt"] == b"one"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if not path.is_relative_to(place)] == []
    assert len(files) == 1
    assert [path for path in place.rglob("*") if path.stat().st_mode & 0o077] == []
    assert (place / "data/plain/a.tar.index.json").exists() == (key == "plain/a.tar")
    # It is found again.
    before = files[0].stat()
    assert dataset()[0]["txt"] == b"one"
    assert files[0].stat() == before


@pytest.mark.parametrize("plant", ["link", "folder", "fifo"])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path, memory, make_tar, plant):
    with S3Client(s3client_config=memory) as client, client.put_object("data", "a.tar") as writer:
        writer.write(make_tar([("1.txt", b"one")]))
    place, elsewhere = tmp_path / "indexes", tmp_path / "elsewhere"
    (place / "data").mkdir(parents=True)
    elsewhere.mkdir()
    if plant == "folder":
        (place / "data").rmdir()
        (place / "data").symlink_to(elsewhere)
    elif plant == "link":
        (place / "data/a.tar.index.json").symlink_to(elsewhere / "file")
    else:
        os.mkfifo(place / "data/a.tar.index.json")
    dataset = S3IndexedTarDataset.from_prefix(
        "s3://data/", s3client_config=memory, index_location=place, save_indexes=True
    )
    with pytest.raises(OSError, match=r"data"):
        dataset[0]
    assert list(elsewhere.iterdir()) == []

"""Locks between processes, some of which are forked while a lock is held."""

from __future__ import annotations

import fcntl
from multiprocessing import get_context

import pytest

from s3torch.core import S3BucketKeyData
from s3torch.datasets._cache import DiskCache
from s3torch.datasets._private_files import PrivateFolder
from s3torch.datasets.sources._shared import SharedFolder, shared_pages


@pytest.fixture
def forked():
    """Forks a child that lives until the test ends, with all that is open now."""
    context = get_context("fork")
    end = context.Event()
    children = []

    def fork():
        child = context.Process(target=end.wait)
        child.start()
        children.append(child)

    yield fork
    end.set()
    for child in children:
        child.join()


def is_free(path):
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_lock_is_held(tmp_path):
    path, folder = tmp_path / "lock", PrivateFolder.open(tmp_path)
    with folder.locked("lock"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert not is_free(path)
    assert is_free(path)
    with pytest.raises(LookupError), folder.locked("lock"):
        raise LookupError
    assert is_free(path)


def test_a_child_that_is_forked_meanwhile_does_not_keep_a_lock(tmp_path, forked):
    with PrivateFolder.open(tmp_path).locked("lock"):
        forked()
    assert is_free(tmp_path / "lock")


def test_a_child_does_not_keep_the_lock_of_a_cache(tmp_path, forked):
    cache = DiskCache(tmp_path)
    cache.put("name", memoryview(b"data"))
    with PrivateFolder.open(tmp_path / "s3torch-cache-1").locked("lock"):
        forked()
    assert all(is_free(path) for path in tmp_path.rglob("lock"))
    cache.put("other", memoryview(b"data"))
    assert cache.usage().entries == 2


def test_a_child_does_not_keep_the_lock_of_a_listing(forked):
    folder = SharedFolder()
    with folder.locked("listing.lock"):
        forked()
    assert is_free(folder.path / "listing.lock")


class Pages:
    """A source of two pages."""

    def page(self, client, cursor):
        return [S3BucketKeyData("data", cursor or "0")], "1" if cursor is None else None


def test_a_child_does_not_keep_the_pages_of_an_epoch(forked):
    folder = SharedFolder()
    first = shared_pages(folder, "1", Pages(), None)
    next(first)
    forked()
    first.close()
    next(shared_pages(folder, "2", Pages(), None))
    assert [path.name for path in folder.path.glob("pages-*")] == ["pages-2"]

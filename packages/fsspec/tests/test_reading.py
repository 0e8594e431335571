"""Files that are read: what fsspec's buffered files have, and the caches that fsspec puts before them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from threading import Thread

import fsspec
import pytest

from s3torch.core import ConfigurationError
from s3torch.fsspec import S3FileSystem
from s3torch.testing import FaultProxy

DATA = bytes(range(256)) * 64

in_memory = pytest.mark.parametrize("options", ["memory"], indirect=True)


@pytest.fixture
def path(fs, root):
    fs.pipe_file(f"{root}/a", DATA)
    return f"{root}/a"


def test_what_files_tell_of_themselves(fs, path):
    with fs.open(f"s3://{path}") as file:
        assert file.fs is fs
        assert (file.path, file.mode, file.full_name) == (path, "rb", f"s3://{path}")
        assert file.size == len(DATA)
        assert file.details["ETag"] == file.info()["ETag"] == file.etag
        assert file.blocksize == 8 * 2**20
        assert file.read(3) == DATA[:3]
        assert file.loc == file.tell() == 3
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        assert file.peek(4)[:4] == DATA[3:7]
        assert file.tell() == 3
        assert file.readuntil(b"\x10") == DATA[3:17]
        assert file.readuntil(b"\x12\x13", blocks=1) == DATA[17:20]
        assert file.readuntil(b"none") == DATA[20:]
        assert file.key == path.partition("/")[2]
    assert file.closed
    with fs.open(path, block_size=100) as file:
        assert file.blocksize == 100
    with fs.open(f"{path}2", "wb") as file:
        file.write(b"abc")
        file.flush(force=True)
        assert (file.fs, file.mode, file.loc, file.size, file.blocksize) == (fs, "wb", 3, 3, 8 * 2**20)
        assert not fs.exists(f"{path}2")


@in_memory
def test_a_size_ends_the_file(fs, path):
    with fs.open(path, size=2) as file:
        assert file.read() == DATA[:2]
        assert file.read() == b""
        assert file.size == 2
        assert file.seek(-1, 2) == 1
        buffer = bytearray(5)
        assert file.readinto(buffer) == 1
        assert buffer[:1] == DATA[1:2]
        file.seek(0)
        assert file.readlines() == [DATA[:2]]
    with fs.open(path, size=len(DATA)) as file:
        assert file.read1(3) == DATA[:3]
        assert file.read() == DATA[3:]
    other = pickle.loads(pickle.dumps(fs.open(path, size=2)))
    assert other.read() == DATA[:2]


@in_memory
def test_the_block_size_of_the_filesystem(options, path):
    fs = S3FileSystem(default_block_size=1000, default_cache_type="none", **options)
    with fs.open(path) as file:
        assert file.blocksize == 1000
        assert file.read(5) == DATA[:5]


def test_known_ranges_are_not_read_again(seaweedfs, buckets):
    with FaultProxy(seaweedfs.endpoint) as proxy:
        fs = S3FileSystem(
            seaweedfs.region, endpoint=proxy.endpoint, key=seaweedfs.access_key, secret=seaweedfs.secret_key
        )
        path = f"{buckets[seaweedfs.endpoint]}/known"
        fs.pipe_file(path, DATA)
        proxy.clear()
        known = {"data": {(0, 100): DATA[:100], (200, 300): DATA[200:300]}}
        with fs.open(path, cache_type="parts", cache_options=known, size=len(DATA)) as file:
            assert file.read(10) == DATA[:10]
            file.seek(210)
            assert file.read(20) == DATA[210:230]
            assert proxy.requests() == []
            file.seek(1000)
            assert file.read(5) == DATA[1000:1005]
        assert [request.method for request in proxy.requests()] == ["GET"]
        with pytest.raises(ConfigurationError, match="data"):
            fs.open(path, cache_type="parts")


# fsspec does not close the file that it maps into memory.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("protocol", ["blockcache", "filecache", "simplecache"])
def test_caches_of_fsspec(options, fs, path, tmp_path, protocol):
    chained = {"s3": options, protocol: {"cache_storage": str(tmp_path / "cache")}}
    if protocol == "blockcache":
        chained["s3"] = {**options, "default_block_size": 1000}
    url = f"{protocol}::s3://{path}"
    with fsspec.open(url, **chained) as file:
        assert file.read(10) == DATA[:10]
        file.seek(-5, 2)
        assert file.read() == DATA[-5:]
    assert any((tmp_path / "cache").iterdir())
    with fsspec.open(url, **chained) as file:
        assert file.read() == DATA
    with fsspec.open(url, "rb", **chained) as file:
        assert list(file) == DATA.splitlines(keepends=True) or b"".join(file) == b""
    if protocol != "blockcache":
        with fsspec.open(f"{protocol}::s3://{path}-new", "wb", **chained) as file:
            file.write(b"new")
        assert fs.cat_file(f"{path}-new") == b"new"
    cached = fsspec.filesystem(protocol, target_protocol="s3", target_options=options)
    assert cached.cat_file(path) == DATA
    assert cached.ls(path.rpartition("/")[0], detail=False)[0] == path


# New environments


def test_a_new_environment_makes_a_new_client(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    before = fsspec.filesystem("s3")
    assert fsspec.filesystem("s3") is before
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    after = fsspec.filesystem("s3")
    assert after is not before
    assert after.client is not before.client
    found = []
    thread = Thread(target=lambda: found.append(fsspec.filesystem("s3").client))
    thread.start()
    thread.join()
    assert found == [after.client]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert fsspec.filesystem("s3") is before
    S3FileSystem.clear_instance_cache()


@in_memory
def test_listings_live_as_long_as_they_are_told_to(options, root, monkeypatch):
    fs = S3FileSystem(use_listings_cache=True, listings_expiry_time=60, **options)
    fs.pipe_file(f"{root}/a", b"")
    clock = [1000.0]
    monkeypatch.setattr("fsspec.dircache.time.time", lambda: clock[0])
    assert fs.ls(root, detail=False) == [f"{root}/a"]
    fs.client.copy_object(*f"{root}/a".split("/", 1), *f"{root}/b".split("/", 1))
    clock[0] += 59
    assert fs.ls(root, detail=False) == [f"{root}/a"]
    clock[0] += 2
    assert fs.ls(root, detail=False) == [f"{root}/a", f"{root}/b"]
    fs.client.delete_object(*f"{root}/a".split("/", 1))
    fs.invalidate_cache(f"{root}/other")
    assert fs.ls(root, detail=False) == [f"{root}/b"]
    fs.client.delete_object(*f"{root}/b".split("/", 1))
    fs.invalidate_cache()
    with pytest.raises(FileNotFoundError):
        fs.ls(root)


# The first function that is registered runs last, and ends the process at once.
ENDS_AT_ONCE = """
import atexit, os, threading, time
atexit.register(os._exit, 0)
import pyarrow
import s3torch.fsspec

def drop():
    has_read.wait()
    time.sleep(0.01)
    os.write(1, b"dropped")

has_read = threading.Event()
threading.Thread(target=drop, daemon=True).start()
has_read.set()
"""


def test_threads_of_pyarrow_drop_their_files_before_the_interpreter_ends():
    pytest.importorskip("pyarrow")
    done = subprocess.run([sys.executable, "-c", ENDS_AT_ONCE], capture_output=True, check=True, timeout=60)
    assert done.stdout == b"dropped"

"""The cache on disk: what is in it, who may use it, and what happens when it breaks."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from operator import methodcaller

import pytest

from s3torch.core import Credentials, S3Client, S3ClientConfig, S3ReaderConstructor
from s3torch.core.errors import ConfigurationError, ObjectChangedError
from s3torch.datasets import S3IndexedTarDataset, S3IterableDataset, S3MapDataset, S3ShardDataset
from s3torch.datasets._cache import CachedReaders, CacheUsage, DiskCache
from s3torch.testing import Fault

OVERHEAD = 20


def files_of(cache):
    return [path for path in cache.directory.rglob("*") if path.is_file() and len(path.parent.name) == 2]


def view(data):
    return memoryview(data)


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache")


def test_what_was_put_is_got(cache):
    assert cache.get("a", 4) is None
    cache.put("a", view(b"data"))
    target = bytearray(6)
    assert bytes(cache.get("a", 4, view(target))) == b"data"
    assert target == b"data\0\0"
    other = pickle.loads(pickle.dumps(cache))
    assert bytes(other.get("a", 4)) == b"data"
    assert other.get("b", 4) is None
    assert cache.usage() == CacheUsage(1, 4 + OVERHEAD)
    cache.clear()
    assert (cache.get("a", 4), cache.usage()) == (None, CacheUsage(0, 0))
    cache.put("a", view(b"data"))
    assert bytes(cache.get("a", 4)) == b"data"


@pytest.mark.parametrize("damage", ["cut", "flip", "append", "empty", "swap"])
def test_a_damaged_entry_is_none(cache, damage, caplog):
    cache.put("a", view(b"data" * 100))
    (path,) = files_of(cache)
    content = path.read_bytes()
    if damage == "swap":
        cache.put("b", view(b"atad" * 100))
        (other,) = set(files_of(cache)) - {path}
        path.write_bytes(other.read_bytes())
    else:
        path.write_bytes(
            {
                "cut": content[:-1],
                "flip": content[:7] + b"?" + content[8:],
                "append": b"x" + content,
                "empty": b"",
            }[damage]
        )
    assert cache.get("a", 400) is None
    assert "damaged" in caplog.text
    assert not path.exists()


def test_another_length_is_none(cache):
    cache.put("a", view(b"data"))
    assert cache.get("a", 3) is None


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    cache = DiskCache(tmp_path, limit=10 * (100 + OVERHEAD))
    for number in range(10):
        cache.put(str(number), view(bytes([number]) * 100))
        (path,) = [path for path in files_of(cache) if path.read_bytes()[0] == number]
        os.utime(path, ns=(number, number))
    assert cache.usage().entries == 10
    assert cache.get("0", 100) is not None
    cache.put("10", view(b"\x0a" * 100))
    left = {number for number in range(11) if cache.get(str(number), 100)}
    assert left == {0, 3, 4, 5, 6, 7, 8, 9, 10}
    cache.put("large", view(bytes(2000)))
    assert cache.get("large", 2000) is None
    for number in range(100, 150):
        cache.put(str(number), view(bytes(100)))
        assert cache.usage().bytes <= cache.limit
    with pytest.raises(ConfigurationError):
        DiskCache(tmp_path, limit=0)


def _hammer(cache, seed):
    for turn in range(300):
        number = (turn * 7 + seed) % 40
        name, data = f"n{number}", bytes([number]) * (500 + number)
        found = cache.get(name, len(data))
        if found is None:
            cache.put(name, view(data))
        elif bytes(found) != data:
            return False
        if turn == 150 and seed == 3:
            cache.clear()
    return True


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_many_at_once(tmp_path, pool):
    cache = DiskCache(tmp_path, limit=12_000)
    if pool == "threads":
        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(_hammer, [cache] * 4, range(4)))
    else:
        with get_context("fork").Pool(4) as processes:
            assert all(processes.starmap(_hammer, [(cache, seed) for seed in range(4)]))
    assert 0 < cache.usage().bytes <= 12_000
    assert int((tmp_path / "s3torch-cache-1" / "usage").read_text()) >= cache.usage().bytes


KILLED = """
import os, signal, sys
from s3torch.datasets._cache import DiskCache

cache = DiskCache(sys.argv[1])
write, written = os.write, 0

def dying(file, data):
    global written
    count = write(file, data[:1000])
    written += count
    if written > 5000:
        os.kill(os.getpid(), signal.SIGKILL)
    return count

os.write = dying
cache.put("a", memoryview(bytes(100_000)))
"""


def test_a_process_that_dies_while_it_stores_leaves_nothing_that_is_seen(tmp_path):
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert run.returncode == -signal.SIGKILL
    cache = DiskCache(tmp_path)
    assert (cache.get("a", 100_000), cache.usage().entries) == (None, 0)
    (left,) = (tmp_path / "s3torch-cache-1" / "new").iterdir()
    assert left.stat().st_size > 5000
    # It is removed once it is too old to be that of a process which has just begun.
    os.utime(left, (0, 0))
    cache.put("a", view(bytes(100_000)))
    assert not left.exists()
    assert cache.get("a", 100_000) is not None


def test_a_full_disk_is_told_once_and_reading_goes_on(cache, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        cache.put("a", view(bytes(10_000)))
        cache.put("b", view(bytes(10_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caplog.text.count("cannot be used") == 1
    assert cache.usage().entries == 0
    assert list((cache.directory / "s3torch-cache-1" / "new").iterdir()) == []


def test_a_folder_that_is_none_is_told_once(tmp_path, memory, fill, caplog):
    fill("a", "b")
    (tmp_path / "file").write_text("not a folder")
    readers = CachedReaders(DiskCache(tmp_path / "file"))
    dataset = S3MapDataset.from_prefix(
        "s3://data/",
        region="us-east-1",
        s3client_config=memory,
        transform=methodcaller("read"),
        reader_constructor=readers,
    )
    assert list(dataset) == [b"a", b"b"]
    assert caplog.text.count("cannot be used") == 1


def test_a_new_etag_is_another_entry(tmp_path, memory, fill):
    fill("a")
    readers = CachedReaders(DiskCache(tmp_path))

    def dataset():
        return S3MapDataset.from_prefix(
            "s3://data/",
            region="us-east-1",
            s3client_config=memory,
            transform=methodcaller("read"),
            reader_constructor=readers,
        )

    first = dataset()
    assert first[0] == b"a"
    with S3Client(s3client_config=memory) as client, client.put_object("data", "a") as writer:
        writer.write(b"b")
    # Whoever has the old listing reads the old object, as long as the cache has it.
    assert first[0] == b"a"
    assert dataset()[0] == b"b"
    readers.cache.clear()
    with pytest.raises(ObjectChangedError):
        first[0]


@pytest.mark.parametrize("kind", ["map", "iterable", "stream", "indexed", "parquet", "range_based"])
def test_the_second_epoch_asks_s3_nothing(tmp_path, seaweedfs, server, fault_proxy, make_tar, kind):
    bucket = seaweedfs.create_bucket()
    client = seaweedfs.client()
    for number in range(3):
        data = make_tar([(f"{number}-{index}.txt", bytes([index]) * 3000) for index in range(4)])
        if kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            sink = pa.BufferOutputStream()
            pq.write_table(pa.table({"a": [number, 2, 3]}), sink)
            data = sink.getvalue().to_pybytes()
        client.put_object(
            Bucket=bucket, Key=f"{number}.{'parquet' if kind == 'parquet' else 'tar'}", Body=data
        )
    client.close()
    proxy = fault_proxy(seaweedfs)
    options = {"region": seaweedfs.region, "endpoint": proxy.endpoint}
    cls = {"iterable": S3IterableDataset, "indexed": S3IndexedTarDataset}.get(kind, S3ShardDataset)
    cls = S3MapDataset if kind in {"map", "range_based"} else cls
    options |= {"cache_dir": tmp_path, "cache_limit": 10**9}
    if cls in {S3MapDataset, S3IterableDataset}:
        options["transform"] = methodcaller("read")
    if kind == "range_based":
        options["reader_constructor"] = S3ReaderConstructor.range_based()
    dataset = cls.from_prefix(f"s3://{bucket}/", **options)
    first = list(dataset)
    before = len(proxy.requests("GET", key=None))
    objects = [request for request in proxy.requests("GET") if request.key]
    assert list(dataset) == first
    assert [request for request in proxy.requests("GET") if request.key] == objects
    # The iterable dataset lists for each epoch.
    assert len(proxy.requests()) - before <= 1 if kind == "iterable" else True
    dataset.close()


def test_a_limit_needs_a_folder(memory):
    with pytest.raises(ConfigurationError, match="cache_limit needs cache_dir"):
        S3ShardDataset.from_prefix("s3://data/", s3client_config=memory, cache_limit=10)


def test_the_kind_is_told_to_s3(cache):
    assert S3ReaderConstructor.get_reader_type_string(CachedReaders(cache)) == "disk_cache"


@pytest.mark.promise(2)
@pytest.mark.parametrize("size", [100_000, 20 * 2**20])
def test_bytes_that_flipped_on_the_way_are_not_kept(cache, seaweedfs, fault_proxy, size):
    bucket = seaweedfs.create_bucket()
    data = os.urandom(1000) * (size // 1000)
    seaweedfs.client().put_object(Bucket=bucket, Key="k", Body=data, ChecksumAlgorithm="CRC64NVME")
    proxy = fault_proxy(seaweedfs)
    config = S3ClientConfig(
        transport="http", credentials=lambda: Credentials(seaweedfs.access_key, seaweedfs.secret_key)
    )
    with S3Client(seaweedfs.region, endpoint=proxy.endpoint, s3client_config=config) as client:
        read = CachedReaders(cache)
        (info,) = next(iter(client.list_objects(bucket))).object_info
        rule = proxy.add(Fault.flip(50_000), method="GET", key="k", times=1)
        for _ in range(2):
            source = client.open_ranges(bucket, "k", object_info=info)
            assert read(source).read() == data
        assert rule.hits == 1
        gets = len(proxy.requests("GET", key="k"))
        assert read(client.open_ranges(bucket, "k", object_info=info)).read() == data
        assert len(proxy.requests("GET", key="k")) == gets

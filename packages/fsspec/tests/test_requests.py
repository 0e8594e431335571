"""How many requests each operation takes."""

from __future__ import annotations

import pytest

from s3torch.fsspec import S3FileSystem
from s3torch.testing import FaultProxy


@pytest.fixture(scope="module")
def proxy(seaweedfs):
    with FaultProxy(seaweedfs.endpoint) as proxy:
        yield proxy


@pytest.fixture
def fs(seaweedfs, proxy):
    yield S3FileSystem(
        seaweedfs.region, endpoint=proxy.endpoint, key=seaweedfs.access_key, secret=seaweedfs.secret_key
    )
    S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda fs, root: fs.pipe_file(f"{root}/new", b"1"), ["PUT"]),
        (lambda fs, root: fs.cat_file(f"{root}/d/a"), ["GET"]),
        (lambda fs, root: fs.cat_file(f"{root}/d/a", 1, 3), ["GET"]),
        (lambda fs, root: fs.cat_ranges([f"{root}/d/a"] * 3, [0, 1, 2], [1, 2, 3]), ["GET"] * 3),
        (lambda fs, root: fs.open(f"{root}/d/a").read(2), ["GET"]),
        (lambda fs, root: fs.open(f"{root}/d/a").size, ["HEAD"]),
        (lambda fs, root: fs.open(f"{root}/x", "xb").discard(), ["HEAD"]),
        (lambda fs, root: fs.ls(""), ["GET"]),
        (lambda fs, root: fs.url(f"{root}/d/a"), []),
        (lambda fs, root: fs.metadata(f"{root}/d/a"), ["HEAD"]),
        (lambda fs, root: fs.put_tags(f"{root}/d/a", {"a": "1"}), ["PUT"]),
        (lambda fs, root: fs.open(f"{root}/d/a"), []),
        (lambda fs, root: fs.exists(f"{root}/d/a"), ["HEAD"]),
        (lambda fs, root: fs.isfile(f"{root}/d/a"), ["HEAD"]),
        (lambda fs, root: fs.isdir(f"{root}/d"), ["GET"]),
        (lambda fs, root: fs.ls(f"{root}/d"), ["GET"]),
        (lambda fs, root: fs.find(root, withdirs=True), ["GET"]),
        (lambda fs, root: fs.du(root), ["GET"]),
        (lambda fs, root: fs.makedirs(f"{root}/e", exist_ok=True), []),
        (lambda fs, root: fs.cp_file(f"{root}/d/a", f"{root}/copy"), ["PUT"]),
        # The listing; whether d is an object, too; whether e is a directory.
        (
            lambda fs, root: fs.cp(f"{root}/d", f"{root}/e", recursive=True),
            ["GET", "HEAD", "GET", "PUT", "PUT"],
        ),
        (lambda fs, root: fs.mv(f"{root}/d/a", f"{root}/b"), ["HEAD", "GET", "PUT", "DELETE"]),
        (lambda fs, root: fs.rm_file(f"{root}/d/a"), ["DELETE"]),
        (lambda fs, root: fs.rm(root, recursive=True), ["GET", "POST"]),
    ],
)
def test_requests(fs, proxy, seaweedfs, buckets, operation, expected, request):
    root = f"{buckets[seaweedfs.endpoint]}/{request.node.name.encode().hex()}"
    fs.pipe({f"{root}/d/a": b"abcd", f"{root}/d/b": b""})
    proxy.clear()
    operation(fs, root)
    assert [seen.method for seen in proxy.requests()] == expected


def test_the_parts_of_a_local_file_are_equal(fs, proxy, seaweedfs, buckets, tmp_path, monkeypatch):
    monkeypatch.setattr("s3torch.core.ranges._PARTS_PER_DOUBLING", 1)
    (tmp_path / "file").write_bytes(bytes(32 * 2**20 + 1))
    proxy.clear()
    fs.put_file(str(tmp_path / "file"), f"{buckets[seaweedfs.endpoint]}/of-parts")
    sizes = [request.request_bytes for request in proxy.requests("PUT")]
    assert sorted(sizes) == [1, *[8 * 2**20] * 4]

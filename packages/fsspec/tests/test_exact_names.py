"""Names are exact, and no command touches another one than it was told."""

from __future__ import annotations

import fsspec
import pytest

from s3torch.core import ConfigurationError, S3ClientConfig, S3Error
from s3torch.testing import Fault

pytestmark = pytest.mark.promise(9)

# SeaweedFS is a file system below: it cannot have all of these keys.
on_exact_stores = pytest.mark.parametrize("options", ["memory", "moto"], indirect=True)

KEYS = (
    "data",
    "data/",
    "data/x",
    "data//x",
    "data///",
    "d[1]",
    "d1",
    "dstar",
    "d*",
    "q?",
    "qa",
    "/lead",
    "end//",
)


@pytest.fixture
def names(fs, root):
    """All of these keys; the content of each is its name."""
    for key in KEYS:
        fs.pipe_file(f"{root}/{key}", key.encode())
    return root


def keys(fs, root):
    """What is stored, by the client itself."""
    bucket, _, prefix = root.partition("/")
    pages = fs.client.list_objects(bucket, f"{prefix}/")
    return {info.key.removeprefix(f"{prefix}/") for page in pages for info in page.object_info}


@on_exact_stores
def test_every_key_is_read_by_its_name(fs, names):
    assert keys(fs, names) == set(KEYS)
    for key in KEYS:
        path = f"{names}/{key}"
        assert fs.cat_file(path) == key.encode()
        assert fs.cat(path) == key.encode()
        assert fs.isfile(path)
        assert fs.info(path)["name"] == path
        with fs.open(path, "rb") as file:
            assert file.read() == key.encode()
    found = fs.find(names)
    assert found == sorted(f"{names}/{key}" for key in KEYS)
    assert fs.cat(found) == {path: path.removeprefix(f"{names}/").encode() for path in found}
    assert fs.du(names) == sum(map(len, KEYS))


@on_exact_stores
def test_walk_ls_and_find_see_every_name_once(fs, names):
    walked = [
        (directory.removeprefix(names), entry["name"])
        for directory, _, files in fs.walk(names, detail=True)
        for entry in files.values()
    ]
    assert sorted(name for _, name in walked) == fs.find(names)
    assert fs.find(names, maxdepth=9) == fs.find(names)
    assert ("/data//", f"{names}/data//x") in walked
    for directory, directories, _ in fs.walk(names, detail=True):
        for entry in directories.values():
            assert entry in fs.ls(directory)
            assert fs._parent(entry["name"]) == directory
    assert fs.ls(f"{names}/data//", detail=False) == [f"{names}/data///", f"{names}/data//x"]


@on_exact_stores
@pytest.mark.parametrize("key", KEYS)
def test_writing_and_removing_one_key_leaves_the_others(fs, names, key):
    path = f"{names}/{key}"
    for write in (fs.pipe_file, fs.pipe):
        write(path, b"new")
        assert {name for name in KEYS if fs.cat_file(f"{names}/{name}") == b"new"} == {key}
    fs.touch(path)
    assert fs.size(path) == 0 or key.endswith("/")
    fs.rm(path)
    assert keys(fs, names) == set(KEYS) - {key}


@on_exact_stores
def test_removal_of_a_directory_leaves_the_file_of_its_name(fs, names):
    fs.rm(f"{names}/data/", recursive=True)
    assert {key for key in keys(fs, names) if key.startswith("data")} == {"data"}
    assert fs.cat_file(f"{names}/data") == b"data"
    with pytest.raises(FileNotFoundError):
        fs.rm(f"{names}/data/", recursive=True)
    fs.rm(f"{names}/data", recursive=True)
    assert not fs.exists(f"{names}/data")


@on_exact_stores
def test_a_pattern_is_a_pattern_where_no_such_key_is(fs, names):
    fs.rm(f"{names}/d[1]")
    assert fs.exists(f"{names}/d1")
    fs.rm(f"{names}/d[1]")
    assert not fs.exists(f"{names}/d1")
    assert fs.cat(f"{names}/qa") == b"qa"
    fs.copy(f"{names}/q?", f"{names}/copy")
    assert fs.cat(f"{names}/copy") == b"q?"


@on_exact_stores
def test_downloads_never_share_a_file(fs, root, tmp_path):
    for key in ("t/a//b", "t/a/b"):
        fs.pipe_file(f"{root}/{key}", key.encode())
    with pytest.raises(ConfigurationError, match="would both become"):
        fs.get(f"{root}/t", str(tmp_path / "one"), recursive=True)
    assert not (tmp_path / "one").exists()
    fs.pipe_file(f"{root}/up/../../outside", b"")
    with pytest.raises(ConfigurationError, match="outside"):
        fs.get(f"{root}/up", str(tmp_path / "two"), recursive=True)
    assert list(tmp_path.iterdir()) == []


@on_exact_stores
def test_a_download_of_a_file_that_is_also_a_folder_does_not_begin(fs, root, tmp_path):
    for key in ("t/a", "t/a/b", "t/c"):
        fs.pipe_file(f"{root}/{key}", key.encode())
    with pytest.raises(ConfigurationError, match="cannot be the file"):
        fs.get(f"{root}/t", str(tmp_path / "one"), recursive=True)
    with pytest.raises(ConfigurationError, match="cannot be the file"):
        fs.get([f"{root}/t/a", f"{root}/t/c"], [str(tmp_path / "two"), str(tmp_path / "two" / "c")])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_leaves_the_file_of_before(fs, root, tmp_path, monkeypatch):
    fs.pipe_file(f"{root}/a", b"new")
    (tmp_path / "a").write_bytes(b"good")

    class Full:
        def relative_update(self, count):
            raise OSError(28, "No space left on device")

        def set_size(self, size):
            pass

    with pytest.raises(OSError, match="No space"):
        fs.get_file(f"{root}/a", tmp_path / "a", callback=Full())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"good"]


# Moves


@pytest.fixture
def tree(fs, root):
    for key in ("d/a", "d/e/b", "d/e/f/c", "other"):
        fs.pipe_file(f"{root}/{key}", key.encode())
    return root


def contents(fs, root):
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}


@pytest.mark.parametrize(
    ("source", "target"),
    [("d", "d"), ("d", "s3://{}/d"), ("d/", "d/"), ("d/a", "d/a"), ("d/a", "d/"), ("d", "")],
)
def test_a_move_to_the_same_place_loses_nothing(fs, tree, source, target):
    before = contents(fs, tree)
    fs.mv(f"{tree}/{source}", target.format(tree) if "{" in target else f"{tree}/{target}", recursive=True)
    assert contents(fs, tree) == before


@pytest.mark.parametrize("target", ["d/e", "d/e/", "d/new", "d/e/f/g"])
def test_a_move_below_itself_loses_nothing(fs, tree, target):
    before = contents(fs, tree)
    try:
        fs.mv(f"{tree}/d", f"{tree}/{target}", recursive=True)
    except ConfigurationError:
        assert contents(fs, tree) == before
    assert sorted(contents(fs, tree).values()) == sorted(before.values())


def test_a_move_down_to_a_depth_removes_what_it_copied(fs, tree):
    fs.mv(f"{tree}/d", f"{tree}/n", recursive=True, maxdepth=2)
    assert contents(fs, tree) == {"d/e/f/c": b"d/e/f/c", "n/a": b"d/a", "n/e/b": b"d/e/b", "other": b"other"}


def test_a_directory_is_moved_on_request_only(fs, tree):
    before = contents(fs, tree)
    with pytest.raises(IsADirectoryError, match="recursive"):
        fs.mv(f"{tree}/d", f"{tree}/n")
    assert contents(fs, tree) == before


def test_moves_that_would_make_one_of_two_are_refused(fs, tree):
    before = contents(fs, tree)
    fs.pipe_file(f"{tree}/g/a", b"other a")
    with pytest.raises(ConfigurationError, match="would both become"):
        fs.mv([f"{tree}/d/a", f"{tree}/g/a"], f"{tree}/flat")
    with pytest.raises(ConfigurationError, match="before it is copied"):
        fs.mv([f"{tree}/d/a", f"{tree}/other"], [f"{tree}/other", f"{tree}/third"])
    assert contents(fs, tree) == before | {"g/a": b"other a"}


@on_exact_stores
def test_a_move_takes_directory_markers_along(fs, root):
    fs.pipe_file(f"{root}/d/", b"")
    fs.pipe_file(f"{root}/d/e/", b"")
    fs.pipe_file(f"{root}/d/a", b"a")
    fs.pipe_file(f"{root}/d", b"the file")
    fs.mv(f"{root}/d/", f"{root}/n", recursive=True)
    assert keys(fs, root) == {"d", "n/a"}


# Failures


LISTINGS = {
    "walk": lambda fs, path: list(fs.walk(path)),
    "find": lambda fs, path: fs.find(path, maxdepth=3),
    "du": lambda fs, path: fs.du(path, maxdepth=3),
    "glob": lambda fs, path: fs.glob(f"{path}/*/*"),
    "get": lambda fs, path: fs.get(f"{path}/*/*", "/nowhere/"),
    "rm": lambda fs, path: fs.rm(f"{path}/*/*"),
    "cat": lambda fs, path: fs.cat(f"{path}/*/*"),
}


@pytest.mark.promise(2)
@pytest.mark.parametrize("call", LISTINGS.values(), ids=LISTINGS)
def test_a_failed_listing_is_no_empty_folder(call, fault_proxy, seaweedfs):
    proxy = fault_proxy(seaweedfs)
    bucket = seaweedfs.create_bucket()
    fs = fsspec.filesystem(
        "s3",
        region=seaweedfs.region,
        endpoint_url=proxy.endpoint,
        key=seaweedfs.access_key,
        secret=seaweedfs.secret_key,
        s3client_config=S3ClientConfig(max_attempts=1),
    )
    for key in ("a/1", "b/2", "c/3"):
        fs.pipe_file(f"{bucket}/t/{key}", b"")
    proxy.add(Fault.slow_down(), match=lambda request: request.query.get("prefix") == "t/b/")
    with pytest.raises(S3Error, match="503") as caught:
        call(fs, f"{bucket}/t")
    assert not isinstance(caught.value, FileNotFoundError)

"""The file system that torch's storage readers and writers see."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest
from torch.distributed.checkpoint import filesystem as torch_filesystem
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem as FsspecFileSystem

from s3torch.core import (
    AccessDeniedError,
    ConfigurationError,
    NotFoundError,
    PutOptions,
    RangedS3Reader,
    S3Error,
    S3ReaderConstructor,
)
from s3torch.dcp import S3FileSystem, _filesystem
from s3torch.dcp._filesystem import join_path
from s3torch.testing.faults import Fault


@pytest.mark.parametrize(
    "stock",
    [torch_filesystem.FileSystemBase, torch_filesystem.FileSystem, FsspecFileSystem],
    ids=["base", "local", "fsspec"],
)
def test_all_that_torch_has(stock):
    assert issubclass(S3FileSystem, torch_filesystem.FileSystemBase)
    for name, theirs in inspect.getmembers(stock, inspect.isroutine):
        if name.startswith("_"):
            continue
        ours = inspect.signature(getattr(S3FileSystem, name)).parameters
        wanted = inspect.signature(theirs).parameters.values()
        names = [one.name for one in wanted if one.kind is not inspect.Parameter.VAR_KEYWORD]
        assert list(ours)[: len(names)] == names, name


def test_write_and_read(place):
    fs = place.fs()
    with fs.create_stream(place.uri("a/b"), "wb") as stream:
        stream.write(b"some ")
        stream.write(memoryview(b"bytes"))
    with fs.create_stream(place.uri("a/b"), "rb") as stream:
        assert stream.read() == b"some bytes"


def test_an_exception_in_the_block_leaves_the_old_object(place):
    place.put("a", b"old")

    def fail():
        with place.fs().create_stream(place.uri("a"), "wb") as stream:
            stream.write(b"new")
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert place.get("a") == b"old"


def test_the_kind_of_reader(place):
    place.put("a", b"data")
    fs = place.fs(reader_constructor=S3ReaderConstructor.range_based())
    with fs.create_stream(place.uri("a"), "rb") as stream:
        assert isinstance(stream, RangedS3Reader)


@pytest.mark.parametrize("mode", ["r", "w", "ab", "rb+", ""])
def test_modes(place, mode):
    text = (
        rf"^Invalid mode='{mode}' mode argument: create_stream only supports "
        r"rb \(read mode\) & wb \(write mode\)$".replace("+", r"\+")
    )
    with (
        pytest.raises(ValueError, match=text.replace("rb+'", r"rb\+'")),
        place.fs().create_stream(place.uri("a"), mode),
    ):
        pass


def test_the_uri_is_looked_at_first(place):
    with (
        pytest.raises(ValueError, match="Only s3:// URIs"),
        place.fs().create_stream("/a", "nonsense"),
    ):
        pass


@pytest.mark.parametrize(
    ("path", "suffix", "joined"),
    [
        ("s3://b/k", "x", "s3://b/k/x"),
        ("s3://b/k/", "x", "s3://b/k/x"),
        ("s3://b", "x/y", "s3://b/x/y"),
        ("s3://b/", "x", "s3://b/x"),
        ("s3://b/k", "/x", "s3://b/k/x"),
        ("s3://b/k/", "//x", "s3://b/k/x"),
        (Path("s3://b/k"), "x", "s3://b/k/x"),
        ("s3://b/a b/%20", "ü+", "s3://b/a b/%20/ü+"),
    ],
)
def test_paths_are_joined_with_one_slash(place, path, suffix, joined):
    assert join_path(path, suffix) == joined
    assert place.fs().concat_path(path, suffix) == joined


def test_init_path_and_mkdir_do_nothing(place):
    fs = place.fs()
    assert fs.init_path("s3://b/k/") == "s3://b/k/"
    assert fs.init_path(Path("s3://b/k")) == Path("s3://b/k")
    fs.mkdir("s3://b/k")
    assert place.listed() == []


def test_exists_and_rm_file(place):
    fs = place.fs()
    place.put("a", b"data")
    assert fs.exists(place.uri("a"))
    assert fs.exists(Path(place.uri("a")))
    assert not fs.exists(place.uri("a/"))
    fs.rm_file(place.uri("a"))
    assert not fs.exists(place.uri("a"))
    fs.rm_file(place.uri("a"))
    with pytest.raises(NotFoundError):
        fs.rm_file("s3://missing/a")


@pytest.mark.parametrize("key", ["plain", "a b/ü+%41?&=#", "x//y"])
def test_rename(place, key):
    fs = place.fs()
    place.put(key, b"data")
    fs.rename(place.uri(key), place.uri(f"new/{key}"))
    assert place.listed() == [f"new/{key}"]
    assert place.get(f"new/{key}") == b"data"


def test_rename_to_itself_keeps_the_object(place):
    place.put("a", b"data")
    place.fs().rename(place.uri("a"), place.uri("a"))
    assert place.get("a") == b"data"


def test_rename_stays_in_the_bucket(place):
    text = "^Source and destination buckets cannot be different"
    with pytest.raises(ValueError, match=text):
        place.fs().rename("s3://one/a", "s3://two/a")


def test_a_copy_is_stored_as_new_objects_are(s3_server, monkeypatch):
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    bucket = s3_server.create_bucket()
    options = PutOptions(metadata={"run": "7"}, content_type="model/x", storage_class="STANDARD_IA")
    fs = S3FileSystem("us-east-1", put_options=options)
    with fs.create_stream(f"s3://{bucket}/a", "wb") as stream:
        stream.write(b"data")
    other = S3FileSystem("us-east-1", fs.client, put_options=PutOptions(metadata={"x": "y"}))
    for renames, old, new in ((fs, "a", "b"), (other, "b", "c")):
        renames.rename(f"s3://{bucket}/{old}", f"s3://{bucket}/{new}")
        head = fs.client.head_object(bucket, new)
        assert (head.metadata, head.content_type) == ({"run": "7"}, "model/x")
        assert renames is other or head.storage_class == "STANDARD_IA"


@pytest.fixture
def proxied(seaweedfs, seaweed_place, fault_proxy):
    """A file system behind a proxy, and that proxy."""
    proxy = fault_proxy(seaweedfs)
    return S3FileSystem("us-east-1", endpoint=proxy.endpoint), proxy


def test_a_rename_has_no_moment_without_the_object(proxied, seaweed_place, monkeypatch):
    fs, proxy = proxied
    monkeypatch.setattr(_filesystem, "_LONGEST_WAIT", 0.0)
    seaweed_place.put("old", b"data")
    seen = []
    proxy.add(Fault(), match=lambda _: seen.append(seaweed_place.listed()))
    proxy.add(Fault.error(403, "AccessDenied"), method="DELETE")
    with pytest.raises(AccessDeniedError):
        fs.rename(seaweed_place.uri("old"), seaweed_place.uri("new"))
    assert [request.method for request in proxy.requests()] == ["PUT", "DELETE", "DELETE", "DELETE"]
    assert seen == [["old"], *[["new", "old"]] * 3]
    assert seaweed_place.get("old") == seaweed_place.get("new") == b"data"
    # A copy that fails leaves the old one, and deletes nothing.
    proxy.heal()
    proxy.clear()
    proxy.add(Fault.error(403, "AccessDenied"), method="PUT")
    with pytest.raises(AccessDeniedError):
        fs.rename(seaweed_place.uri("old"), seaweed_place.uri("other"))
    assert [request.method for request in proxy.requests()] == ["PUT"]
    assert seaweed_place.listed() == ["new", "old"]


def test_errors_are_no_answers(proxied, seaweed_place):
    fs, proxy = proxied
    seaweed_place.put("folder/a", b"data")
    proxy.add(Fault.error(403, "AccessDenied"))
    uri = seaweed_place.uri("folder/a")
    for ask in (fs.exists, fs.rm_file, fs.ls, fs.rm_tree, lambda uri: fs.rm_files([uri])):
        with pytest.raises(AccessDeniedError):
            ask(uri)
    assert seaweed_place.listed() == ["folder/a"]


def test_many_objects_go_with_few_requests(proxied, seaweed_place):
    fs, proxy = proxied
    for key in ("run/a", "run/b/c", "run-2/d"):
        seaweed_place.put(key, b"data")
    fs.rm_tree(seaweed_place.uri("run/"))
    assert [request.method for request in proxy.requests()] == ["GET", "POST"]
    assert seaweed_place.listed() == ["run-2/d"]
    fs.rm_files([seaweed_place.uri("run-2/d"), seaweed_place.uri("missing")])
    assert seaweed_place.listed() == []
    with pytest.raises(ConfigurationError, match="not a whole bucket"):
        fs.rm_tree(seaweed_place.uri())


def test_objects_that_cannot_be_deleted_are_named(proxied, seaweed_place):
    fs, proxy = proxied
    denied = "<Error><Key>folder/a</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
    proxy.add(Fault.answer(f"<DeleteResult>{denied}</DeleteResult>"), method="POST")
    seaweed_place.put("folder/a", b"data")
    for remove in (fs.rm_tree, lambda uri: fs.rm_files([f"{uri}/a"])):
        with pytest.raises(S3Error, match=r"1 objects could not be deleted: folder/a \(AccessDenied: no\)"):
            remove(seaweed_place.uri("folder"))


def test_rename_of_nothing(place):
    with pytest.raises(NotFoundError):
        place.fs().rename(place.uri("missing"), place.uri("a"))


def test_ls(place):
    for key in ("f/a", "f/b/c", "f/b/d", "g", "f"):
        place.put(key, b"")
    fs = place.fs()
    assert fs.ls(place.uri("f")) == fs.ls(place.uri("f/")) == [place.uri("f/a"), place.uri("f/b")]
    assert fs.ls(place.uri()) == [place.uri("f"), place.uri("f"), place.uri("g")]
    assert fs.ls(place.uri("nothing")) == []


def test_an_injected_client_serves_all_requests(place):
    place.put("a", b"data")
    fs = S3FileSystem("eu-north-1", place.client())
    assert fs.exists(place.uri("a"))
    fs = pickle.loads(pickle.dumps(fs))
    with fs.create_stream(place.uri("a"), "rb") as stream:
        assert stream.read() == b"data"


def test_requests_say_where_they_come_from(place):
    fs = place.fs(reader_constructor=S3ReaderConstructor.dcp_optimized())
    assert "(dcp; " in fs._client.user_agent_prefix
    assert "md/reader_type#dcp_optimized)" in fs._client.user_agent_prefix


def test_a_bad_endpoint_is_refused_at_once():
    with pytest.raises(ConfigurationError, match="endpoint"):
        S3FileSystem("us-east-1", endpoint="localhost")

"""The file system that torch's storage readers and writers see."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from s3torch.core import ConfigurationError, NotFoundError, RangedS3Reader, S3ReaderConstructor
from s3torch.dcp import S3FileSystem
from s3torch.dcp.paths import join_path


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

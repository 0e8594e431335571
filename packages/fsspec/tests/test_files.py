"""Files: they appear whole, when they are closed, or not at all."""

from __future__ import annotations

import gzip
import io
from contextlib import ExitStack, suppress

import fsspec
import pytest

from s3torch.core import (
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    PutOptions,
    S3ReaderConstructor,
)
from s3torch.fsspec import ObjectExistsError

MIB = 1024 * 1024


class StopHereError(Exception):
    """Raised by the tests in the middle of a file."""


def test_write_and_read_bytes(fs, root):
    with fs.open(f"{root}/a.bin", "wb") as file:
        assert file.write(b"abc") == 3
        assert file.write(memoryview(b"def")) == 3
        assert file.tell() == 6
        assert not fs.exists(f"{root}/a.bin")
    with fs.open(f"{root}/a.bin", "rb") as file:
        assert file.read(2) == b"ab"
        file.seek(-1, io.SEEK_END)
        assert file.read() == b"f"
        assert file.size == 6


def test_an_object_of_several_parts(fs, root):
    data = bytes(range(256)) * (17 * MIB // 256)
    with fs.open(f"{root}/large", "wb") as file:
        for start in range(0, len(data), 3 * MIB):
            file.write(data[start : start + 3 * MIB])
    assert fs.cat_file(f"{root}/large") == data
    assert fs.cat_file(f"{root}/large", 9 * MIB, 9 * MIB + 5) == data[9 * MIB : 9 * MIB + 5]


def test_write_and_read_text(fs, root):
    with fs.open(f"{root}/a.txt", "w", encoding="utf-8", newline="") as file:
        file.write("zwölf\r\nBoxkämpfer\n")
    with fs.open(f"{root}/a.txt", "r", encoding="utf-8") as file:
        assert file.readlines() == ["zwölf\n", "Boxkämpfer\n"]
    assert fs.read_text(f"{root}/a.txt", encoding="utf-8") == "zwölf\nBoxkämpfer\n"


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_compression_is_closed_together_with_the_object(fs, root, mode):
    with fs.open(f"{root}/a.gz", mode, compression="infer") as file:
        file.write("many words" if mode == "w" else b"many words")
    assert gzip.decompress(fs.cat_file(f"{root}/a.gz")) == b"many words"
    with fs.open(f"{root}/a.gz", mode.replace("w", "r"), compression="gzip") as file:
        assert file.read() in {"many words", b"many words"}


@pytest.mark.promise(1)
@pytest.mark.parametrize("mode", ["w", "wb", "xb", "ab"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_an_exception_in_the_block_publishes_nothing(fs, root, mode, compression):
    with suppress(StopHereError), fs.open(f"{root}/a", mode, compression=compression) as file:
        file.write("half" if mode == "w" else b"half")
        raise StopHereError
    assert not fs.exists(f"{root}/a")


@pytest.mark.parametrize("mode", ["w", "wb"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_an_exception_in_the_block_of_fsspec_open_publishes_nothing(fs, root, options, mode, compression):
    fs.pipe_file(f"{root}/a", b"old")
    where = fsspec.open(f"s3://{root}/a", mode, compression=compression, **options)
    with suppress(StopHereError), where as file:
        file.write("half" if mode == "w" else b"half")
        raise StopHereError
    assert fs.cat_file(f"{root}/a") == b"old"


def test_fsspec_open_publishes_when_it_is_used_while_an_exception_is_handled(fs, root, options):
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        with fsspec.open(f"s3://{root}/emergency", "w", **options) as file:
            file.write("state")
    assert fs.cat_file(f"{root}/emergency") == b"state"


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_dropped_file_publishes_nothing_and_warns(fs, root, mode):
    file = fs.open(f"{root}/dropped", mode)
    file.write("half" if mode == "w" else b"half")
    with pytest.warns(ResourceWarning, match="was dropped without close"):
        del file
    assert not fs.exists(f"{root}/dropped")


def test_exclusive_mode_keeps_what_is_there(fs, root):
    file = fs.open(f"{root}/once", "xb")
    file.write(b"second")
    with fs.open(f"{root}/once", "xb") as other:
        other.write(b"first")
    with pytest.raises(ObjectExistsError):
        fs.open(f"{root}/once", "xb")
    with pytest.raises(FileExistsError) as caught:
        file.close()
    assert isinstance(caught.value, ObjectExistsError)
    assert caught.value.status == 412
    with pytest.raises(FileExistsError):
        fs.pipe_file(f"{root}/once", b"third", mode="create")
    assert fs.cat_file(f"{root}/once") == b"first"


def test_append(fs, root):
    for word in (b"one ", b"two ", b"three"):
        with fs.open(f"{root}/log", "ab") as file:
            before = file.tell()
            file.write(word)
    assert before == len(b"one two ")
    assert fs.cat_file(f"{root}/log") == b"one two three"
    with fs.open(f"{root}/log", "a") as file:
        file.write("!")
    assert fs.cat_file(f"{root}/log") == b"one two three!"


def test_append_loses_no_other_writer(fs, root):
    fs.pipe_file(f"{root}/log", b"one ")
    slow = fs.open(f"{root}/log", "ab")
    slow.write(b"slow")
    with fs.open(f"{root}/log", "ab") as file:
        file.write(b"quick")
    with pytest.raises(PreconditionFailedError) as caught:
        slow.close()
    assert caught.value.status == 412
    assert fs.cat_file(f"{root}/log") == b"one quick"


def test_a_transaction_publishes_at_its_end(fs, root):
    with fs.transaction:
        with fs.open(f"{root}/a", "wb") as file:
            file.write(b"a")
        fs.pipe_file(f"{root}/b", b"b")
        assert fs.find(root) == []
    assert fs.find(root) == [f"{root}/a", f"{root}/b"]


def test_a_transaction_that_fails_publishes_nothing(fs, root):
    with suppress(StopHereError), fs.transaction:
        with fs.open(f"{root}/a", "wb") as file:
            file.write(b"a")
        raise StopHereError
    assert fs.find(root) == []
    fs.pipe_file(f"{root}/after", b"")
    assert fs.exists(f"{root}/after")


def test_closing_twice_is_fine_and_writing_afterwards_is_not(fs, root):
    file = fs.open(f"{root}/a", "wb")
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.write(b"x")


def test_a_missing_object_shows_at_the_first_read(fs, root):
    file = fs.open(f"{root}/none", "rb")
    with pytest.raises(FileNotFoundError) as caught:
        file.read()
    assert isinstance(caught.value, NotFoundError)
    assert f"s3://{root}/none" in str(caught.value)


@pytest.mark.parametrize("mode", ["", "r+b", "wr", "q"])
def test_an_unknown_mode_is_refused(fs, root, mode):
    with pytest.raises(ConfigurationError, match="mode must be one of"):
        fs.open(f"{root}/a", mode)


def test_options_of_open(fs, root):
    with pytest.raises(ConfigurationError, match="unknown option acl"):
        fs.open(f"{root}/a", "rb", acl="public-read")
    with pytest.raises(ConfigurationError, match="are for text"):
        fs.open(f"{root}/a", "rb", encoding="utf-8")
    with fs.open(f"{root}/a", "wb", options=PutOptions(content_type="text/x-mine")) as file:
        file.write(b"0123456789")
    assert fs.info(f"{root}/a")["ContentType"] == "text/x-mine"
    with fs.open(f"{root}/a", "rb", block_size=4, cache_type="none") as file:
        assert S3ReaderConstructor.get_reader_type_string(type(file.reader)) == "range_based"
        assert file.read(3) == b"012"
    made = S3ReaderConstructor.sequential()
    with fs.open(f"{root}/a", "rb", block_size=4, reader_constructor=made) as file:
        assert S3ReaderConstructor.get_reader_type_string(type(file.reader)) == "sequential"


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 3), (2, None), (None, 4), (-3, None), (-4, -1), (None, -2), (5, 2), (8, 20), (20, 30), (-30, 2)],
)
def test_ranges_are_those_of_slices(fs, root, start, end):
    data = b"0123456789"
    fs.pipe_file(f"{root}/a", data)
    assert fs.cat_file(f"{root}/a", start, end) == data[start:end]


def test_many_files_at_once(fs, root):
    fs.pipe({f"{root}/a": b"1", f"{root}/b": b"22"})
    assert fs.cat([f"{root}/a", f"{root}/b"]) == {f"{root}/a": b"1", f"{root}/b": b"22"}
    assert fs.cat_ranges([f"{root}/b", f"{root}/none"], 1, 2)[0] == b"2"
    assert fs.head(f"{root}/b", 1) == b"2"
    assert fs.tail(f"{root}/b", 1) == b"2"
    assert fs.read_block(f"{root}/b", 0, 10) == b"22"


def test_put_and_get_of_a_tree(fs, root, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a").write_bytes(b"a" * 10)
    (tmp_path / "in" / "deep" / "b").write_bytes(b"")
    fs.put(str(tmp_path / "in"), f"{root}/tree", recursive=True)
    assert fs.find(f"{root}/tree") == [f"{root}/tree/a", f"{root}/tree/deep/b"]
    fs.get(f"{root}/tree", str(tmp_path / "out"), recursive=True)
    assert (tmp_path / "out" / "a").read_bytes() == b"a" * 10
    assert (tmp_path / "out" / "deep" / "b").read_bytes() == b""


def test_get_file_leaves_nothing_behind_when_it_fails(fs, root, tmp_path):
    with pytest.raises(FileNotFoundError):
        fs.get_file(f"{root}/none", tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
    fs.pipe_file(f"{root}/a", b"abc")
    into = io.BytesIO()
    fs.get_file(f"{root}/a", into)
    assert into.getvalue() == b"abc"


def test_put_file_tells_its_progress(fs, root, tmp_path):
    callback = fsspec.callbacks.Callback()
    (tmp_path / "a").write_bytes(b"a" * 1000)
    fs.put_file(tmp_path / "a", f"{root}/a", callback=callback)
    assert (callback.size, callback.value) == (1000, 1000)


# An exception that is under way when a file is closed


def write_and_fail_in_a_finally_block(fs, path):
    file = fs.open(path, "wb")
    try:
        file.write(b"half")
        raise ValueError("stop")
    finally:
        file.close()


def write_text_that_cannot_be_encoded(fs, path):
    file = fs.open(path, "wb")
    text = io.TextIOWrapper(file, encoding="ascii")
    try:
        text.write("half ")
        text.flush()
        text.write("\N{SNOWMAN}")
    finally:
        text.close()


def write_half_a_parquet_file(fs, path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    table = pa.table({"a": [1, 2, 3]})
    with parquet.ParquetWriter(path, table.schema, filesystem=fs) as writer:
        writer.write_table(table)
        raise ValueError("stop")


def leave_an_exit_stack(fs, path):
    file = fs.open(path, "wb")
    with ExitStack() as stack:
        stack.callback(file.close)
        file.write(b"half")
        raise ValueError("stop")


def close_in_a_generator_that_is_dropped(fs, path):
    file = fs.open(path, "wb")

    def lines():
        try:
            file.write(b"half")
            yield
        finally:
            file.close()

    generator = lines()
    next(generator)
    generator.close()
    raise ValueError("stop")


@pytest.mark.promise(1)
@pytest.mark.parametrize(
    "write",
    [
        write_and_fail_in_a_finally_block,
        write_text_that_cannot_be_encoded,
        write_half_a_parquet_file,
        leave_an_exit_stack,
        close_in_a_generator_that_is_dropped,
    ],
)
def test_closing_under_an_exception_keeps_what_was_there(fs, root, write, caplog):
    fs.pipe_file(f"{root}/a", b"whole")
    with pytest.raises(ValueError, match=r"stop|ordinal"):
        write(fs, f"{root}/a")
    assert fs.cat_file(f"{root}/a") == b"whole"
    assert "is not stored" in caplog.text


def test_files_that_are_written_while_an_exception_is_handled_appear(fs, root):
    try:
        int("earlier")
    except ValueError:
        with fs.open(f"{root}/a", "wb") as file:
            file.write(b"whole")
        other = fs.open(f"{root}/b", "wb")
        other.write(b"whole")
        other.close()
    lines = iter([b"whole"])
    file = fs.open(f"{root}/c", "wb")
    while True:
        try:
            file.write(next(lines))
        except StopIteration:
            file.close()
            break
    assert fs.cat([f"{root}/{name}" for name in "abc"]) == {f"{root}/{name}": b"whole" for name in "abc"}


def test_append_keeps_the_conditions_of_the_caller(fs, root):
    fs.pipe_file(f"{root}/log", b"one ")
    file = fs.open(f"{root}/log", "ab", options=PutOptions(content_type="text/plain"))
    file.write(b"two")
    fs.pipe_file(f"{root}/log", b"somebody else")
    with pytest.raises(PreconditionFailedError):
        file.close()
    assert fs.cat_file(f"{root}/log") == b"somebody else"


@pytest.mark.parametrize(
    "call",
    [
        lambda fs, path: fs.cat_file(path, acl="private"),
        lambda fs, path: fs.ls(path, versions=True),
        lambda fs, path: fs.find(path, versions=True),
        lambda fs, path: fs.info(path, versions=True),
        lambda fs, path: fs.cp_file(path, path, Colour="red"),
        lambda fs, path: fs.pipe_file(path, b"", acl="nobody"),
        lambda fs, path: fs.open(path, "wb", version_id="1"),
        lambda fs, path: fs.mv(path, f"{path}2", Colour="red"),
        lambda fs, path: fs.open(path, "wb", requester_pays=True),
        lambda fs, path: fs.open(path, "rb", SSECustomerKey="k"),
        lambda fs, path: fs.mkdir(path, acl="private"),
    ],
    ids=[
        "acl of cat_file",
        "versions of ls",
        "versions of find",
        "versions of info",
        "colour of cp_file",
        "unknown acl of pipe_file",
        "version of a new file",
        "colour of mv",
        "payer of one file",
        "key of one file",
        "acl of mkdir",
    ],
)
def test_what_cannot_be_honoured_is_refused(fs, root, call):
    with pytest.raises(ConfigurationError):
        call(fs, f"{root}/a")


@pytest.mark.parametrize("options", ["moto"], indirect=True)
def test_versions_are_read(fs, moto):
    bucket = moto.create_bucket()
    moto.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    fs.pipe_file(f"{bucket}/a", b"old")
    version = fs.info(f"{bucket}/a")["VersionId"]
    fs.pipe_file(f"{bucket}/a", b"newer")
    assert fs.cat_file(f"{bucket}/a", version_id=version) == b"old"
    assert fs.cat_file(f"{bucket}/a", 1, 2, version_id=version) == b"l"
    assert fs.open(f"{bucket}/a", "rb", version_id=version).read() == b"old"
    assert fs.info(f"{bucket}/a", version_id=version)["size"] == 3
    assert fs.exists(f"{bucket}/a", version_id=version)
    assert fs.cat_file(f"{bucket}/a") == b"newer"


def test_find_by_prefix(fs, root):
    for name in ("d/ab", "d/ac", "d/b", "d/a/x"):
        fs.pipe_file(f"{root}/{name}", b"")
    assert fs.find(f"{root}/d", prefix="a") == [f"{root}/d/a/x", f"{root}/d/ab", f"{root}/d/ac"]

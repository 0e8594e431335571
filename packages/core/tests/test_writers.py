"""The writer: an object appears whole or not at all."""

from __future__ import annotations

import gc
import io
import threading
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from s3torch.core import PutOptions, S3Client, S3Writer
from s3torch.core._memory import Memory
from s3torch.core._process import reaper
from s3torch.core.errors import (
    ChecksumMismatchError,
    ForkedProcessError,
    NotFoundError,
    PreconditionFailedError,
    S3Error,
    TransferCancelledError,
)
from s3torch.core.ranges import MIB, ByteRange
from s3torch.core.transfer import checksum, compute_crc

PART = 5 * MIB


class Stream:
    """What a writer writes to, in memory; fails where a test says so."""

    bucket, key = "bucket", "key"

    def __init__(self):
        self.data = b""
        self.calls = []
        self.failing = {}

    def write(self, data):
        self._call("write")
        self.data += bytes(data)

    def close(self):
        self._call("close")

    def abort(self):
        self._call("abort")

    def _call(self, name):
        self.calls.append(name)
        if name in self.failing:
            raise self.failing[name]


@pytest.fixture(autouse=True)
def all_memory_comes_back():
    yield
    gc.collect()
    assert reaper.get().drain(20)
    assert Memory.of_this_process(None).budget.used == 0


def stored(store, key="key"):
    try:
        return store.get("bucket", key).data
    except NotFoundError:
        return None


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 1])
@pytest.mark.parametrize("step", [MIB + 1, 11 * MIB])
def test_any_size_arrives_whole(client, store, size, step):
    data = np.random.default_rng(size).bytes(size)
    with client.put_object("bucket", "key") as writer:
        for start in range(0, size, step):
            piece = data[start : start + step]
            assert writer.write(piece) == len(piece)
        assert writer.tell() == size
        assert stored(store) is None
    assert stored(store) == data
    parts = -(-size // PART)
    assert store.get("bucket", "key").etag.endswith(f'-{parts}"') is (parts > 1)
    assert store.uploads("bucket") == []


@pytest.mark.parametrize("size", [1, PART, 2 * PART + 1, 4 * PART])
def test_lent_bytes_arrive_between_those_that_are_written(client, store, size):
    lent = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    with client.put_object("bucket", "key") as writer:
        for _ in range(2):
            assert writer.write(b"head") == 4
            assert writer.lend(lent) == size
        assert writer.tell() == 2 * (size + 4)
    assert stored(store) == (b"head" + lent.tobytes()) * 2


@pytest.mark.parametrize("size", [1000, 3 * PART + 1])
@pytest.mark.parametrize("algorithm", ["CRC64NVME", "SHA256", "off"])
def test_pieces_have_checksums_of_their_own(client, size, algorithm):
    config = replace(client.s3client_config, checksum_algorithm=algorithm)
    client = S3Client("us-east-1", s3client_config=config)
    data = memoryview(np.random.default_rng(size).bytes(size))
    with client.put_object("bucket", "key") as writer:
        writer.begin_piece(MIB)
        writer.lend(data)
        writer.begin_piece(MIB)
        writer.write(b"tail")
        assert writer.piece_checksums is None
    edges = [*range(0, size, MIB), size, size + 4]
    whole = data.tobytes() + b"tail"
    assert writer.piece_checksums == (
        "CRC64NVME",
        [(a, b, compute_crc("CRC64NVME", memoryview(whole[a:b]))) for a, b in pairwise(edges)],
    )
    if algorithm == "CRC64NVME":
        assert writer.checksum == checksum(algorithm, memoryview(whole))


@pytest.mark.parametrize("size", [PART, PART + 7, 5 * PART])
def test_bytes_of_another_object_are_copied(client, store, monkeypatch, size):
    monkeypatch.setattr("s3torch.core.transfer._upload.COPIED_PART", 2 * PART)
    source = np.random.default_rng(size).bytes(size + 10)
    store.put("bucket", "source", source)
    part = ByteRange(3, len(source) - 7)
    crc = compute_crc("CRC64NVME", memoryview(source[3:-7]))
    with client.put_object("bucket", "key") as writer:
        writer.write(bytes(PART))
        assert writer.copy_from("bucket", "source", part, crc=crc) == len(part)
        writer.begin_piece(MIB)
        writer.write(b"tail")
    whole = bytes(PART) + source[3:-7] + b"tail"
    assert stored(store) == whole
    assert writer.tell() == len(whole)
    assert writer.checksum == checksum("CRC64NVME", memoryview(whole))
    assert writer.piece_checksums[1][-1][:2] == (len(whole) - 4, len(whole))


@pytest.mark.parametrize("size", [PART, PART + 1, 2 * PART - 1, 2 * PART, 3 * PART + 2])
@pytest.mark.parametrize("method", ["write", "lend"])
def test_no_part_before_a_copy_is_too_small(client, store, size, method):
    store.put("bucket", "source", b"s" * PART)
    data = np.random.default_rng(size).bytes(size)
    with client.put_object("bucket", "key") as writer:
        for _ in range(2):
            writer.expect_copy(size)
            getattr(writer, method)(bytearray(data[:100]))
            getattr(writer, method)(bytearray(data[100:]))
            writer.copy_from("bucket", "source", ByteRange(0, PART))
        writer.write(data)
    # S3 refuses smaller parts than 5 MiB, but for the last one.
    assert stored(store) == 2 * (data + b"s" * PART) + data


def test_a_copy_that_fails_or_is_not_what_it_should_be(client, store):
    store.put("bucket", "source", bytes(PART))
    with pytest.raises(NotFoundError), client.put_object("bucket", "key") as writer:
        writer.copy_from("bucket", "missing", ByteRange(0, PART))
    with pytest.raises(ChecksumMismatchError), client.put_object("bucket", "key") as writer:
        writer.copy_from("bucket", "source", ByteRange(0, PART), crc=1)
    assert stored(store) is None
    assert store.uploads("bucket") == []
    with client.put_object("bucket", "key") as writer:
        writer.copy_from("bucket", "source", ByteRange(0, PART))
    assert (stored(store), writer.checksum) == (bytes(PART), None)
    with pytest.raises(TypeError, match="cannot copy"), S3Writer(Stream()) as writer:
        writer.copy_from("bucket", "source", ByteRange(0, PART))


@pytest.mark.promise(1)
@pytest.mark.parametrize("size", [0, 5, 12 * MIB])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_leaves_the_old_object(client, store, size, error):
    store.put("bucket", "key", b"old")
    writer = client.put_object("bucket", "key")
    with pytest.raises(error), writer:
        writer.write(bytes(size))
        raise error
    assert writer.closed
    assert stored(store) == b"old"
    assert store.uploads("bucket") == []
    with pytest.raises(TransferCancelledError):
        writer.close()
    assert stored(store) == b"old"


@pytest.mark.promise(1)
@pytest.mark.parametrize("size", [0, 5, 12 * MIB])
@pytest.mark.parametrize("action", ["always", "error"])
def test_a_dropped_writer_warns_and_leaves_the_old_object(client, store, size, action):
    store.put("bucket", "key", b"old")
    with warnings.catch_warnings(record=action == "always") as told:
        # As an error the warning cannot leave __del__, so it ends as an unraisable one.
        warnings.simplefilter(action)
        unraisable = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.unraisablehook", lambda args: unraisable.append(args.exc_value))
            writer = client.put_object("bucket", "key")
            writer.write(bytes(size))
            del writer
            gc.collect()
    assert reaper.get().drain(20)
    found = [warning.message for warning in told] if told is not None else unraisable
    assert [type(message) for message in found] == [ResourceWarning]
    assert "s3://bucket/key" in str(found[0])
    assert stored(store) == b"old"
    assert store.uploads("bucket") == []


def test_a_closed_writer_does_not_warn(client):
    with client.put_object("bucket", "key") as writer:
        writer.write(b"x")
    client.put_object("bucket", "key").close()
    client.put_object("bucket", "key").abort()
    del writer
    gc.collect()


def test_closing_again_does_nothing(client, store):
    with client.put_object("bucket", "key") as writer:
        writer.write(b"one")
        writer.close()
        store.put("bucket", "key", b"two")
    writer.close()
    assert stored(store) == b"two"
    assert writer.closed


def test_many_threads_close_once():
    stream = Stream()
    writer = S3Writer(stream)
    threads = [threading.Thread(target=writer.close) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.calls == ["close"]


@pytest.mark.promise(7)
@pytest.mark.parametrize("size", [5, 12 * MIB])
def test_a_failed_close_stays_failed(client, store, size):
    store.delete_bucket("bucket")
    writer = client.put_object("bucket", "key")
    with pytest.raises(NotFoundError) as caught, writer:
        writer.write(bytes(size))
    store.create_bucket("bucket")
    for call in (writer.close, writer.close, lambda: writer.write(b"x"), writer.__enter__):
        with pytest.raises(NotFoundError) as again:
            call()
        assert again.value is caught.value
    assert caught.value.code == "NoSuchBucket"
    assert stored(store) is None


@pytest.mark.promise(7)
def test_an_error_of_a_part_is_raised_and_aborts(client, store):
    writer = client.put_object("bucket", "key")
    writer.write(bytes(PART + 1))
    store.delete_bucket("bucket")
    with pytest.raises(NotFoundError) as caught:
        for _ in range(20):
            writer.write(bytes(PART))
    with pytest.raises(NotFoundError) as again:
        writer.close()
    assert again.value is caught.value
    assert writer.closed


@pytest.mark.parametrize("call", ["write", "close"])
def test_the_original_error_wins_over_that_of_the_clean_up(call):
    stream = Stream()
    stream.failing = {call: OSError("first"), "abort": OSError("second")}
    writer = S3Writer(stream)
    with pytest.raises(OSError, match="first"):
        writer.write(b"x")
        writer.close()
    with pytest.raises(OSError, match="first"):
        writer.close()
    assert stream.calls.count("abort") == 1


def test_an_exception_in_the_block_wins_over_that_of_the_clean_up():
    stream = Stream()
    stream.failing = {"abort": OSError("second")}
    with pytest.raises(KeyError), S3Writer(stream):
        raise KeyError


def test_abort_is_for_ever(client, store):
    store.put("bucket", "key", b"old")
    writer = client.put_object("bucket", "key")
    writer.write(bytes(12 * MIB))
    writer.abort()
    writer.abort()
    assert writer.closed
    assert not writer.writable()
    for call in (writer.close, lambda: writer.write(b"x"), writer.__enter__):
        with pytest.raises(TransferCancelledError, match=r"s3://bucket/key.*aborted"):
            call()
    assert stored(store) == b"old"
    assert store.uploads("bucket") == []


def test_abort_after_close_does_nothing(client, store):
    with client.put_object("bucket", "key") as writer:
        writer.write(b"new")
    writer.abort()
    writer.close()
    assert stored(store) == b"new"


def test_after_close_nothing_can_be_written(client):
    writer = client.put_object("bucket", "key")
    assert (writer.readable(), writer.seekable(), writer.writable(), writer.closed) == (
        False,
        False,
        True,
        False,
    )
    writer.close()
    assert (writer.writable(), writer.closed) == (False, True)
    writer.flush()
    for call in (lambda: writer.write(b"x"), lambda: writer.writelines([b"x"]), writer.__enter__):
        with pytest.raises(ValueError, match=r"^I/O operation on closed file\.?$"):
            call()


@pytest.mark.parametrize("call", ["fileno", "read", "read1", "seek", "truncate", "detach"])
def test_what_it_cannot_do(client, call):
    with client.put_object("bucket", "key") as writer, pytest.raises(io.UnsupportedOperation):
        getattr(writer, call)(*([0] if call == "seek" else []))


def test_how_an_object_is_stored(client, store):
    options = PutOptions(storage_class="GLACIER", content_type="a/b", metadata={"epoch": "3"})
    for size in (5, 12 * MIB):
        with client.put_object("bucket", "key", options=options) as writer:
            writer.write(bytes(size))
        head = client.head_object("bucket", "key")
        assert (head.storage_class, head.content_type, dict(head.metadata)) == (
            "GLACIER",
            "a/b",
            {"epoch": "3"},
        )
        assert head.size == size
    with client.put_object("bucket", "key", "STANDARD_IA", options=options) as writer:
        pass
    assert client.head_object("bucket", "key").storage_class == "STANDARD_IA"
    assert client.head_object("bucket", "key").content_type == "a/b"


@pytest.mark.parametrize("size", [5, 12 * MIB])
def test_an_object_that_must_not_be_there_yet(client, store, size):
    options = PutOptions(if_none_match="*")
    with client.put_object("bucket", "key", options=options) as writer:
        writer.write(bytes(size))
    with (
        pytest.raises(PreconditionFailedError),
        client.put_object("bucket", "key", options=options) as writer,
    ):
        writer.write(b"other" * size)
    assert stored(store) == bytes(size)
    assert store.uploads("bucket") == []


def test_nothing_is_sent_before_there_is_a_reason(client, store):
    store.delete_bucket("bucket")
    writer = client.put_object("bucket", "key")
    writer.write(bytes(PART))
    writer.abort()


def test_it_tells_what_it_writes(client):
    with client.put_object("bucket", "key") as writer:
        assert (writer.bucket, writer.key) == ("bucket", "key")
        assert (writer.stream.bucket, writer.stream.key) == ("bucket", "key")


def test_a_stream_that_was_closed_takes_nothing_more(client, store):
    writer = client.put_object("bucket", "key")
    stream = writer.stream
    stream.write(b"data")
    stream.close()
    for call in (stream.close, lambda: stream.write(b"lost"), lambda: stream.write(b"")):
        with pytest.raises(ValueError, match="I/O operation on closed file"):
            call()
    writer.abort()
    assert stored(store) == b"data"


class Held(Stream):
    """Holds whoever writes."""

    def __init__(self):
        super().__init__()
        self.entered, self.leave = threading.Event(), threading.Event()

    def write(self, data):
        self.entered.set()
        self.leave.wait()
        super().write(data)


@pytest.mark.parametrize("call", ["write", "close", "__enter__", "abort"])
def test_a_writer_cannot_be_used_in_a_child(in_child, call):
    stream = Stream()
    writer = S3Writer(stream)
    arguments = [b"x"] if call == "write" else []

    def child():
        with pytest.raises(ForkedProcessError, match="s3://bucket/key"):
            getattr(writer, call)(*arguments)
        return stream.calls

    assert in_child(child) == []
    writer.write(b"x")
    writer.close()


def test_a_child_does_not_wait_for_a_thread_of_the_parent(in_child):
    stream = Held()
    writer = S3Writer(stream)
    thread = threading.Thread(target=writer.write, args=[b"data"])
    thread.start()
    stream.entered.wait()
    try:
        for call in (writer.close, lambda: writer.write(b"x"), writer.abort):
            with pytest.raises(ForkedProcessError):
                in_child(call)
    finally:
        stream.leave.set()
        thread.join()
    writer.close()
    assert stream.calls == ["write", "close"]


def test_a_child_neither_completes_nor_aborts_the_upload_of_the_parent(client, store, in_child):
    writer = client.put_object("bucket", "key")
    writer.write(bytes(12 * MIB))
    spied = []
    client_abort = type(writer.stream).abort

    def child():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(writer.stream), "abort", lambda self: spied.append("abort"))
            with pytest.raises(KeyError), writer_block(writer):
                raise KeyError
            with pytest.raises(ForkedProcessError):
                writer.stream.write(b"x")
            with pytest.raises(ForkedProcessError):
                writer.stream.close()
            with pytest.raises(ForkedProcessError):
                client_abort(writer.stream)
            # The child lets go of it.
            globals_writer = writer
            globals_writer.__del__()
            return spied

    assert in_child(child) == []
    writer.close()
    assert stored(store) == bytes(12 * MIB)


class writer_block:  # noqa: N801
    """The rest of a ``with`` block that was entered before the fork."""

    def __init__(self, writer):
        self.writer = writer

    def __enter__(self):
        return self.writer

    def __exit__(self, *error):
        return self.writer.__exit__(*error)


def test_a_stream_without_abort_will_do():
    class Plain:
        def write(self, data):
            raise OSError("disk")

        def close(self):
            pass

    writer = S3Writer(Plain())
    assert (writer.bucket, writer.key) == ("", "")
    with pytest.raises(OSError, match="disk"):
        writer.write(b"x")


def test_a_stream_that_cannot_borrow_takes_a_copy():
    stream = Stream()
    with S3Writer(stream) as writer:
        writer.lend(bytearray(b"bytes"))
    assert stream.data == b"bytes"


def test_errors_of_writers_are_ours(client):
    writer = client.put_object("bucket", "key")
    writer.abort()
    with pytest.raises(S3Error) as caught:
        writer.close()
    assert (caught.value.operation, caught.value.bucket, caught.value.key) == ("PutObject", "bucket", "key")

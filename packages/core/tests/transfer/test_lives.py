"""Threads, processes and their ends: nothing partial appears, nothing hangs, nothing is mixed up."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from s3torch.core import S3ReaderConstructor
from s3torch.core._process import reaper
from s3torch.core.ranges import split_range
from s3torch.core.transfer import InOrder, Wanted
from s3torch.testing.faults import Fault

PART = 5 * 2**20
SIZE = 2 * PART + 1000
PATIENCE = 60

WRITE = """
    import os, sys
    from s3torch.core import S3Client, S3ClientConfig

    transport, endpoint, bucket, end = sys.argv[1:]
    config = S3ClientConfig(transport=transport, part_size=5 * 2**20)
    writer = S3Client("us-east-1", endpoint=endpoint, s3client_config=config).put_object(bucket, "k")
    writer.write(bytes(range(250)) * 50_000)
    print("written", flush=True)
    exec(end)
"""


def writing(wire, end):
    """Starts a process that writes two parts and a half, and then comes to an end of some kind."""
    arguments = [wire.transport, wire.proxy.endpoint, wire.bucket, end]
    command = [sys.executable, "-W", "default", "-c", textwrap.dedent(WRITE), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def await_until(is_so):
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)


def await_upload(wire):
    await_until(wire.uploads)


@pytest.mark.promise(1)
def test_a_process_that_is_killed_leaves_the_old_object(wire):
    wire.put("k", b"old")
    with writing(wire, "sys.stdin.read()") as process:
        assert process.stdout.readline() == "written\n"
        await_upload(wire)
        process.send_signal(signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL
    assert wire.get("k") == b"old"
    # What nobody could abort any more is left for a sweep.
    assert [upload["Key"] for upload in wire.uploads()] == ["k"]


@pytest.mark.promise(1)
@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("pass", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("raise KeyError", 1, "KeyError"),
        ("del writer", 0, "ResourceWarning: the writer of s3://"),
    ],
    ids=["end-of-program", "exit", "exception", "dropped"],
)
def test_a_program_that_ends_without_closing_aborts(wire, end, code, words):
    wire.put("k", b"old")
    with writing(wire, end) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert words in errors
    assert "Error" not in errors.replace("KeyError", "")
    assert wire.get("k") == b"old"
    assert wire.uploads() == []


def test_a_dropped_writer_aborts(wire):
    wire.put("k", b"old")
    writer = wire.client().put_object(wire.bucket, "k")
    writer.write(wire.content(SIZE))
    dropped = [writer]
    del writer
    with pytest.warns(ResourceWarning, match="dropped without close"):
        dropped.clear()
    gc.collect()
    assert reaper.get().drain(PATIENCE)
    assert wire.get("k") == b"old"
    assert wire.uploads() == []


def test_dropping_does_not_wait_for_a_silent_server(wire):
    wire.put("k", b"old")
    bucket, key = wire.stock(SIZE)
    # Whoever waited would wait for so long.
    client = wire.client(read_timeout=60)
    writer = client.put_object(wire.bucket, "k")
    writer.write(wire.content(PART + 1))
    await_upload(wire)
    wanted = [Wanted(part.start, part.stop) for part in split_range(0, SIZE, PART)]
    reader, stream = client.get_object(bucket, key), InOrder(client.open_ranges(bucket, key), wanted)
    assert (len(reader.read(10)), len(next(stream))) == (10, PART)
    rule = wire.proxy.add(Fault.stall(60))
    writer.write(wire.content(PART))
    reader.seek(PART)
    reader.prefetch()
    dropped = [writer, reader, stream]
    del writer, reader, stream
    begun = time.monotonic()
    with pytest.warns(ResourceWarning, match="dropped without close"):
        dropped.clear()
    gc.collect()
    assert time.monotonic() - begun < 10
    await_until(lambda: "DELETE" in {request.method for request in wire.proxy.requests()})
    assert rule.hits
    wire.proxy.heal()
    await_until(lambda: not wire.uploads())
    assert reaper.get().drain(PATIENCE)
    assert wire.get("k") == b"old"
    assert client._handle.get().memory.budget.used == 0


def test_an_upload_that_begins_after_its_writer_was_dropped_is_aborted(wire, monkeypatch):
    monkeypatch.setattr("s3torch.core.transfer._upload._ABORT_SECONDS", 0.5)
    wire.proxy.add(Fault(latency=2), method="POST", match=lambda request: "uploads" in request.query)
    writer = wire.client().put_object(wire.bucket, "k")
    writer.write(wire.content(PART + 1))
    with pytest.warns(ResourceWarning, match="dropped without close"):
        del writer
    await_until(lambda: wire.proxy.requests("DELETE"))
    await_until(lambda: not wire.uploads())
    assert wire.get("k") is None


def test_a_program_ends_although_the_server_is_silent(wire):
    end = "import s3torch.core._process as a; a._EXIT_SECONDS = 1; print(sys.stdin.readline())"
    with writing(wire, end) as process:
        assert process.stdout.readline() == "written\n"
        await_upload(wire)
        wire.proxy.add(Fault.stall(PATIENCE))
        begun = time.monotonic()
        _, errors = process.communicate("go\n", timeout=PATIENCE)
    assert process.returncode == 0
    assert time.monotonic() - begun < 15
    assert "before all dropped uploads are aborted" in errors


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_upload_aborts(wire, error):
    wire.put("k", b"old")
    with pytest.raises(error), wire.client().put_object(wire.bucket, "k") as writer:
        writer.write(wire.content(SIZE))
        raise error
    assert wire.get("k") == b"old"
    assert wire.uploads() == []


def test_ctrl_c_in_a_read_that_waits(wire):
    bucket, key = wire.stock(SIZE)
    client = wire.client()
    rule = wire.proxy.add(Fault.stall(PATIENCE, 1000), method="GET", skip=1)
    reader = client.get_object(bucket, key)

    interrupted = threading.Event()

    def interrupt():
        while not rule.hits:
            time.sleep(0.01)
        # CPython may miss a signal that comes when it is just about to wait.
        while not interrupted.wait(1):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt), reader:
        try:
            reader.read()
        finally:
            interrupted.set()
    thread.join()
    wire.proxy.heal()
    assert client.get_object(bucket, key).read() == wire.content(SIZE)


def test_many_threads_share_a_client(wire):
    client = wire.client()
    contents = {f"k{number}": wire.content(1000 + number) for number in range(64)}

    def work(key):
        for kind in (None, S3ReaderConstructor.range_based(100)):
            with client.put_object(wire.bucket, key) as writer:
                writer.write(contents[key])
            with client.get_object(wire.bucket, key, reader_constructor=kind) as reader:
                assert reader.read() == contents[key]
        return key

    with ThreadPoolExecutor(64) as pool:
        assert set(pool.map(work, contents)) == set(contents)
    bucket, key = wire.stock(SIZE)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda _: client.get_object(bucket, key).read() == wire.content(SIZE), range(8))
        assert all(found)


@pytest.mark.promise(4)
def test_a_fork_with_reads_in_flight(wire, in_child):
    bucket, key = wire.stock(SIZE)
    client = wire.client()
    reader = client.get_object(bucket, key)
    wire.proxy.add(Fault(latency=0.3), method="GET", skip=1)
    assert reader.read(PART + 10) == wire.content(PART + 10)
    reader.prefetch()

    def child():
        # The client goes on here; the parent's reader is left alone, also by its end.
        with pytest.raises(RuntimeError, match="forked child"):
            reader.read(1)
        reader.close()
        gc.collect()
        return client.get_object(bucket, key).read() == wire.content(SIZE)

    assert in_child(child)
    assert reader.read() == wire.content(SIZE)[PART + 10 :]


@pytest.mark.promise(4)
def test_a_fork_with_an_upload_in_flight(wire, in_child):
    client = wire.client()
    with client.put_object(wire.bucket, "k") as writer:
        writer.write(wire.content(SIZE))

        def child():
            with client.put_object(wire.bucket, "of-the-child") as own:
                own.write(wire.content(1000))

        in_child(child)
    assert wire.get("k") == wire.content(SIZE)
    assert wire.get("of-the-child") == wire.content(1000)

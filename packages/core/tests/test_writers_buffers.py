"""What a writer takes: any contiguous buffer, and other files on top of it."""

from __future__ import annotations

import array
import ctypes
import gzip
import io
import mmap
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MIB = 2**20


def stored(store, key="key"):
    return store.get("bucket", key).data


def mapped():
    pages = mmap.mmap(-1, 4096)
    pages[:5] = b"12345"
    return pages


BUFFERS = {
    "bytes": b"12345",
    "bytearray": bytearray(b"12345"),
    "memoryview": memoryview(b"-12345-")[1:6],
    "array": array.array("d", [1, 2, 3]),
    "floats": memoryview(array.array("f", [1, 2])),
    "numpy": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.arange(5, dtype=np.float16),
    "big-endian": np.arange(5, dtype=">f8"),
    "complex": np.arange(5) * 1j,
    "record": np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
    "scalar": np.array(5.0),
    "empty": np.zeros((3, 0), dtype=np.float32),
    "ctypes": (ctypes.c_double * 3)(1, 2, 3),
    "mmap": mapped(),
}


def in_pages(content):
    if not content:
        return content
    pages = mmap.mmap(-1, len(content))
    pages[:] = content
    return pages


# How bytes, a multiple of eight, get into a buffer of each kind.
KINDS = {
    "bytes": bytes,
    "bytearray": bytearray,
    "floats": lambda content: memoryview(content).cast("f") if content else b"",
    "array": lambda content: array.array("d", content),
    "numpy": lambda content: np.frombuffer(content, dtype=">u4").reshape(2, -1),
    "mmap": in_pages,
}


@pytest.mark.parametrize("name", BUFFERS)
def test_any_contiguous_buffer_is_counted_in_bytes(client, store, name):
    buffer = BUFFERS[name]
    expected = memoryview(buffer).tobytes()
    with client.put_object("bucket", "key") as writer:
        assert writer.write(buffer) == len(expected)
        assert writer.tell() == len(expected)
        assert writer.write(b"!") == 1
    assert stored(store) == expected + b"!"


@pytest.mark.parametrize(
    "data",
    [
        np.asfortranarray(np.zeros((3, 4))),
        np.zeros((4, 4))[:, :2],
        np.zeros(8)[::2],
        memoryview(b"12345678")[::2],
        "text",
        None,
        5,
        [1, 2],
    ],
    ids=["fortran", "columns", "strided", "strided-view", "text", "none", "number", "list"],
)
def test_other_data_is_refused_and_the_writer_goes_on(client, store, data):
    with client.put_object("bucket", "key") as writer:
        writer.write(b"before,")
        with pytest.raises(TypeError):
            writer.write(data)
        assert writer.tell() == 7
        writer.write(b"after")
    assert stored(store) == b"before,after"


def test_no_reference_to_the_buffer_is_kept(client, store):
    buffer = bytearray(b"first")
    with client.put_object("bucket", "key") as writer:
        writer.write(buffer)
        buffer[:] = b"SECOND"  # A buffer that is held could not be resized.
        writer.write(buffer)
    assert stored(store) == b"firstSECOND"


def test_it_lies_under_other_files(client, store):
    with client.put_object("bucket", "text") as writer:
        text = io.TextIOWrapper(writer, encoding="utf-8")
        text.write("größer\n")
        text.close()
    assert stored(store, "text").decode() == "größer\n"
    with client.put_object("bucket", "gzip") as writer, gzip.GzipFile(fileobj=writer, mode="wb") as packed:
        packed.write(b"x" * 1000)
    assert gzip.decompress(stored(store, "gzip")) == b"x" * 1000
    with client.put_object("bucket", "pickle") as writer:
        pickle.dump({"a": [1, 2]}, writer)
        writer.writelines([b"1", b"2"])
    assert stored(store, "pickle").endswith(b"12")
    with client.put_object("bucket", "npy") as writer:
        np.save(writer, np.arange(1000.0))
    assert (np.load(io.BytesIO(stored(store, "npy"))) == np.arange(1000.0)).all()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_writes_of_any_buffers_arrive_in_order(data, client, store):
    pieces = data.draw(
        st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 3 * MIB), st.integers(0, 255)))
    )
    expected = b""
    with client.put_object("bucket", "key") as writer:
        for kind, count, byte in pieces:
            content = bytes([byte]) * (count * 8)
            buffer = KINDS[kind](content)
            assert writer.write(buffer) == len(content)
            if kind in {"bytearray", "mmap"} and count:
                # The writer has made its copy.
                buffer[:8] = b"overture"
            expected += content
        assert writer.tell() == len(expected)
    assert stored(store) == expected


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cuts_of_small_data_arrive_in_order(data, cuts, client, store):
    ends = [*sorted(cuts), len(data)]
    start = 0
    with client.put_object("bucket", "key") as writer:
        for end in ends:
            writer.write(memoryview(data)[start:end])
            start = max(start, min(end, len(data)))
    assert stored(store) == data


def test_parts_within_bytes_are_sent_from_there(client, store):
    content = bytes(range(256)) * (12 * MIB // 256)
    with client.put_object("bucket", "key") as writer:
        # One before them, so that parts begin and end anywhere in it.
        assert writer.write(b"+") == 1
        for piece in (content, memoryview(content)[1:], bytearray(content), content):
            assert writer.write(piece) == len(piece)
    assert stored(store) == b"+" + content + content[1:] + content + content

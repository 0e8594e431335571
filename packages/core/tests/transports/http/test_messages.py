"""Heads and chunks of HTTP, as pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core.errors import ConfigurationError, S3ConnectionError
from s3torch.core.transports.http._messages import ChunkedDecoder, request_head, response_head

names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True).filter(
    lambda name: name.lower() not in {"content-length", "transfer-encoding", "connection"}
)
values = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40).map(str.strip)


def head_of(status, lines, reason="OK"):
    text = "\r\n".join([f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in lines)])
    return response_head(text.encode())


@given(st.integers(200, 599), st.dictionaries(names, values), st.integers(0, 2**63))
def test_a_head_is_read_as_it_was_written(status, headers, length):
    lines = {name.lower(): value for name, value in headers.items()}
    head = head_of(status, [*lines.items(), ("Content-LENGTH", str(length))])
    assert head.status == status
    assert head.headers == {**lines, "content-length": str(length)}
    assert head.length == (0 if status in {204, 304} else length)
    assert head.keeps_alive
    assert not head.is_chunked


@given(st.binary(max_size=300))
def test_anything_is_a_head_or_an_error(data):
    try:
        head = response_head(data)
    except S3ConnectionError:
        return
    assert 100 <= head.status <= 999


@pytest.mark.parametrize(
    ("lines", "keeps_alive", "is_chunked", "length"),
    [
        ([], False, False, None),
        ([("Content-Length", "5"), ("Content-Length", "5")], True, False, 5),
        ([("Content-Length", "5"), ("Connection", "Close")], False, False, 5),
        ([("Transfer-Encoding", "chunked")], True, True, None),
        ([("Transfer-Encoding", "Chunked"), ("Content-Length", "5")], True, True, None),
    ],
)
def test_the_end_of_a_body(lines, keeps_alive, is_chunked, length):
    head = head_of(200, lines)
    assert (head.keeps_alive, head.is_chunked, head.length) == (keeps_alive, is_chunked, length)


def test_a_connection_of_http_1_0_ends_unless_it_says_otherwise():
    assert not response_head(b"HTTP/1.0 200 OK\r\nContent-Length: 1").keeps_alive
    assert response_head(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive").keeps_alive


@pytest.mark.parametrize(
    "lines",
    [
        [("Content-Length", "5"), ("Content-Length", "6")],
        [("Content-Length", "-5")],
        [("Content-Length", "²")],
        [("Content-Length", "9" * 5000)],
        [("Content-Length", f"{'9' * 5000}, {'9' * 5000}")],
        [("Content-Length", "")],
        [("Transfer-Encoding", "gzip, chunked")],
        [("na me", "x")],
        [("", "x")],
        [("folded", "x\r\n y")],
    ],
)
def test_what_cannot_be_told_is_an_error(lines):
    with pytest.raises(S3ConnectionError):
        head_of(200, lines)


@given(st.dictionaries(names, values))
def test_a_request_is_written_line_by_line(headers):
    lines = request_head("GET", "/bucket/key?a=b", list(headers.items())).decode().split("\r\n")
    assert lines == ["GET /bucket/key?a=b HTTP/1.1", *(f"{n}: {v}" for n, v in headers.items()), "", ""]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-amz-meta-a", "one\r\nEvil: two"),
        ("x-amz-meta-a", "one\nEvil: two"),
        ("x-amz-meta-a", "one\rtwo"),
        ("x-amz-meta-a", "\0"),
        ("x-amz-meta a", "one"),
        ("x-amz-meta-a: x", "one"),
        ("x-amz-meta-a\r\nEvil", "one"),
    ],
)
def test_no_value_becomes_another_header(name, value):
    with pytest.raises(ConfigurationError, match="cannot be sent"):
        request_head("PUT", "/bucket/key", [("Host", "h"), (name, value)])


def chunked(pieces, extension=b"", trailers=b""):
    chunks = [b"%X%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces if piece]
    return b"".join(chunks) + b"0\r\n" + trailers + b"\r\n"


@given(
    st.lists(st.binary(max_size=60)),
    st.sampled_from([b"", b";a=b", b' ; name="v;"']),
    st.sampled_from([b"", b"x-amz-checksum-crc32: AAAAAA==\r\n"]),
    st.lists(st.integers(1, 20)),
    st.binary(max_size=10),
)
def test_chunks_may_arrive_in_any_pieces(pieces, extension, trailers, cuts, after):
    wire = chunked(pieces, extension, trailers) + after
    decoder = ChunkedDecoder()
    found = []
    while wire and not decoder.ended:
        cut = cuts.pop() if cuts else len(wire)
        found += decoder.feed(wire[:cut])
        wire = wire[cut:]
    assert b"".join(found) == b"".join(pieces)
    assert decoder.ended
    assert decoder.rest + wire == after


@given(st.lists(st.binary(min_size=1, max_size=60)), st.integers(1, 10**6))
def test_chunks_that_break_off_do_not_end(pieces, cut):
    wire = chunked(pieces)
    decoder = ChunkedDecoder()
    list(decoder.feed(wire[: -1 - cut % len(wire)]))
    assert not decoder.ended


@pytest.mark.parametrize("wire", [b"xyz\r\n", b"-1\r\n", b"\r\n", b"2\r\nabcd\r\n", b"1" * 20_000])
def test_what_is_no_chunk_is_an_error(wire):
    with pytest.raises(S3ConnectionError):
        list(ChunkedDecoder().feed(wire))

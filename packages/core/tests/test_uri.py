"""URIs and endpoints: taken apart in one place."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core import S3Client, parse_s3_uri
from s3torch.core._uri import S3Uri, check_endpoint
from s3torch.core.errors import ConfigurationError

ARN = "arn:aws:s3:us-west-2:123456789012"

buckets = st.text(min_size=1).filter(lambda text: "/" not in text)


class AnyPath(os.PathLike):
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


@given(bucket=buckets, key=st.text())
def test_any_bucket_and_key_come_back(bucket, key):
    assert parse_s3_uri(f"s3://{bucket}/{key}") == (bucket, key)
    assert parse_s3_uri(str(S3Uri(bucket, key))) == (bucket, key)


@pytest.mark.promise(9)
@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://b/k/x", ("b", "k/x")),
        ("s3://b", ("b", "")),
        ("s3://b/", ("b", "")),
        ("s3://b//k", ("b", "/k")),
        (f"s3://{ARN}:accesspoint/name/k/x", (f"{ARN}:accesspoint/name", "k/x")),
        (f"s3://{ARN}:accesspoint/name", (f"{ARN}:accesspoint/name", "")),
        (f"s3://{ARN}:accesspoint:name/k/x", (f"{ARN}:accesspoint:name", "k/x")),
        (f"s3://{ARN}:outpost/op-1/accesspoint/name//k", (f"{ARN}:outpost/op-1/accesspoint/name", "/k")),
        (f"s3://{ARN}:something/else", (f"{ARN}:something", "else")),
        ("s3://b/k//x/", ("b", "k//x/")),
        ("s3://b/a%20b+c?d#e", ("b", "a%20b+c?d#e")),
        ("s3://b/../k", ("b", "../k")),
        ("s3://b/s3://c/k", ("b", "s3://c/k")),
        ("s3://b/ü\n", ("b", "ü\n")),
        (Path("s3://b/k/x"), ("b", "k/x")),
        (PurePosixPath("s3://b"), ("b", "")),
        (AnyPath("s3://b/k"), ("b", "k")),
        (AnyPath("s3:/b//k"), ("b", "/k")),
    ],
)
def test_the_key_is_untouched(uri, expected):
    assert parse_s3_uri(uri) == expected


@pytest.mark.parametrize(
    "uri",
    [
        None,
        "",
        "S3://b",
        "http://b/k",
        "b/k",
        "/b/k",
        "s3:b",
        "s3:/b/k",
        " s3://b",
        b"s3://b/k",
        7,
        Path("/b/k"),
        AnyPath(b"s3://b/k"),
        Path("s3"),
        AnyPath("S3:/b/k"),
    ],
)
def test_other_things_are_refused(uri):
    with pytest.raises(ValueError, match="Only s3:// URIs are supported"):
        parse_s3_uri(uri)


@pytest.mark.parametrize("uri", ["s3://", "s3:///", "s3:///k", "s3:////k"])
def test_a_bucket_is_needed(uri):
    with pytest.raises(ConfigurationError, match="Bucket name must be non-empty"):
        parse_s3_uri(uri)


def test_the_error_names_the_uri():
    with pytest.raises(ConfigurationError, match="gs://b/k"):
        parse_s3_uri("gs://b/k")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost", "http://localhost"),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("https://[::1]:9000/", "https://[::1]:9000"),
        ("https://store.example/base/", "https://store.example/base"),
        ("HTTPS://Store.Example", "HTTPS://Store.Example"),
    ],
)
def test_good_endpoints(url, expected):
    assert check_endpoint(url) == expected


BAD_ENDPOINTS = [
    "",
    "localhost",
    "localhost:9000",
    "127.0.0.1:9000",
    "http:",
    "http://",
    "http:///path",
    "http://:9000",
    "ftp://host",
    "s3://host",
    "http://host:port",
    "http://host:99999",
    "http://host:0",
    "http://host:-1",
    "http://[::1",
    "http://host name",
    "http://host\n",
    "http://host?x=1",
    "http://host#x",
]


@pytest.mark.parametrize("url", BAD_ENDPOINTS)
def test_malformed_endpoints_are_refused_where_they_are_given(url):
    with pytest.raises(ConfigurationError, match="invalid S3 endpoint"):
        S3Client("us-east-1", endpoint=url)


@pytest.mark.parametrize("url", [5, b"http://host", Path("http://host"), ["http://host"]])
def test_an_endpoint_is_a_string(url):
    with pytest.raises(ConfigurationError, match="endpoint"):
        S3Client("us-east-1", endpoint=url)


@pytest.mark.promise(10)
@pytest.mark.parametrize("url", ["http://user:pa55word@host", "http://:pa55word@host:9000"])
def test_an_endpoint_has_no_user_and_the_error_no_password(url):
    with pytest.raises(ConfigurationError, match="invalid S3 endpoint") as caught:
        check_endpoint(url)
    assert "pa55word" not in str(caught.value)


@given(st.text())
def test_no_text_makes_anything_but_a_clear_error(url):
    with contextlib.suppress(ConfigurationError):
        assert check_endpoint(url).lower().startswith(("http://", "https://"))

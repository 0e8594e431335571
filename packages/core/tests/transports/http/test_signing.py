"""The signature of the http transport, compared with botocore's."""

from __future__ import annotations

import datetime as dt
from unittest import mock
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core.models import BucketEndpoint, Credentials
from s3torch.core.transports.http._messages import Signer

NOW = dt.datetime(2026, 5, 4, 3, 2, 1, tzinfo=dt.UTC)
KEYS = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")

texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30)
queries = st.dictionaries(
    st.sampled_from(["partNumber", "uploadId", "versionId", "uploads"]), texts, max_size=3
)
headers = st.dictionaries(
    st.sampled_from(["x-amz-meta-a", "X-Amz-Meta-Long-Name", "x-amz-storage-class", "Content-Type"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
)


def by_botocore(method, url, lines, endpoint, keys):
    """The headers that botocore adds."""
    request = AWSRequest(method, url, dict(lines))
    request.context["payload_signing_enabled"] = False
    request.context["client_config"] = mock.Mock(s3={"payload_signing_enabled": False})
    request.context["has_streaming_input"] = True
    request.headers["Content-MD5"] = "none"
    signer = S3SigV4Auth(
        BotoCredentials(keys.access_key, keys.secret_key, keys.session_token),
        endpoint.signing_name,
        endpoint.signing_region,
    )
    moment = "botocore.auth.get_current_datetime"
    with mock.patch(moment, return_value=NOW.replace(tzinfo=None)):
        signer.add_auth(request)
    return dict(request.headers)


def by_us(method, target, lines, endpoint, keys, signer=None):
    signed = (signer or Signer()).sign(
        method, target, lines, endpoint=endpoint, credentials=keys, now=NOW.timestamp()
    )
    return dict(signed)


@given(
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE"]),
    key=texts.filter(bool),
    query=queries,
    lines=headers,
    token=st.none() | st.just("a/session+token=="),
    region=st.sampled_from(["us-east-1", "eu-west-3"]),
)
def test_it_is_the_signature_of_botocore(method, key, query, lines, token, region):
    keys = Credentials(KEYS.access_key, KEYS.secret_key, token)
    endpoint = BucketEndpoint("https", "bucket.s3.example.com:8443", "/", region)
    quoted = "&".join(f"{name}={quote(value, safe='')}" for name, value in sorted(query.items()))
    target = "/" + quote(key, safe="/~") + (f"?{quoted}" if quoted else "")
    sent = [("Host", endpoint.host), ("Content-MD5", "none"), *lines.items()]
    expected = by_botocore(method, f"https://{endpoint.host}{target}", lines, endpoint, keys)
    found = by_us(method, target, sent, endpoint, keys)
    assert found["Authorization"] == expected["Authorization"]
    assert found["x-amz-content-sha256"] == expected["X-Amz-Content-SHA256"] == "UNSIGNED-PAYLOAD"
    assert found["x-amz-date"] == expected["X-Amz-Date"]
    assert found.get("x-amz-security-token") == expected.get("X-Amz-Security-Token") == token


def test_keys_of_directory_buckets_have_a_header_of_their_own():
    keys = Credentials(KEYS.access_key, KEYS.secret_key, "token")
    endpoint = BucketEndpoint(
        "https", "b--x-s3.example.com", "/", "us-east-1", "s3express", session_auth=True
    )
    found = by_us("GET", "/key", [("Host", endpoint.host)], endpoint, keys)
    assert found["x-amz-s3session-token"] == "token"
    assert "x-amz-security-token" not in found
    assert "/us-east-1/s3express/aws4_request" in found["Authorization"]
    assert "x-amz-s3session-token" in found["Authorization"]


@pytest.mark.parametrize(
    ("keys", "region"),
    [(Credentials("OTHER", "other-secret"), "us-east-1"), (KEYS, "eu-west-1")],
    ids=["other-keys", "other-region"],
)
def test_a_derived_key_is_not_used_for_others(keys, region):
    signer = Signer()
    first = BucketEndpoint("http", "host", "/bucket/", "us-east-1")
    other = BucketEndpoint("http", "host", "/bucket/", region)
    lines = [("Host", "host")]
    by_us("GET", "/bucket/key", lines, first, KEYS, signer)
    assert by_us("GET", "/bucket/key", lines, other, keys, signer) == by_us(
        "GET", "/bucket/key", lines, other, keys
    )

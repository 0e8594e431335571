"""How transports sign for endpoints with rules of their own."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from s3torch.core import Credentials, S3ClientConfig
from s3torch.core.models import BucketEndpoint
from s3torch.core.seam import TransportContext
from s3torch.core.session import AwsSession
from s3torch.core.transports.crt import CrtTransport
from s3torch.core.transports.http import HttpTransport
from s3torch.testing.transport_tests import TransportCalls

KEYS = Credentials("AKIAEXAMPLE", "the-secret-key", "the-token")
MULTI_REGION = "arn:aws:s3::123456789012:accesspoint:mfzwi23gnjvgw.mrap"
# https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html
ASYMMETRIC = "AWS4-ECDSA-P256-SHA256"
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def public_key(keys):
    """The public key that belongs to a pair of AWS keys, by the derivation of SigV4A."""
    for counter in range(1, 255):
        context = keys.access_key.encode() + bytes([counter])
        message = (1).to_bytes(4) + ASYMMETRIC.encode() + b"\0" + context + (256).to_bytes(4)
        digest = hmac.digest(b"AWS4A" + keys.secret_key.encode(), message, "sha256")
        number = int.from_bytes(digest)
        if number <= ORDER - 2:
            return ec.derive_private_key(number + 1, ec.SECP256R1()).public_key()
    raise AssertionError("no key")


def string_to_sign(request, signed_headers, scope):
    path, _, query = request.path.partition("?")
    lines = [f"{name}:{request.headers[name].strip()}" for name in signed_headers]
    canonical = [request.method, path, query, *lines, "", ";".join(signed_headers)]
    canonical.append(request.headers["x-amz-content-sha256"])
    digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    return "\n".join([ASYMMETRIC, request.headers["x-amz-date"], scope, digest]).encode()


@pytest.fixture(params=[CrtTransport, HttpTransport], ids=["crt", "http"])
def transport(stub, request):
    """A transport that has been told that the multi-region access point is at the stub."""
    host = stub.endpoint.removeprefix("http://")
    known = {MULTI_REGION: BucketEndpoint("http", host, "/", "*")}
    config = S3ClientConfig(credentials=lambda: KEYS, max_attempts=1)
    session = AwsSession(region="us-west-2", endpoint=None, config=config, user_agent="test", endpoints=known)
    transport = TransportCalls(request.param(TransportContext(config, session, "test")))
    yield transport
    transport.close()


def test_multi_region_access_points_are_signed_for_all_regions(transport, stub, answer):
    stub.will(answer(body=b"data"))
    assert transport.get(MULTI_REGION, "folder/key").result(60).data == b"data"
    (request,) = stub.requests
    headers = request.headers
    assert headers["x-amz-region-set"] == "*"
    assert headers["x-amz-security-token"] == KEYS.session_token
    algorithm, _, rest = headers["authorization"].partition(" ")
    facts = dict(part.strip().split("=", 1) for part in rest.split(","))
    access_key, _, scope = facts["Credential"].partition("/")
    assert (algorithm, access_key) == (ASYMMETRIC, KEYS.access_key)
    assert scope.split("/")[1:] == ["s3", "aws4_request"]
    signed_headers = facts["SignedHeaders"].split(";")
    assert {"host", "x-amz-region-set", "x-amz-security-token"} <= set(signed_headers)

    message = string_to_sign(request, signed_headers, scope)
    public_key(KEYS).verify(bytes.fromhex(facts["Signature"]), message, ec.ECDSA(hashes.SHA256()))

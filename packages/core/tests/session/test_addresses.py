"""Addresses compared with what botocore sends; nothing here uses the network."""

from __future__ import annotations

import itertools
import socket
from urllib.parse import urlsplit

import pytest
from boto3.session import Session
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.session import Session as BotocoreSession

from s3torch.core import S3ClientConfig
from s3torch.core.errors import ConfigurationError
from s3torch.core.session import AwsSession

ACCOUNT = "123456789012"
BUCKETS = {
    "name": "data",
    "dots": "my.data.set",
    "short": "abc",
    "access point": f"arn:aws:s3:us-west-2:{ACCOUNT}:accesspoint/myap",
    "access point elsewhere": f"arn:aws:s3:eu-west-1:{ACCOUNT}:accesspoint:myap",
    "alias": "myap-hrzrlukc5m36ft7okagglf3gmwluquse1b-s3alias",
    "multi-region": f"arn:aws:s3::{ACCOUNT}:accesspoint:mfzwi23gnjvgw.mrap",
    "object lambda": f"arn:aws:s3-object-lambda:us-west-2:{ACCOUNT}:accesspoint/mylambda",
    "outpost": f"arn:aws:s3-outposts:us-west-2:{ACCOUNT}:outpost/op-01234567890123456/accesspoint/reports",
    "directory": "base--usw2-az1--x-s3",
    "directory access point": "point--usw2-az1--xa-s3",
}
SETTINGS = {
    "plain": "",
    "fips": "use_fips_endpoint = true",
    "dual-stack": "use_dualstack_endpoint = true",
    "both": "use_fips_endpoint = true\nuse_dualstack_endpoint = true",
    "accelerated": "s3 =\n  use_accelerate_endpoint = true",
    "accelerated-dual-stack": "use_dualstack_endpoint = true\ns3 =\n  use_accelerate_endpoint = true",
    "region-of-the-arn": "s3 =\n  use_arn_region = true",
    "region-of-the-client": "s3 =\n  use_arn_region = false",
    "no-sessions": "s3_disable_express_session_auth = true",
    "no-multi-region": "s3 =\n  s3_disable_multiregion_access_points = true",
    "path-style": "s3 =\n  addressing_style = path",
    "virtual-style": "s3 =\n  addressing_style = virtual",
    "regional-us-east-1": "s3 =\n  us_east_1_regional_endpoint = regional",
}
COMBINATIONS = [
    *[("us-west-2", name) for name in SETTINGS],
    *itertools.product(["us-east-1", "cn-north-1", "us-gov-west-1"], ["plain", "both"]),
    ("us-east-1", "regional-us-east-1"),
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def profiles(tmp_path_factory):
    """A configuration file with a profile for each of the settings."""
    path = tmp_path_factory.mktemp("aws") / "config"
    path.write_text("".join(f"[profile {name}]\n{lines}\n" for name, lines in SETTINGS.items()))
    return path


SESSION = (
    b"<CreateSessionResult><Credentials><SessionToken>t</SessionToken><SecretAccessKey>s</SecretAccessKey>"
    b"<AccessKeyId>a</AccessKeyId><Expiration>2100-01-01T00:00:00Z</Expiration></Credentials>"
    b"</CreateSessionResult>"
)


class Answer:
    """The body of every response."""

    def stream(self, *_, **__):
        yield SESSION


class Oracle:
    """What a plain boto3 client sends for an object, or that it refuses to."""

    def __init__(self, *, region, endpoint=None, profile=None):
        self.sent = []
        self.client = Session(botocore_session=BotocoreSession(profile=profile)).client(
            "s3",
            region_name=region,
            endpoint_url=endpoint,
            aws_access_key_id="access",
            aws_secret_access_key="secret",
            aws_session_token="token",
            config=Config(retries={"total_max_attempts": 1}),
        )
        self.client.meta.events.register("before-send.s3", self._send)

    def _send(self, request, **_):
        self.sent.append(request)
        return AWSResponse(request.url, 200, {}, Answer())

    def place(self, bucket):
        """URL, service and region set of the signature, and the header with the token; ``None``: refused."""
        try:
            self.client.get_object(Bucket=bucket, Key="a/key")
        except Exception:  # noqa: BLE001 - Refusals have many classes.
            return None
        request = self.sent[-1]
        told = {n.lower(): v if isinstance(v, str) else v.decode() for n, v in request.headers.items()}
        scope = told["authorization"].partition("Credential=")[2].split(",")[0].split("/")
        region = told.get("x-amz-region-set") or scope[2]
        (token,) = told.keys() & {"x-amz-s3session-token", "x-amz-security-token"}
        return request.url, region, scope[-2], token


def session(*, region, endpoint=None, profile=None):
    config = S3ClientConfig(profile=profile)
    return AwsSession(region=region, endpoint=endpoint, config=config, user_agent="", endpoints={})


def place(session, bucket):
    """The same of a session of ours."""
    try:
        found = session.endpoint(bucket)
    except ConfigurationError:
        return None
    url = f"{found.scheme}://{found.host}{found.base_path}a/key"
    return url, found.signing_region, found.signing_name, found.token_header


@pytest.mark.parametrize(("region", "settings"), COMBINATIONS)
def test_addresses_are_those_of_botocore(profiles, monkeypatch, region, settings):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(profiles))
    oracle = Oracle(region=region, profile=settings)
    expected = {name: oracle.place(bucket) for name, bucket in BUCKETS.items()}
    ours = session(region=region, profile=settings)
    assert {name: place(ours, bucket) for name, bucket in BUCKETS.items()} == expected


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://bucket.vpce-1a2b3c4d-5e6f.s3.us-west-2.vpce.amazonaws.com",
        "https://s3.us-west-2.amazonaws.com",
    ],
)
def test_endpoints_within_aws_put_the_bucket_before_the_host(endpoint):
    host = urlsplit(endpoint).hostname
    ours = session(region="us-west-2", endpoint=endpoint)
    url, *signed = place(ours, "data")
    assert url == f"https://data.{host}/a/key"
    assert signed == ["us-west-2", "s3", "x-amz-security-token"]
    assert place(ours, "my.data")[0] == f"https://{host}/my.data/a/key"


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9000", "http://minio:9000", "https://lab.example/s3"])
def test_what_has_rules_of_its_own_keeps_them_in_stores_outside_aws(endpoint):
    ours = session(region="us-west-2", endpoint=endpoint)
    oracle = Oracle(region="us-west-2", endpoint=endpoint)
    for name in ("directory", "directory access point"):
        assert place(ours, BUCKETS[name]) == oracle.place(BUCKETS[name]) is not None


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:9000", "http://minio:9000", "https://lab.example", "https://lab.example/s3"],
)
@pytest.mark.parametrize("style", ["plain", "path-style", "virtual-style"])
def test_a_store_outside_aws_may_want_the_bucket_before_its_host(profiles, monkeypatch, endpoint, style):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(profiles))
    oracle = Oracle(region="us-west-2", endpoint=endpoint, profile=style)
    ours = session(region="us-west-2", endpoint=endpoint, profile=style)
    for name in ("name", "dots", "short", "directory"):
        assert place(ours, BUCKETS[name]) == oracle.place(BUCKETS[name]) is not None


def test_the_ways_to_sign():
    ours = session(region="us-west-2")
    signed = {name: place(ours, bucket)[1:3] for name, bucket in BUCKETS.items() if place(ours, bucket)}
    assert signed["name"] == signed["alias"] == ("us-west-2", "s3")
    assert signed["multi-region"] == ("*", "s3")
    assert signed["outpost"] == ("*", "s3-outposts")
    assert signed["object lambda"] == ("us-west-2", "s3-object-lambda")
    assert signed["directory"] == signed["directory access point"] == ("us-west-2", "s3express")

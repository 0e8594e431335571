"""Addresses, regions and credentials from the usual AWS places; nothing here uses the network."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta

import pytest
from boto3 import Session

from s3torch.core import Credentials, S3ClientConfig
from s3torch.core.errors import ConfigurationError, NoCredentialsError, S3Error
from s3torch.core.models import BucketEndpoint
from s3torch.core.session import AwsSession

ARN = "arn:aws:s3:us-west-2:123456789012:accesspoint/myap"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes the AWS files."""

    def write(config="", credentials=""):
        for name, text in (("AWS_CONFIG_FILE", config), ("AWS_SHARED_CREDENTIALS_FILE", credentials)):
            path = tmp_path / name
            path.write_text(text)
            monkeypatch.setenv(name, str(path))

    return write


def session(*, region="us-east-1", endpoint=None, endpoints=None, **settings):
    known = {} if endpoints is None else endpoints
    config = S3ClientConfig(**settings)
    return AwsSession(region=region, endpoint=endpoint, config=config, user_agent="test", endpoints=known)


def place(bucket="data", **options):
    found = session(**options).endpoint(bucket)
    return f"{found.scheme}://{found.host}{found.base_path}", found.signing_region


@pytest.mark.parametrize(
    ("bucket", "region", "url"),
    [
        ("data", "eu-west-1", "https://data.s3.eu-west-1.amazonaws.com/"),
        ("data", "cn-north-1", "https://data.s3.cn-north-1.amazonaws.com.cn/"),
        ("data", "us-gov-west-1", "https://data.s3.us-gov-west-1.amazonaws.com/"),
        # A certificate for *.s3.amazonaws.com does not cover a name with dots.
        ("my.data.set", "eu-west-1", "https://s3.eu-west-1.amazonaws.com/my.data.set/"),
        # The name of the probed key, and too short for a host name.
        ("k", "eu-west-1", "https://s3.eu-west-1.amazonaws.com/k/"),
        (ARN, "us-west-2", "https://myap-123456789012.s3-accesspoint.us-west-2.amazonaws.com/"),
    ],
)
def test_the_rules_of_aws(bucket, region, url):
    assert place(bucket, region=region) == (url, region)


def test_us_east_1_has_an_address():
    url, region = place(region="us-east-1")
    assert url in {"https://data.s3.amazonaws.com/", "https://data.s3.us-east-1.amazonaws.com/"}
    assert region == "us-east-1"


def test_path_style_can_be_forced():
    url, _ = place(region="eu-west-1", force_path_style=True)
    assert url == "https://s3.eu-west-1.amazonaws.com/data/"


def test_the_settings_come_before_the_addressing_style_of_the_profile(files):
    files(config="[default]\ns3 =\n  addressing_style = virtual\n")
    assert place(endpoint="http://store:9000")[0] == "http://data.store:9000/"
    assert place(endpoint="http://store:9000", addressing_style="path")[0] == "http://store:9000/data/"
    assert place(endpoint="http://store:9000", addressing_style="auto")[0] == "http://store:9000/data/"
    assert place(endpoint="http://store:9000", force_path_style=True)[0] == "http://store:9000/data/"
    files(config="[default]\ns3 =\n  addressing_style = path\n")
    assert place(region="eu-west-1")[0] == "https://s3.eu-west-1.amazonaws.com/data/"
    assert place(addressing_style="virtual")[0].startswith("https://data.s3.")
    files(config="[default]\ns3 =\n  addressing_style = dns\n")
    with pytest.raises(ConfigurationError, match="addressing_style"):
        place()


WHEN = ["", "when_supported", "when_required", "WHEN_REQUIRED"]


@pytest.mark.parametrize("environment", WHEN)
@pytest.mark.parametrize("profile", WHEN)
def test_checksums_only_when_required(files, monkeypatch, environment, profile):
    names = ("request_checksum_calculation", "response_checksum_validation")
    files(config="[default]\n" + "".join(f"{name} = {profile}\n" for name in names if profile))
    for name in names:
        monkeypatch.setenv(f"AWS_{name.upper()}", environment)
    settled = session().settled
    off = (environment or profile).lower() == "when_required"
    assert (settled.upload_checksum, settled.verify) == ((None, "off") if off else ("CRC64NVME", "on"))
    # What the settings say comes before both.
    said = session(checksum_algorithm="CRC32", verify="on").settled
    assert (said.upload_checksum, said.verify) == ("CRC32", "on")
    none = session(checksum_algorithm="off", verify="off").settled
    assert (none.upload_checksum, none.verify) == (None, "off")


def test_each_of_them_for_itself(monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    settled = session().settled
    assert (settled.upload_checksum, settled.verify) == (None, "on")
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
    settled = session().settled
    assert (settled.upload_checksum, settled.verify) == ("CRC64NVME", "off")


def test_a_store_that_knows_no_checksums_is_not_asked_for_any():
    assert session(checksum_algorithm="off").settled.verify == "off"
    assert session(checksum_algorithm="off", verify="on").settled.verify == "on"


@pytest.mark.parametrize("name", ["request_checksum_calculation", "response_checksum_validation"])
def test_other_values_are_refused(monkeypatch, name):
    monkeypatch.setenv(f"AWS_{name.upper()}", "never")
    with pytest.raises(ConfigurationError, match=f"{name} must be when_supported or when_required"):
        _ = session().settled


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://localhost:9000", "http://localhost:9000/data/"),
        ("https://minio", "https://minio/data/"),
        ("http://127.0.0.1:9000/", "http://127.0.0.1:9000/data/"),
        ("http://[::1]:9000", "http://[::1]:9000/data/"),
        ("https://store.example/base/", "https://store.example/base/data/"),
        ("https://amazonaws.com.example", "https://amazonaws.com.example/data/"),
        ("https://s3.eu-west-1.amazonaws.com", "https://data.s3.eu-west-1.amazonaws.com/"),
    ],
)
def test_a_store_of_ones_own_has_path_style(endpoint, url):
    assert place(region="eu-west-1", endpoint=endpoint) == (url, "eu-west-1")


def test_a_store_of_ones_own_needs_no_region(monkeypatch):
    assert place(region=None, endpoint="http://minio:9000") == ("http://minio:9000/data/", "us-east-1")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert place(region=None, endpoint="http://minio:9000")[1] == "eu-north-1"


def test_the_endpoint_comes_from_the_argument_then_the_settings_then_the_environment(monkeypatch, files):
    files(config="[default]\nendpoint_url = http://profile:1\n")
    assert place()[0] == "http://profile:1/data/"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general:2")
    assert place()[0] == "http://general:2/data/"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://of-s3:3")
    assert place()[0] == "http://of-s3:3/data/"
    assert place(endpoint="http://argument:5")[0] == "http://argument:5/data/"
    config = S3ClientConfig(endpoint="http://settings:4")
    of_config = AwsSession(region="us-east-1", endpoint=None, config=config, user_agent="", endpoints={})
    assert of_config.endpoint("data").host == "settings:4"


def test_the_endpoint_of_a_service_section(files):
    text = "[profile lab]\nservices = lab\n[services lab]\ns3 =\n  endpoint_url = http://lab:9000\n"
    files(config=text)
    assert place(profile="lab")[0] == "http://lab:9000/data/"


def test_endpoints_of_the_environment_can_be_ignored(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general:2")
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert place(region="eu-west-1")[0] == "https://data.s3.eu-west-1.amazonaws.com/"


def test_a_malformed_endpoint_of_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    with pytest.raises(ConfigurationError, match="minio:9000"):
        place()


@pytest.mark.parametrize(
    ("variables", "host"),
    [
        ({"AWS_USE_FIPS_ENDPOINT": "true"}, "data.s3-fips.us-east-2.amazonaws.com"),
        ({"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "data.s3.dualstack.us-east-2.amazonaws.com"),
        (
            {"AWS_USE_FIPS_ENDPOINT": "true", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
            "data.s3-fips.dualstack.us-east-2.amazonaws.com",
        ),
    ],
    ids=["fips", "dual-stack", "both"],
)
def test_fips_and_dual_stack_by_variables(monkeypatch, variables, host):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert place(region="us-east-2")[0] == f"https://{host}/"


@pytest.mark.parametrize(
    ("lines", "host"),
    [
        ("use_fips_endpoint = true", "data.s3-fips.us-east-2.amazonaws.com"),
        ("use_dualstack_endpoint = true", "data.s3.dualstack.us-east-2.amazonaws.com"),
        ("s3 =\n  use_accelerate_endpoint = true", "data.s3-accelerate.amazonaws.com"),
    ],
    ids=["fips", "dual-stack", "accelerate"],
)
def test_fips_dual_stack_and_acceleration_by_profile(files, lines, host):
    files(config=f"[profile special]\n{lines}\n")
    assert place(region="us-east-2", profile="special")[0] == f"https://{host}/"


def test_the_region_comes_from_the_argument_then_variables_then_the_profile(monkeypatch, files):
    files(config="[default]\nregion = eu-west-1\n[profile other]\nregion = eu-west-2\n")
    assert session(region=None).region == "eu-west-1"
    assert session(region=None, profile="other").region == "eu-west-2"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    assert session(region=None).region == "eu-west-3"
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert session(region=None).region == "eu-north-1"
    assert session(region="ap-south-1").region == "ap-south-1"


def test_without_a_region_the_error_says_how_to_give_one():
    with pytest.raises(ConfigurationError, match="AWS_REGION"):
        place(region=None)


@pytest.mark.parametrize(
    ("bucket", "region"),
    [("a b", "us-east-1"), ("data", "no where"), ("arn:x", "us-east-1")],
)
def test_names_that_cannot_be(bucket, region):
    with pytest.raises(ConfigurationError):
        place(bucket, region=region)


def test_an_address_is_resolved_once():
    endpoints = {}
    first = session(region="eu-west-1", endpoints=endpoints).endpoint("data")
    assert endpoints == {"data": first}
    known = BucketEndpoint("http", "elsewhere", "/", "x")
    assert session(endpoints={"data": known}).endpoint("data") is known


def test_an_unknown_profile_lists_those_there_are(files):
    files(config="[profile one]\nregion = eu-west-1\n", credentials="[two]\naws_access_key_id = a\n")
    with pytest.raises(ConfigurationError, match=r"nope.*one.*two|nope.*two.*one"):
        session(profile="nope").credentials()


def test_an_unknown_profile_of_the_environment(monkeypatch, files):
    files()
    monkeypatch.setenv("AWS_PROFILE", "nope")
    with pytest.raises(ConfigurationError, match="nope"):
        session().credentials()


def keys(found):
    return found.access_key, found.secret_key, found.session_token


def test_credentials_of_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "env-access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret")
    assert keys(session().credentials()) == ("env-access", "env-secret", None)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "env-token")
    assert keys(session().credentials()) == ("env-access", "env-secret", "env-token")


def test_credentials_of_a_profile(monkeypatch, files):
    both = "[{}]\naws_access_key_id = {}\naws_secret_access_key = s-{}\n"
    files(credentials=both.format("default", "d", "d") + both.format("other", "o", "o"))
    assert keys(session().credentials()) == ("d", "s-d", None)
    assert keys(session(profile="other").credentials()) == ("o", "s-o", None)
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert keys(session().credentials()) == ("o", "s-o", None)


def test_half_of_the_credentials_is_an_error(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access")
    with pytest.raises(NoCredentialsError, match="AWS_SECRET_ACCESS_KEY"):
        session().credentials()


def test_without_credentials_the_error_says_what_was_tried():
    with pytest.raises(NoCredentialsError) as caught:
        session().credentials()
    text = str(caught.value)
    assert all(word in text for word in ("environment", "default", "AWS_ACCESS_KEY_ID", "unsigned=True"))


def test_anonymous_requests_need_no_credentials_and_no_profile(monkeypatch):
    assert session(unsigned=True).credentials() is None
    assert session(unsigned=True, profile="nope").credentials() is None
    assert place(region="eu-west-1", unsigned=True)[0] == "https://data.s3.eu-west-1.amazonaws.com/"


def test_a_function_gives_credentials_before_all_other_places(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "env-access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret")
    found = session(credentials=lambda: Credentials("a", "s", "t"))
    assert keys(found.credentials()) == ("a", "s", "t")


def test_a_function_is_asked_again_when_its_keys_end():
    asked = []

    def provide():
        asked.append(1)
        # Within the time in which botocore has to refresh.
        lifetime = timedelta(minutes=5) if len(asked) == 1 else timedelta(hours=5)
        return Credentials(f"key-{len(asked)}", "s", expires_at=datetime.now(UTC) + lifetime)

    held = session(credentials=provide)
    found = [held.credentials().access_key for _ in range(3)]
    assert found[-1] == "key-2"
    assert len(asked) == 2


def test_keys_that_do_not_end_are_asked_for_once():
    asked = []
    held = session(credentials=lambda: asked.append(1) or Credentials("a", "s"))
    for _ in range(3):
        held.credentials()
    assert asked == [1]


def test_a_function_that_fails_is_the_cause():
    def provide():
        raise RuntimeError("the vault is sealed")

    with pytest.raises(NoCredentialsError, match="the vault is sealed") as caught:
        session(credentials=provide).credentials()
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("answer", [None, ("a", "s"), {"access_key": "a"}, "a"], ids=repr)
def test_a_function_has_to_return_credentials(answer):
    with pytest.raises(NoCredentialsError, match="Credentials"):
        session(credentials=lambda: answer).credentials()


def test_a_function_that_returns_ended_keys_is_an_error_of_ours():
    def provide():
        return Credentials("a", "s", expires_at=datetime.now(UTC) - timedelta(hours=1))

    with pytest.raises(S3Error, match="expired"):
        session(credentials=provide).credentials()


def test_closing_twice_is_no_error():
    held = session()
    held._session_client = held._make_boto_client()
    held.close()
    held.close()


@pytest.mark.parametrize(
    ("endpoint", "encrypted"), [(None, True), ("http://127.0.0.1:9000", False), ("https://store", True)]
)
def test_it_tells_whether_requests_go_over_tls(endpoint, encrypted):
    config = S3ClientConfig()
    session = AwsSession(
        region="us-east-1", endpoint=endpoint, config=config, user_agent="test", endpoints={}
    )
    assert session.is_encrypted is encrypted


def test_addresses_that_came_along_tell_whether_requests_go_over_tls():
    known = {"bucket": BucketEndpoint("http", "store:9000", "/bucket/", "us-east-1")}
    session = AwsSession(
        region="us-east-1", endpoint=None, config=S3ClientConfig(), user_agent="test", endpoints=known
    )
    assert not session.is_encrypted


PROFILES = """
[default]
ca_bundle = /default.pem
[profile other]
ca_bundle = /other.pem
[profile plain]
region = eu-west-1
"""


@pytest.mark.parametrize(
    ("environment", "settings", "expected"),
    [
        ({}, {}, "/default.pem"),
        ({}, {"profile": "other"}, "/other.pem"),
        ({"AWS_PROFILE": "other"}, {}, "/other.pem"),
        ({}, {"profile": "plain"}, None),
        ({"AWS_CA_BUNDLE": "/named.pem"}, {"profile": "other"}, "/named.pem"),
        ({"REQUESTS_CA_BUNDLE": "/last.pem"}, {"profile": "other"}, "/other.pem"),
        ({"REQUESTS_CA_BUNDLE": "/last.pem"}, {"profile": "plain"}, "/last.pem"),
        ({"AWS_CA_BUNDLE": "/named.pem"}, {"profile": "other", "ca_bundle": "/mine.pem"}, "/mine.pem"),
    ],
)
def test_the_bundle_is_that_of_boto3(files, monkeypatch, environment, settings, expected):
    files(config=PROFILES)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert session(**settings).ca_bundle == expected
    if "ca_bundle" not in settings:
        boto3 = Session(profile_name=settings.get("profile"), region_name="us-east-1")
        verify = boto3.client("s3")._endpoint.http_session._verify
        assert verify == (expected or True)


def test_botocore_is_not_loaded_where_the_files_name_no_bundle(files, python, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    files(config="[default]\nregion = eu-west-1\n")
    code = """
import sys
from s3torch.core import S3ClientConfig
from s3torch.core.session import AwsSession
session = AwsSession(region=None, endpoint=None, config=S3ClientConfig(), user_agent="", endpoints={})
assert session.ca_bundle is None
print("botocore" in sys.modules)
"""
    assert python(code).stdout == "False\n"

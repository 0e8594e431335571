"""The settings of a client."""

from __future__ import annotations

import dataclasses
import math
import pickle
import ssl
from functools import partial

import pytest

from s3torch.core import Credentials, PutOptions, S3ClientConfig
from s3torch.core.errors import ConfigurationError
from s3torch.core.plugins import default_transport
from s3torch.core.ranges import GIB, MIB
from s3torch.core.transports.http._records import _openssl

ORDER = [
    "throughput_target_gbps",
    "part_size",
    "unsigned",
    "force_path_style",
    "max_attempts",
    "profile",
    "requester_pays",
]


def keys(secret="secret"):
    return Credentials("access", secret)


def customer_key(key=b"0123456789abcdef0123456789abcdef"):
    return key


GOOD = {
    "throughput_target_gbps": [0, 0.5, 10, 400.0],
    "part_size": [5 * MIB, 8 * MIB + 1, 5 * GIB],
    "unsigned": [True, False],
    "force_path_style": [True, False],
    "max_attempts": [1, 100],
    "profile": [None, "training"],
    "requester_pays": [True, False],
    "endpoint": [None, "http://localhost:9000"],
    "transport": [None, "http", "third-party"],
    "memory_limit": [None, 5 * MIB, 64 * GIB],
    "connect_timeout": [0.001, 1, 3600],
    "read_timeout": [0.001, 1, 3600],
    "checksum_algorithm": ["CRC64NVME", "CRC32C", "CRC32", "SHA256", "off", None],
    "credentials": [None, keys],
    "put_options": [None, PutOptions(storage_class="STANDARD_IA")],
    "expected_bucket_owner": [None, "012345678901"],
    "sse_customer_key": [None, customer_key],
    "max_connections": [None, 1, 1024],
    "verify": [None, "on", "off"],
    "addressing_style": [None, "auto", "path", "virtual"],
    "growing_parts": [True, False],
    "low_speed_limit": [0, 1, GIB],
    "low_speed_time": [0.001, 30, 3600],
    "ca_bundle": [None, "/etc/ssl/mine.pem"],
}
BAD = {
    "throughput_target_gbps": [-1, -0.001, math.nan, math.inf, "10", None, True, 1j],
    "part_size": [0, -1, 5 * MIB - 1, 5 * GIB + 1, 8.0 * MIB, "8", None, True],
    "unsigned": [0, 1, None, "yes"],
    "force_path_style": [0, 1, None, "yes"],
    "max_attempts": [0, -1, 101, 2.0, "3", None, True],
    "profile": ["", 5, b"training"],
    "requester_pays": [0, 1, None, "yes"],
    "endpoint": ["", "localhost:9000", 5, b"http://x"],
    "transport": ["", 5],
    "memory_limit": [0, -1, 5 * MIB - 1, 1e9, "1", True],
    "connect_timeout": [0, -1, 3601, math.nan, math.inf, None, "1", True],
    "read_timeout": [0, -1, 3601, math.nan, math.inf, None, "1", True],
    "checksum_algorithm": ["", "crc32", "MD5", 5, ["CRC32"]],
    "credentials": [keys(), "access:secret", 5],
    "put_options": ["STANDARD_IA", {}, 5],
    "expected_bucket_owner": ["", "12345", "01234567890x", 12345678901],
    "sse_customer_key": [bytes(32), "key", 5],
    "max_connections": [0, -1, 1025, 8.0, "8", True],
    "verify": ["", True, False, "when_required"],
    "addressing_style": ["", "dns", 5],
    "growing_parts": [0, 1, None, "yes"],
    "low_speed_limit": [-1, GIB + 1, 1.0, None, True],
    "low_speed_time": [0, -1, 3601, math.nan, None, "1"],
    "ca_bundle": ["", 5, b"/x"],
}


def pairs(table):
    return [
        pytest.param(name, value, id=f"{name}={value!r}".split(" at ")[0])
        for name in table
        for value in table[name]
    ]


def test_every_field_is_tested():
    assert [field.name for field in dataclasses.fields(S3ClientConfig)] == list(GOOD) == list(BAD)


def test_the_order_of_the_first_fields_is_kept():
    assert list(GOOD)[: len(ORDER)] == ORDER
    config = S3ClientConfig(5.0, 16 * MIB, False, True, 3, "p", True)
    assert (config.part_size, config.max_attempts, config.profile) == (16 * MIB, 3, "p")


def test_the_defaults():
    config = S3ClientConfig()
    assert (config.throughput_target_gbps, config.part_size, config.max_attempts) == (10.0, 8 * MIB, 10)
    assert (config.unsigned, config.force_path_style, config.requester_pays) == (False, False, False)
    assert (config.profile, config.endpoint, config.memory_limit) == (None, None, None)
    assert config.upload_checksum == "CRC64NVME"


@pytest.mark.parametrize(("name", "value"), pairs(GOOD))
def test_good_values(name, value):
    assert getattr(S3ClientConfig(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), pairs(BAD))
def test_bad_values_are_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=name) as caught:
        S3ClientConfig(**{name: value})
    assert isinstance(caught.value, ValueError)


def test_the_error_names_the_value_and_the_range():
    with pytest.raises(ConfigurationError, match=f"part_size must be from {5 * MIB} to {5 * GIB}, got 7"):
        S3ClientConfig(part_size=7)


def test_anonymous_requests_cannot_agree_to_pay():
    with pytest.raises(ConfigurationError, match="requester_pays"):
        S3ClientConfig(unsigned=True, requester_pays=True)


def test_one_addressing_style_at_a_time():
    assert S3ClientConfig(force_path_style=True, addressing_style="path").force_path_style
    with pytest.raises(ConfigurationError, match="force_path_style"):
        S3ClientConfig(force_path_style=True, addressing_style="virtual")


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        S3ClientConfig().part_size = 5 * MIB


def test_it_is_a_value():
    one, two = S3ClientConfig(part_size=16 * MIB), S3ClientConfig(part_size=16 * MIB)
    assert one == two
    assert hash(one) == hash(two)
    assert {one: 1}[two] == 1
    assert one != S3ClientConfig()


@pytest.mark.promise(5)
@pytest.mark.parametrize(("name", "value"), pairs(GOOD))
def test_it_can_be_pickled(name, value):
    config = S3ClientConfig(**{name: value})
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    assert hash(again) == hash(config)


def test_its_repr_can_be_read():
    assert "part_size=16777216" in repr(S3ClientConfig(part_size=16 * MIB))


@pytest.mark.promise(10)
def test_its_repr_shows_no_secret():
    config = S3ClientConfig(credentials=partial(keys, secret="pa55word"))
    assert "pa55word" not in repr(config)
    assert "pa55word" not in str(config)


def test_credentials_show_nothing():
    held = Credentials("AKIA123", "pa55word", "t0ken")
    assert not {"AKIA123", "pa55word", "t0ken"} & set(repr(held).replace("'", " ").split())
    assert "pa55word" not in repr(held)
    assert "t0ken" not in repr(held)


@pytest.mark.parametrize(
    ("variable", "attempts"),
    [("3", 3), ("1", 1), ("", 4), ("0", 4), ("-1", 4), ("many", 4), ("2.5", 4), ("999999999999", 100)],
)
def test_the_environment_sets_the_attempts(monkeypatch, variable, attempts):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", variable)
    config = S3ClientConfig(max_attempts=4)
    assert config.attempts == attempts
    assert config.max_attempts == 4


def test_without_the_environment_the_field_counts(monkeypatch):
    monkeypatch.delenv("AWS_MAX_ATTEMPTS", raising=False)
    assert S3ClientConfig(max_attempts=7).attempts == 7


def test_the_transport_is_the_field_then_the_environment(monkeypatch):
    monkeypatch.delenv("S3TORCH_TRANSPORT", raising=False)
    assert S3ClientConfig().transport_name is None
    monkeypatch.setenv("S3TORCH_TRANSPORT", "http")
    assert S3ClientConfig().transport_name == "http"
    assert S3ClientConfig(transport="memory").transport_name == "memory"
    monkeypatch.setenv("S3TORCH_TRANSPORT", "")
    assert S3ClientConfig().transport_name is None


@pytest.mark.parametrize(("library", "over_tls"), [(ssl.OPENSSL_VERSION, "http"), ("LibreSSL 3.9", "crt")])
def test_what_serves_where_no_transport_is_asked_for(monkeypatch, library, over_tls):
    monkeypatch.setattr(ssl, "OPENSSL_VERSION", library)
    _openssl.cache_clear()
    assert default_transport(encrypted=True) == over_tls
    assert default_transport(encrypted=False) == "http"
    _openssl.cache_clear()


def test_checksums_can_be_off():
    assert S3ClientConfig(checksum_algorithm="off").upload_checksum is None
    assert S3ClientConfig(checksum_algorithm="CRC32C").upload_checksum == "CRC32C"


@pytest.mark.promise(10)
def test_a_customer_key_is_never_shown():
    config = S3ClientConfig(sse_customer_key=customer_key)
    assert config.customer_key() == customer_key()
    assert "key" not in repr(config).replace("sse_customer_key", "")
    packed = pickle.dumps(config)
    assert customer_key() not in packed
    assert pickle.loads(packed).customer_key() == customer_key()


@pytest.mark.parametrize("key", [b"short-and-secret", "0123456789abcdef0123456789abcdef", None], ids=repr)
def test_a_customer_key_has_32_bytes(key):
    with pytest.raises(ConfigurationError, match="sse_customer_key must return") as caught:
        S3ClientConfig(sse_customer_key=lambda: key).customer_key()
    assert key is None or str(key) not in str(caught.value)


def test_a_customer_key_that_cannot_be_had():
    def vault():
        raise OSError("sealed with 0123456789")

    with pytest.raises(ConfigurationError, match="OSError") as caught:
        S3ClientConfig(sse_customer_key=vault).customer_key()
    assert "0123456789" not in str(caught.value)


def test_one_encryption_at_a_time():
    kms = PutOptions(server_side_encryption="aws:kms")
    with pytest.raises(ConfigurationError, match="sse_customer_key"):
        S3ClientConfig(sse_customer_key=customer_key, put_options=kms)
    with pytest.raises(ConfigurationError, match="sse_customer_key"):
        S3ClientConfig(sse_customer_key=customer_key).options_of(kms)


def test_what_a_call_says_comes_before_the_defaults():
    config = S3ClientConfig(put_options=PutOptions(storage_class="GLACIER_IR", content_type="a/b"))
    assert config.options_of(None) == config.put_options
    chosen = config.options_of(PutOptions(content_type="c/d"))
    assert chosen == PutOptions(storage_class="GLACIER_IR", content_type="c/d")


def test_connections_are_shared_out_unless_they_are_given(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert S3ClientConfig().connections == 128
    assert S3ClientConfig(max_connections=5).connections == 5
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert S3ClientConfig().connections == 32
    assert S3ClientConfig(throughput_target_gbps=40.0).connections == 100
    assert S3ClientConfig(throughput_target_gbps=400.0).connections == 128
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert S3ClientConfig(throughput_target_gbps=1.0).connections == 10

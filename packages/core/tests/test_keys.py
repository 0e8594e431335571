"""Every key that S3 takes arrives as it is, whatever is done with it."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from s3torch.core import S3Client, S3ClientConfig, parse_s3_uri
from s3torch.core.models import PutOptions

AWKWARD = " +%&=?#/\\\"'<>;:,@$!*()[]{}|^~`ü🔥\u0308\u2028.-_"
CONTROLS = "\x01\x07\t\n\r\x1f\x7f\x85\ufffe"


def fits(key):
    return 0 < len(key.encode()) <= 1020


# What servers for tests make of keys is not what S3 does: SeaweedFS keeps objects as files.
def is_a_path(key):
    names = key.split("/")
    return "\\" not in key and all(
        0 < len(name.encode()) <= 255 and name not in {".", ".."} for name in names
    )


keys = st.one_of(
    st.text(AWKWARD + "ab%20", min_size=1, max_size=30),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=300),
).filter(fits)


@pytest.fixture(params=["crt", "http"])
def make_client(request, monkeypatch):
    clients = []

    def make(server):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        config = S3ClientConfig(transport=request.param, max_attempts=2)
        clients.append(S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def check(client, bucket, key):
    data = key.encode()
    with client.put_object(bucket, key, options=PutOptions(if_none_match="*")) as writer:
        writer.write(data)
    try:
        assert client.get_object(bucket, key).read() == data
        assert client.head_object(bucket, key).size == len(data)
        assert [info.key for page in client.list_objects(bucket) for info in page.object_info] == [key]
        # SeaweedFS does not encode these here.
        if not set(key) & set(CONTROLS):
            versions = [one.key for page in client.list_object_versions(bucket) for one in page.versions]
            assert versions == [key]
        client.copy_object(bucket, key, bucket, "copied")
        assert client.get_object(bucket, "copied").read() == data
        assert client.delete_objects(bucket, [key, "copied"]) == []
        assert not client.exists(bucket, key)
        assert parse_s3_uri(f"s3://{bucket}/{key}") == (bucket, key)
    finally:
        client.delete_prefix(bucket, key)
        client.delete_object(bucket, "copied")


@pytest.fixture
def plain(moto, make_client):
    """A client, and an empty bucket of a server whose keys are just keys."""
    return make_client(moto), moto.create_bucket()


@pytest.fixture
def folders(seaweedfs, make_client):
    """A client, and an empty bucket of a server whose keys are paths."""
    client, bucket = make_client(seaweedfs), seaweedfs.create_bucket()
    yield client, bucket
    direct = seaweedfs.client()
    direct.delete_bucket(Bucket=bucket)
    direct.close()


_folders = count()
relaxed = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.promise(9)
@relaxed
@given(keys.filter(lambda key: key != "copied"))
@example("n" * 1024)
@example("a//b/./../c/")
def test_keys_of_a_plain_store(plain, key):
    check(*plain, key)


@relaxed
@given(st.one_of(keys, st.text(CONTROLS + "a/", min_size=1, max_size=9)).filter(is_a_path))
@example("/".join(["ü" * 100] * 5))
def test_keys_of_a_store_with_folders(folders, key):
    # Folders stay behind, so each example has its own.
    check(*folders, f"{next(_folders):03}/{key}")

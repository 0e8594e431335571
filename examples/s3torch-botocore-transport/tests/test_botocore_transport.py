"""The plugin passes the conformance suite, on two servers, and is found by its name."""

from __future__ import annotations

import uuid

import pytest

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.models import Credentials
from s3torch.core.plugins import create_transport
from s3torch.core.seam import TransportContext
from s3torch.testing.transport_tests import StaticSession, TransportTests


def context_for(server):
    session = StaticSession(server.endpoint, Credentials(server.access_key, server.secret_key))
    return TransportContext(S3ClientConfig(endpoint=server.endpoint, max_attempts=2), session, "test")


class OnServer(TransportTests):
    reads_http_strictly = False
    ends_slow_answers = False

    def create_transport(self, context):
        from s3torch_botocore_transport import BotocoreTransport

        return BotocoreTransport(context)

    @pytest.fixture
    def transport_context(self, server):
        return context_for(server)

    @pytest.fixture
    def versioned_bucket(self, server):
        name = server.create_bucket(f"versions-{uuid.uuid4().hex[:12]}")
        client = server.client()
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return name


@pytest.fixture(scope="module")
def seaweedfs_bucket(seaweedfs):
    return seaweedfs.create_bucket()


@pytest.fixture(scope="module")
def moto_bucket(moto):
    return moto.create_bucket()


class TestOnSeaweedFS(OnServer):
    # It keeps objects as files: keys are paths, and listings walk through folders.
    lists_in_key_order = False
    quotes_keys_of_uploads = False
    unsupported_keys = frozenset(
        {
            "double//slash",
            "/leading/slash",
            "trailing/slash/",
            "dot/./dot",
            "dots/../dots",
            "back\\slash",
            "n" * 1024,
        }
    )

    @pytest.fixture
    def server(self, seaweedfs):
        return seaweedfs

    @pytest.fixture
    def bucket(self, seaweedfs_bucket):
        return seaweedfs_bucket


class TestOnMoto(OnServer):
    verifies_checksums = False
    forgets_aborted_uploads = False
    checks_copy_conditions = False
    tells_upload_times = False
    unsupported_keys = frozenset({"line\nbreak"})
    # It answers with another document than S3.
    test_parts_of_an_upload = None

    @pytest.fixture
    def script(self):
        pytest.skip("no store has a part in it: it runs beside SeaweedFS")

    @pytest.fixture
    def server(self, moto):
        return moto

    @pytest.fixture
    def bucket(self, moto_bucket):
        return moto_bucket


def test_it_is_found_by_its_name(installed, seaweedfs):
    keys = Credentials(seaweedfs.access_key, seaweedfs.secret_key)
    config = S3ClientConfig(transport="botocore", endpoint=seaweedfs.endpoint, credentials=lambda: keys)
    bucket = seaweedfs.create_bucket()
    with S3Client("us-east-1", s3client_config=config) as client:
        with client.put_object(bucket, "key") as writer:
            writer.write(b"data")
        assert client.get_object(bucket, "key").read() == b"data"
    transport = create_transport("botocore", context_for(seaweedfs))
    assert type(transport).__module__ == "s3torch_botocore_transport"
    transport.close()

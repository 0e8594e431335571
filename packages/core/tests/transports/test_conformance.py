"""The conformance suite, run for the transports of s3torch itself."""

from __future__ import annotations

import uuid
from collections import Counter

import pytest

from s3torch.core._config import S3ClientConfig
from s3torch.core.models import Credentials
from s3torch.core.seam import TransportContext
from s3torch.core.session import AwsSession
from s3torch.core.transports.crt import CrtTransport
from s3torch.core.transports.http import HttpTransport
from s3torch.core.transports.memory import MemoryStore, MemoryTransport
from s3torch.testing.transport_tests import TransportTests


def context_for(server):
    keys = Credentials(server.access_key, server.secret_key)
    config = S3ClientConfig(endpoint=server.endpoint, max_attempts=2, credentials=lambda: keys)
    session = AwsSession(region="us-east-1", endpoint=None, config=config, user_agent="test", endpoints={})
    return TransportContext(config, session, "test")


def new_bucket(context, *, versions=False):
    name = f"conformance-{uuid.uuid4().hex[:12]}"
    client = context.session._make_boto_client()
    client.create_bucket(Bucket=name)
    if versions:
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name


@pytest.fixture(scope="module")
def seaweedfs_context(seaweedfs):
    context = context_for(seaweedfs)
    yield context
    context.session.close()


@pytest.fixture(scope="module")
def seaweedfs_bucket(seaweedfs_context):
    return new_bucket(seaweedfs_context)


@pytest.fixture(scope="module")
def moto_context(moto):
    context = context_for(moto)
    yield context
    context.session.close()


@pytest.fixture(scope="module")
def moto_bucket(moto_context):
    return new_bucket(moto_context)


class OnServer(TransportTests):
    transport_class: type

    def create_transport(self, context):
        return self.transport_class(context)

    @pytest.fixture
    def versioned_bucket(self, transport_context):
        return new_bucket(transport_context, versions=True)


class OnSeaweedFS(OnServer):
    # It keeps objects as files: keys are paths, and listings walk through folders.
    lists_in_key_order = False
    # It says so with ``EncodingType``, and leaves keys as they are.
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
    def transport_context(self, seaweedfs_context):
        return seaweedfs_context

    @pytest.fixture
    def bucket(self, seaweedfs_bucket):
        return seaweedfs_bucket


class OnMoto(OnServer):
    verifies_checksums = False
    # It answers 500 there.
    forgets_aborted_uploads = False
    checks_copy_conditions = False
    # It was always the 10th of November 2010.
    tells_upload_times = False
    unsupported_keys = frozenset({"line\nbreak"})
    # It answers with another document than S3.
    test_parts_of_an_upload = None

    @pytest.fixture
    def script(self):
        pytest.skip("no store has a part in it: it runs beside SeaweedFS")

    @pytest.fixture
    def transport_context(self, moto_context):
        return moto_context

    @pytest.fixture
    def bucket(self, moto_bucket):
        return moto_bucket


class TestCrtOnSeaweedFS(OnSeaweedFS):
    transport_class = CrtTransport


class TestCrtOnMoto(OnMoto):
    transport_class = CrtTransport


class TestHttpOnSeaweedFS(OnSeaweedFS):
    transport_class = HttpTransport


class TestHttpOnMoto(OnMoto):
    transport_class = HttpTransport


class TestMemory(TransportTests):
    speaks_http = False
    store = MemoryStore()

    @pytest.fixture
    def versioned_bucket(self):
        name = uuid.uuid4().hex
        self.store.create_bucket(name, keeps_versions=True)
        return name

    def create_transport(self, context):
        return MemoryTransport(self.store)

    @pytest.fixture
    def transport_context(self):
        config = S3ClientConfig(transport="memory")
        session = AwsSession(region=None, endpoint=None, config=config, user_agent="test", endpoints={})
        return TransportContext(config, session, "test")

    @pytest.fixture
    def bucket(self):
        name = uuid.uuid4().hex
        self.store.create_bucket(name)
        return name


def test_no_test_of_the_suite_hides_another():
    names = [name for group in TransportTests.__mro__ for name in vars(group) if name.startswith("test_")]
    assert [name for name, count in Counter(names).items() if count > 1] == []

"""The sequential reader: conformance."""

from __future__ import annotations

import pytest

from s3torch.core import S3Client, S3ClientConfig, SequentialS3Reader, UserAgent
from s3torch.core._client import RuntimeHandle
from s3torch.core.transfer import ObjectSource
from s3torch.core.transports.memory import MemoryStore
from s3torch.testing.reader_tests import ReaderTests

STORE = "http://sequential.invalid"
CONFIG = S3ClientConfig(transport="memory", endpoint=STORE)


@pytest.fixture(autouse=True, scope="module")
def store():
    store = MemoryStore.at(STORE)
    store.create_bucket("bucket")
    yield store
    MemoryStore.forget(STORE)


def put(data):
    MemoryStore.at(STORE).put("bucket", "key", data)


class _Base(ReaderTests):
    part_size = 0
    knows_size = False

    connector = RuntimeHandle(region="us-east-1", endpoint=None, config=CONFIG, user_agent=UserAgent())

    def open_reader(self, data):
        put(data)
        info = MemoryStore.at(STORE).get("bucket", "key").info("key") if self.knows_size else None
        source = ObjectSource(self.connector, "bucket", "key", object_info=info)
        source.part_size = self.part_size
        return SequentialS3Reader(source)


class TestPartsOfThreeBytes(_Base):
    part_size = 3


class TestPartsOf50Bytes(_Base):
    part_size = 50


class TestPartsOf64BytesWithKnownSize(_Base):
    part_size = 64
    knows_size = True


class TestThroughTheClient(ReaderTests):
    client = S3Client("us-east-1", s3client_config=CONFIG)

    def open_reader(self, data):
        put(data)
        return self.client.get_object("bucket", "key")

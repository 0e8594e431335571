"""The ranged reader: conformance."""

from __future__ import annotations

import pytest

from s3torch.core import RangedS3Reader, S3Client, S3ClientConfig, S3ReaderConstructor, UserAgent
from s3torch.core._client import RuntimeHandle
from s3torch.core.transfer import ObjectSource
from s3torch.core.transports.memory import MemoryStore
from s3torch.testing.reader_tests import ReaderTests

STORE = "http://ranged.invalid"
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
    buffer_size = None
    knows_size = False
    connector = RuntimeHandle(region="us-east-1", endpoint=None, config=CONFIG, user_agent=UserAgent())

    def open_reader(self, data):
        put(data)
        info = MemoryStore.at(STORE).get("bucket", "key").info("key") if self.knows_size else None
        source = ObjectSource(self.connector, "bucket", "key", object_info=info)
        source.part_size = self.part_size
        return RangedS3Reader(source, self.buffer_size)


class TestWithoutBuffer(_Base):
    part_size = 100
    buffer_size = 0


class TestABufferBelowAPart(_Base):
    part_size = 64
    buffer_size = 10


class TestABufferOfManyPartsAndKnownSize(_Base):
    part_size = 50
    buffer_size = 170
    knows_size = True


class TestThroughTheClient(ReaderTests):
    client = S3Client("us-east-1", s3client_config=CONFIG)

    def open_reader(self, data):
        put(data)
        return self.client.get_object("bucket", "key", reader_constructor=S3ReaderConstructor.range_based(30))

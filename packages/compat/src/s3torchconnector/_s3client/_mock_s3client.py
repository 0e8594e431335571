"""A client on the memory of this process, for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from s3torchconnector._s3client._s3client import S3Client
from s3torchconnector._s3client.s3client_config import drop_in_config

if TYPE_CHECKING:
    from s3torch.core import S3ClientConfig, UserAgent

__all__ = ["MockS3Client"]


class MockS3Client(S3Client):
    """A client that reaches one bucket in the memory of this process, and behaves as one of S3 does.

    Args:
        region: Any region.
        bucket: The name of the bucket.
        user_agent: What the ``User-Agent`` header says.
        s3client_config: All other settings.
    """

    def __init__(
        self,
        region: str,
        bucket: str,
        user_agent: UserAgent | None = None,
        s3client_config: S3ClientConfig | None = None,
    ) -> None:
        from s3torch.core.transports.memory import MemoryStore

        # The name of a store of its own.
        endpoint = f"http://mock-{uuid4().hex}"
        config = replace(drop_in_config(s3client_config), transport="memory", endpoint=endpoint)
        super().__init__(region, user_agent=user_agent, s3client_config=config)
        MemoryStore.at(endpoint).create_bucket(bucket)
        self._bucket = bucket

    def add_object(self, key: str, data: bytes) -> None:
        """Puts an object into the bucket."""
        with self.put_object(self._bucket, key) as writer:
            writer.write(data)

    def remove_object(self, key: str) -> None:
        """Takes an object out of the bucket; a missing one is no error."""
        self.delete_object(self._bucket, key)

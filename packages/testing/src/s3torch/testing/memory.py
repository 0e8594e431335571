"""The store behind ``transport="memory"``, for tests that need objects and no server.

Clients whose configuration names the same endpoint share a store::

    store = MemoryStore.at("http://mine")
    store.create_bucket("bucket")
    store.put("bucket", "key", b"data")
    client = S3Client(s3client_config=S3ClientConfig(transport="memory", endpoint="http://mine"))
"""

from __future__ import annotations

from s3torch.core.transports.memory import MemoryStore

__all__ = ["MemoryStore"]

"""A store of objects in the memory of this process, for tests, examples and trying things out.

It behaves as S3 does, with conditions, checksums, multipart uploads, versions and listings, and answers the
same requests as S3. Its buckets are made by hand::

    MemoryStore.at("http://mine").create_bucket("bucket")
    client = S3Client(s3client_config=S3ClientConfig(transport="memory", endpoint="http://mine"))
"""

from s3torch.core.transports.memory._store import MemoryStore
from s3torch.core.transports.memory._transport import MemoryTransport, s3torch_create_transport

__all__ = ["MemoryStore", "MemoryTransport", "s3torch_create_transport"]

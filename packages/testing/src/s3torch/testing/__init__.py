"""For tests, demonstrations and plugin authors: S3 servers on loopback, faults on the wire, a memory store.

Importing it loads neither boto3 nor moto nor pytest. The conformance suites are in
``s3torch.testing.transport_tests`` and ``s3torch.testing.reader_tests``. It imports only public names of
``s3torch.core``; nothing but tests and demonstrations imports it.
"""

from s3torch.core.transports.memory import MemoryStore
from s3torch.testing.faults import Fault, FaultProxy, FaultRule, Request
from s3torch.testing.servers import Identity, S3Server, ServerStartError, start_moto, start_seaweedfs

__all__ = [
    "Fault",
    "FaultProxy",
    "FaultRule",
    "Identity",
    "MemoryStore",
    "Request",
    "S3Server",
    "ServerStartError",
    "start_moto",
    "start_seaweedfs",
]

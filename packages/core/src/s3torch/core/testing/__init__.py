"""What tests, demonstrations and plugin authors need: S3 servers on loopback and faults on the wire.

Importing it loads neither boto3 nor moto nor pytest. The conformance suites are in
``s3torch.core.testing.transport_tests`` and ``s3torch.core.testing.reader_tests``.
"""

from s3torch.core.testing.faults import Fault, FaultProxy, FaultRule, Request
from s3torch.core.testing.servers import (
    Identity,
    S3Server,
    ServerStartError,
    start_moto,
    start_seaweedfs,
)

__all__ = [
    "Fault",
    "FaultProxy",
    "FaultRule",
    "Identity",
    "Request",
    "S3Server",
    "ServerStartError",
    "start_moto",
    "start_seaweedfs",
]

"""What tests, demonstrations and plugin authors need: S3 servers on loopback and faults on the wire.

Importing it loads neither boto3 nor moto nor pytest. The conformance suites are in
``s3torch.testing.transport_tests`` and ``s3torch.testing.reader_tests``.
"""

from s3torch.testing.faults import Fault, FaultProxy, FaultRule, Request
from s3torch.testing.servers import (
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

"""The transport over the AWS Common Runtime (awscrt); loaded by its plugin name only."""

from s3torch.core.transports.crt._transport import CrtTransport, s3torch_create_transport

__all__ = ["CrtTransport", "s3torch_create_transport"]

"""The transport that speaks HTTP/1.1 itself, without native code; loaded by its plugin name only."""

from s3torch.core.transports.http._transport import HttpTransport, s3torch_create_transport

__all__ = ["HttpTransport", "s3torch_create_transport"]

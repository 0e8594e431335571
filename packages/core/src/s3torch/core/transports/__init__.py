"""What moves requests: each transport in a folder of its own, and here what they share with all others.

A transport may import this package, the seam, requests, values and what lives through a fork, and no other
transport.
"""

from s3torch.core.requests import body_of, request_headers, request_target
from s3torch.core.transports._retries import RetryDecision, decide_retry, tell_retry
from s3torch.core.transports._workers import Stop, WorkerPool, WorkerTransfer

__all__ = [
    "RetryDecision",
    "Stop",
    "WorkerPool",
    "WorkerTransfer",
    "body_of",
    "decide_retry",
    "request_headers",
    "request_target",
    "tell_retry",
]

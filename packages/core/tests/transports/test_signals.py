"""Handlers of signals that close a client whose answer the main thread waits for."""

from __future__ import annotations

import pytest

CODE = """
import signal, sys
from s3torch.core import Credentials, S3Client, S3ClientConfig, TransferCancelledError

config = S3ClientConfig(transport=sys.argv[2], credentials=lambda: Credentials("a", "b"))
client = S3Client("us-east-1", endpoint=sys.argv[1], s3client_config=config)

def handle(*_):
    client.close()

signal.signal(signal.SIGALRM, handle)
# Long enough for a busy machine to have sent the request.
signal.setitimer(signal.ITIMER_REAL, 3)
try:
    client.head_object("bucket", "key")
except TransferCancelledError:
    print("cancelled")
"""


@pytest.mark.parametrize("transport", ["crt", "http"])
def test_a_handler_may_close(python, stub, answer, transport):
    stub.will(answer(stall=-1))
    assert python(CODE, stub.endpoint, transport).stdout == "cancelled\n"

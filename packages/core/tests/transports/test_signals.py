"""Handlers of signals that send, cancel and close in the midst of what the main thread does."""

from __future__ import annotations

import pytest

CODE = """
import signal, sys, threading, time
from s3torch.core import Credentials, S3Client, S3ClientConfig, TransferCancelledError
from s3torch.core.observers import TransferCounters, observe

config = S3ClientConfig(transport=sys.argv[2], credentials=lambda: Credentials("a", "b"))
clients = [S3Client("us-east-1", endpoint=sys.argv[1], s3client_config=config) for _ in range(2)]
"""

SENDS = (
    CODE
    + """
handled = 0

def handle(*_):
    global handled
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert clients[0].head_object("bucket", "key").size == 4
    handled += 1
    signal.setitimer(signal.ITIMER_REAL, 0.002)

signal.signal(signal.SIGALRM, handle)
with observe(TransferCounters()) if sys.argv[3] == "observed" else clients[1]:
    signal.setitimer(signal.ITIMER_REAL, 0.002)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        assert clients[0].head_object("bucket", "key").size == 4
    signal.setitimer(signal.ITIMER_REAL, 0)
print(handled > 20)
"""
)

CLOSES = (
    CODE
    + """
def handle(*_):
    clients[0].close()

signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.5)
try:
    clients[0].head_object("bucket", "key")
except TransferCancelledError:
    print("cancelled")
"""
)


@pytest.mark.parametrize("observed", ["observed", "bare"])
def test_a_handler_may_send(python, stub, answer, observed):
    """Not with ``crt``: its one thread may wait for the lock of the future that the handler has interrupted."""
    # More than are asked for.
    stub.will(*[answer(200, b"", {"Content-Length": "4"})] * 50_000)
    assert python(SENDS, stub.endpoint, "http", observed).stdout == "True\n"


@pytest.mark.parametrize("transport", ["crt", "http"])
def test_a_handler_may_close(python, stub, answer, transport):
    stub.will(answer(stall=-1))
    assert python(CLOSES, stub.endpoint, transport).stdout == "cancelled\n"

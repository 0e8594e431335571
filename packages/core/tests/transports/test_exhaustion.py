"""What a process has run out of is said in words: files, threads, and the interpreter itself."""

from __future__ import annotations

import pytest

from s3torch.testing.scripted import ScriptedAnswer

NAMES = ["crt", "http"]
FILES = """
import os
import resource
import sys

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.errors import S3ConnectionError, TransportError
{imports}

name, endpoint = sys.argv[1:]
config = S3ClientConfig(transport=name, unsigned=True, max_attempts=2)
client = S3Client("us-east-1", endpoint=endpoint, s3client_config=config)
spent = []


def spend(left):
    open_files = [int(number) for number in os.listdir("/proc/self/fd")]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_files) + 8, 4096))
    try:
        while True:
            spent.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        for _ in range(left):
            os.close(spent.pop())


{before}
spend({left})
try:
    client.head_object("bucket", "key")
except {error} as error:
    print(error)
for number in spent:
    os.close(number)
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
assert client.head_object("bucket", "key").size == 5
"""
TRANSPORTS = "import s3torch.core.transports.crt, s3torch.core.transports.http, awscrt.s3"


@pytest.mark.promise(8)
@pytest.mark.parametrize("name", NAMES)
def test_no_files_to_find_transports_with(stub, python, name):
    """It was an unknown transport, for as long as the process lived."""
    stub.will(ScriptedAnswer(body=b"right"))
    code = FILES.format(imports="", before="", left=0, error="TransportError")
    assert "cannot open more files" in python(code, name, stub.endpoint).stdout


@pytest.mark.promise(8)
@pytest.mark.parametrize("left", [2, 7])
def test_no_files_for_the_event_loops_of_the_crt(stub, python, left):
    """awscrt ends the process where it has not enough of them."""
    stub.will(ScriptedAnswer(body=b"right"))
    code = FILES.format(imports=TRANSPORTS, before="", left=left, error="TransportError")
    assert "cannot open more files" in python(code, "crt", stub.endpoint).stdout


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_files_for_a_connection(stub, python, name, host):
    """A host may be unknown then, which is not what is wrong."""
    stub.will(*[ScriptedAnswer(body=b"right", headers={"Connection": "close"})] * 2)
    code = FILES.format(
        imports=TRANSPORTS,
        # The connection is closed a moment later, and would leave a file free.
        before='import time\nassert client.head_object("bucket", "key").size == 5\ntime.sleep(2)',
        left=0,
        error="S3ConnectionError",
    )
    told = python(code, name, stub.endpoint.replace("127.0.0.1", host)).stdout
    assert "cannot open more files" in told
    assert "2 attempts" in told


THREADS = """
import atexit
import sys
import threading

from s3torch.core import S3Client, S3ClientConfig, S3Error

name, endpoint, how = sys.argv[1:]
config = S3ClientConfig(transport=name, unsigned=True)
client = S3Client("us-east-1", endpoint=endpoint, s3client_config=config)
USES = {
    "get": lambda: client.get_object("bucket", "key").read(),
    "head": lambda: client.head_object("bucket", "key"),
    "walk": lambda: list(client.walk("bucket")),
    "put": lambda: client.put_object("bucket", "key").__enter__(),
}


def start(thread):
    # As Python does from 3.12 on.
    raise RuntimeError("can't create new thread at interpreter shutdown")


def use():
    threading.Thread.start = start
    for name, do in USES.items():
        for _ in range(2):
            try:
                do()
            except S3Error as error:
                assert "no thread can be started" in str(error), error
            print(name)


use() if how == "now" else atexit.register(use)
"""


@pytest.mark.parametrize("how", ["now", "at exit"])
@pytest.mark.parametrize("name", NAMES)
def test_no_threads_can_be_started(stub, python, name, how):
    """What needs none works, all else says so, each time, and nothing hangs."""
    stub.will(*[ScriptedAnswer(206, b"x", {"Content-Range": "bytes 0-0/1"})] * 4)
    done = python(THREADS, name, stub.endpoint, how)
    assert done.stdout.split() == ["get", "get", "head", "head", "walk", "walk", "put", "put"]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_first_use_at_the_end(stub, python, name):
    stub.will(ScriptedAnswer(206, b"x", {"Content-Range": "bytes 0-0/1"}))
    code = """
import atexit, sys
from s3torch.core import S3Client, S3ClientConfig
config = S3ClientConfig(transport=sys.argv[1], unsigned=True)
client = S3Client("us-east-1", endpoint=sys.argv[2], s3client_config=config)
atexit.register(lambda: print(client.get_object("bucket", "key").read()))
"""
    assert python(code, name, stub.endpoint).stdout == "b'x'\n"

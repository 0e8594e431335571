"""How much memory a process takes, measured from outside, and how many bytes move for it."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

MIB = 2**20
GIB = 2**30
PART = 8 * MIB
# Beyond the memory of the object itself.
EXTRA = 64 * MIB

MEASURE = """
    import json, sys
    from pathlib import Path
    from s3torch.core import S3Client, S3ClientConfig, S3ReaderConstructor

    transport, endpoint, size, kind = sys.argv[1:]
    size = int(size)

    def status(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    # A target at which it does not matter how long parts take on a busy machine.
    config = S3ClientConfig(transport=transport, throughput_target_gbps=1)
    client = S3Client("us-east-1", endpoint=endpoint, s3client_config=config)
    client.get_object("bucket", "1000").read()  # Connections and imports.
    buffer = bytearray(b"1") * size if kind in {"readinto", "write"} else None
    Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
    before = status("VmRSS")
    if kind == "write":
        file = client.put_object("bucket", "new")
        assert file.write(buffer) == size
    else:
        file = client.get_object("bucket", str(size))
    if kind == "few":
        assert file.read(4) == bytes(4)
    elif kind == "readinto":
        assert file.readinto(buffer) == size
    elif kind == "read":
        assert len(file.read()) == size
    memory = client._handle.get().memory
    used = memory.budget.used
    file.close()
    measured = [status("VmHWM") - before, used, status("VmRSS") - before]
    print(json.dumps([*measured, memory.budget.used, memory.pool.kept]))
"""


UPLOAD = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
COMPLETED = b"<CompleteMultipartUploadResult><ETag>new</ETag></CompleteMultipartUploadResult>"


class Zeros(http.server.BaseHTTPRequestHandler):
    """Answers for objects of zeros, as many as their key says, and forgets what it is given."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        size = int(self.path.rpartition("/")[2])
        asked = self.headers["Range"]
        start, stop = (int(n) for n in asked.removeprefix("bytes=").split("-")) if asked else (0, size - 1)
        stop = min(stop + 1, size)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("ETag", '"zeros"')
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        piece = bytes(MIB)
        for at in range(start, stop, MIB):
            count = self.wfile.write(piece[: stop - at])
            with self.server.counting:
                self.server.sent += count

    def do_PUT(self):
        self._take()
        self._answer(b"")

    def do_POST(self):
        self._take()
        self._answer(COMPLETED if "uploadId=" in self.path else UPLOAD)

    def handle_expect_100(self):
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def _take(self):
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, MIB)))

    def _answer(self, body):
        self.send_response(200)
        self.send_header("ETag", '"new"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Tells nobody."""


@pytest.fixture
def zeros():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Zeros)
    server.handle_error = lambda *_: None
    server.sent, server.counting = 0, threading.Lock()
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(params=["crt", "http"])
def measure(request, zeros, python):
    def run(size, kind):
        environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        endpoint = f"http://127.0.0.1:{zeros.server_address[1]}"
        done = python(MEASURE, request.param, endpoint, size, kind, environment=environment)
        return json.loads(done.stdout)

    return run


@pytest.mark.promise(3)
def test_a_few_bytes_of_a_large_object(measure, zeros):
    peak, _, left, used, kept = measure(GIB, "few")
    assert zeros.sent <= 2 * PART
    assert peak <= 4 * PART
    # Of what the CRT had in memory it keeps some for a while.
    assert left <= 3 * PART
    assert (used, kept) == (0, 0)


@pytest.mark.promise(3)
def test_a_whole_object(measure, zeros):
    size = 96 * MIB
    peak, _, left, used, kept = measure(size, "read")
    # What is on the way when a connection is ended, because the object is larger than a part, is lost.
    assert size + 1000 <= zeros.sent <= size + 1000 + 2 * PART
    assert peak <= size + EXTRA
    assert left <= EXTRA
    assert (used, kept) == (0, 0)


def test_into_memory_of_the_caller(measure):
    size = 96 * MIB
    peak, _, left, used, kept = measure(size, "readinto")
    assert peak <= EXTRA
    assert left <= EXTRA
    assert (used, kept) == (0, 0)


def test_from_memory_of_the_caller(measure):
    # Whatever is written, a few parts are on their way, which the CRT has a second time.
    peak, used, _, left, _ = measure(256 * MIB, "write")
    assert used <= EXTRA + PART  # With the part that is being filled.
    assert peak <= 200 * MIB
    assert left == 0

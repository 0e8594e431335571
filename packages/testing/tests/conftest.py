"""A small server behind a fault proxy, for the tests of the proxy."""

from __future__ import annotations

import http.client
import http.server
import threading

import pytest

from s3torch.testing import FaultProxy

BODY = bytes(range(256)) * 400


class Upstream(http.server.BaseHTTPRequestHandler):
    """Answers GET of ``plain``, ``chunked`` and ``endless`` with ``BODY`` so, and keeps what is PUT."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self):
        self.server.seen.append(self.path)
        self.send_response(200)
        if self.path.endswith("chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(BODY), 1000):
                piece = BODY[start : start + 1000]
                self.wfile.write(b"%x;a=b\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\nx-trailer: t\r\n\r\n")
        elif self.path.endswith("endless"):
            self.end_headers()
            self.wfile.write(BODY)
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(BODY)))
            self.send_header("ETag", '"right"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(BODY)

    def do_HEAD(self):
        self.do_GET()

    def handle_expect_100(self):
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def do_PUT(self):
        self.server.seen.append(self.path)
        if self.path.endswith("refused"):
            # As S3 does with a request that it does not want: answered before the body is read.
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()
            self.close_connection = True
            return
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:
                raise ConnectionResetError("the upload broke")
        self.server.bodies.append(body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # Broken connections are what the tests make.


@pytest.fixture(scope="module")
def upstream_server():
    with QuietServer(("127.0.0.1", 0), Upstream) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def upstream(upstream_server):
    upstream_server.seen, upstream_server.bodies = [], []
    return upstream_server


@pytest.fixture
def proxy(upstream):
    with FaultProxy(f"http://127.0.0.1:{upstream.server_port}") as proxy:
        yield proxy


@pytest.fixture
def connection(proxy):
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=60)
    yield connection
    connection.close()


@pytest.fixture
def content():
    """What the server answers with."""
    return BODY


@pytest.fixture
def get():
    """Sends a request over a connection and returns the response and its body."""

    def ask(connection, key="plain", method="GET", **headers):
        connection.request(method, f"/bucket/{key}", headers=headers)
        response = connection.getresponse()
        return response, response.read()

    return ask

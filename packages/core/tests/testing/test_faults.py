from __future__ import annotations

import http.client
import http.server
import os
import socket
import threading
import time

import pytest
from botocore.exceptions import ClientError

from s3torch.core.errors import ConfigurationError
from s3torch.core.ranges import KIB, MIB
from s3torch.core.testing import Fault, FaultProxy

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
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=10)
    yield connection
    connection.close()


def get(connection, key="plain", method="GET", **headers):
    connection.request(method, f"/bucket/{key}", headers=headers)
    response = connection.getresponse()
    return response, response.read()


# What passes unharmed, and what is noted of it.


@pytest.mark.parametrize("key", ["plain", "chunked", "endless"])
def test_every_kind_of_body_passes_whole_and_is_counted(key, proxy, connection):
    response, body = get(connection, key)
    assert (response.status, body) == (200, BODY)
    (request,) = proxy.requests()
    assert (request.method, request.bucket, request.key, request.status) == ("GET", "bucket", key, 200)
    assert (request.request_bytes, request.response_bytes) == (0, len(BODY))
    assert proxy.bytes_sent == len(BODY)


def test_a_connection_is_used_again_as_long_as_both_sides_want(proxy, connection):
    get(connection)
    first = connection.sock
    get(connection, "chunked")
    assert connection.sock is first
    get(connection, "endless")
    assert connection.sock is None
    assert len(proxy.requests()) == 3


def test_a_head_has_no_body(proxy, connection):
    response, body = get(connection, method="HEAD")
    assert (response.getheader("Content-Length"), body) == (str(len(BODY)), b"")
    assert get(connection)[1] == BODY
    assert [request.response_bytes for request in proxy.requests()] == [0, len(BODY)]


@pytest.mark.parametrize("chunked", [False, True])
def test_uploads_pass_whole_and_are_counted(chunked, proxy, connection, upstream):
    body = (BODY[i : i + 999] for i in range(0, len(BODY), 999)) if chunked else BODY
    headers = {} if chunked else {"Content-Length": str(len(BODY))}
    connection.request("PUT", "/bucket/key", body=body, headers=headers, encode_chunked=chunked)
    assert connection.getresponse().read() == b""
    assert upstream.bodies == [BODY]
    assert proxy.requests()[0].request_bytes == proxy.bytes_received == len(BODY)


def test_a_client_that_expects_100_is_told_to_continue(proxy, connection, upstream):
    with socket.create_connection(("127.0.0.1", connection.port), timeout=10) as client:
        client.sendall(
            b"PUT /bucket/key HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    assert upstream.bodies == [b"hello"]
    assert proxy.requests()[0].status == 200


def test_an_answer_that_comes_before_the_body_was_sent_arrives(proxy, connection):
    size = 64 * MIB
    with socket.create_connection(("127.0.0.1", connection.port), timeout=10) as client:
        client.sendall(b"PUT /bucket/refused HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\nx" % size)
        assert client.recv(1000).startswith(b"HTTP/1.1 403")
    assert proxy.requests()[0].status == 403


def test_the_host_and_all_other_headers_pass_unchanged(proxy, connection):
    get(connection, "a%20b%2Bc/d?versionId=x%26y&acl", Range="bytes=0-9")
    (request,) = proxy.requests()
    assert request.headers["host"] == proxy.endpoint.removeprefix("http://")
    assert request.headers["range"] == "bytes=0-9"
    assert request.key == "a b+c/d"
    assert request.query == {"versionId": "x&y", "acl": ""}


def test_requests_are_found_by_method_and_key_and_forgotten_on_demand(proxy, connection):
    before = time.monotonic()
    for key in ("one", "two", "onetwo"):
        get(connection, key)
    get(connection, "one", method="HEAD")
    assert [request.key for request in proxy.requests("get")] == ["one", "two", "onetwo"]
    assert [request.method for request in proxy.requests(key="one")] == ["GET", "GET", "HEAD"]
    assert not proxy.requests(key="bucket")
    assert before < proxy.requests()[0].started < time.monotonic()
    proxy.clear()
    assert (proxy.requests(), proxy.bytes_sent) == ([], 0)


def test_counts_are_exact_with_many_connections(proxy, connection):
    def work():
        own = http.client.HTTPConnection("127.0.0.1", connection.port, timeout=30)
        for _ in range(10):
            assert get(own)[1] == BODY
        own.close()

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(proxy.requests("GET")) == 160
    assert proxy.bytes_sent == 160 * len(BODY)


# The faults, one by one.


def test_latency_comes_before_the_first_byte(proxy, connection):
    proxy.add(Fault(latency=0.2))
    begun = time.monotonic()
    assert get(connection)[1] == BODY
    assert time.monotonic() - begun >= 0.2


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_bandwidth_is_limited_in_both_directions(method, proxy, connection, upstream):
    proxy.add(Fault(bandwidth=400_000))
    begun = time.monotonic()
    connection.request(method, "/bucket/key", body=BODY if method == "PUT" else None)
    body = connection.getresponse().read()
    assert time.monotonic() - begun >= len(BODY) / 400_000 * 0.9
    assert body == (b"" if method == "PUT" else BODY)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.slow_down(), 503, b"SlowDown"),
        (Fault.internal_error(), 500, b"InternalError"),
        (Fault.expired_token(), 400, b"ExpiredToken"),
        (Fault.error(418, "Tea & more"), 418, b"Tea &amp; more"),
    ],
)
def test_errors_are_answered_in_place_of_the_server(fault, status, code, proxy, connection, upstream):
    proxy.add(fault | Fault.header("Retry-After", "7"), times=2)
    for method, body in (("GET", None), ("PUT", BODY)):
        connection.request(method, "/bucket/key", body=body)
        response = connection.getresponse()
        assert (response.status, response.getheader("Retry-After")) == (status, "7")
        assert b"<Code>%b</Code>" % code in response.read()
    assert not upstream.seen
    assert get(connection)[1] == BODY
    assert [request.status for request in proxy.requests()] == [status, status, 200]


def test_an_error_for_a_head_has_no_body(proxy, connection):
    proxy.add(Fault.slow_down(), times=1)
    assert get(connection, method="HEAD")[1] == b""
    assert get(connection)[1] == BODY


def test_an_answer_in_place_of_the_server(proxy, connection, upstream):
    proxy.add(Fault.answer("<Session/>"), times=1)
    response, body = get(connection)
    assert (response.status, body) == (200, b"<Session/>")
    assert not upstream.seen
    assert get(connection)[1] == BODY


def test_an_error_comes_instead_of_100_continue(proxy, connection):
    proxy.add(Fault.slow_down())
    with socket.create_connection(("127.0.0.1", connection.port), timeout=10) as client:
        client.sendall(
            b"PUT /bucket/key HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 503")


def test_a_reset_loses_an_answer(proxy, connection, upstream):
    proxy.add(Fault.reset(), times=1)
    with pytest.raises(ConnectionResetError):
        get(connection)
    assert len(upstream.seen) == 1
    assert proxy.requests()[0].status is None
    connection.close()
    assert get(connection)[1] == BODY


def test_a_reset_keeps_a_request_from_the_server(proxy, connection, upstream):
    proxy.add(Fault.reset(side="request"))
    with pytest.raises(ConnectionResetError):
        get(connection)
    assert not upstream.seen


@pytest.mark.parametrize("key", ["plain", "chunked"])
def test_a_reset_comes_after_that_many_bytes(key, proxy, connection):
    proxy.add(Fault.reset(after=50_000))
    connection.request("GET", f"/bucket/{key}")
    response = connection.getresponse()
    assert response.read(50_000) == BODY[:50_000]
    with pytest.raises(ConnectionResetError):
        response.read(1)
    assert proxy.bytes_sent == 50_000


def test_a_truncated_body_ends_orderly(proxy, connection):
    proxy.add(Fault.truncate(after=1))
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(connection)
    assert caught.value.partial == BODY[:1]


def test_a_body_that_is_not_longer_passes_whole(proxy, connection):
    proxy.add(Fault.truncate(after=len(BODY)))
    assert get(connection)[1] == BODY
    assert get(connection)[1] == BODY


@pytest.mark.parametrize(("side", "seen"), [("request", 0), ("response", 1)])
def test_a_dropped_request_gets_no_answer(side, seen, proxy, connection, upstream):
    proxy.add(Fault.drop(side=side))
    with pytest.raises(http.client.RemoteDisconnected):
        get(connection)
    assert len(upstream.seen) == seen


@pytest.mark.parametrize(
    "fault", [Fault.reset(after=MIB, side="request"), Fault.truncate(MIB, side="request")]
)
def test_a_broken_upload_never_completes(fault, proxy, connection, upstream):
    proxy.add(fault)
    with pytest.raises(OSError):  # noqa: PT011 - reset, broken pipe or no answer, here or there
        connection.request("PUT", "/bucket/key", body=bytes(64 * MIB))
        connection.getresponse()
    assert not upstream.bodies
    assert proxy.bytes_received == MIB


@pytest.mark.parametrize("after", [None, 0, 1000])
def test_a_stalled_response_goes_on_later(after, proxy, connection):
    proxy.add(Fault.stall(0.3, after=after), times=1)
    begun = time.monotonic()
    connection.request("GET", "/bucket/plain")
    response = connection.getresponse()
    assert (time.monotonic() - begun >= 0.3) is (after is None)
    assert response.read(after or 0) == BODY[: after or 0]
    assert response.read() == BODY[after or 0 :]
    assert time.monotonic() - begun >= 0.3


def test_a_stalled_upload_goes_on_later(proxy, connection, upstream):
    proxy.add(Fault.stall(0.3, after=10, side="request"))
    begun = time.monotonic()
    connection.request("PUT", "/bucket/key", body=BODY)
    assert connection.getresponse().status == 200
    assert time.monotonic() - begun >= 0.3
    assert upstream.bodies == [BODY]


def test_closing_the_proxy_ends_a_stall(upstream):
    with FaultProxy(f"http://127.0.0.1:{upstream.server_port}") as proxy:
        proxy.add(Fault.stall(60))
        client = socket.create_connection(("127.0.0.1", int(proxy.endpoint.rpartition(":")[2])), timeout=10)
        client.sendall(b"GET /bucket/plain HTTP/1.1\r\nHost: x\r\n\r\n")
        while not upstream.seen:
            time.sleep(0.01)
        begun = time.monotonic()
    assert client.recv(1) == b""
    client.close()
    assert time.monotonic() - begun < 5
    proxy.close()


@pytest.mark.parametrize("key", ["plain", "chunked"])
def test_one_byte_of_a_response_is_flipped(key, proxy, connection):
    proxy.add(Fault.flip(70_000))
    body = get(connection, key)[1]
    assert len(body) == len(BODY)
    assert [i for i in range(len(BODY)) if body[i] != BODY[i]] == [70_000]


def test_one_byte_of_a_request_is_flipped(proxy, connection, upstream):
    proxy.add(Fault.flip(3, side="request"))
    connection.request("PUT", "/bucket/key", body=b"abcdef")
    connection.getresponse().read()
    assert upstream.bodies == [b"abc\x9bef"]


def test_headers_of_a_response_are_replaced_added_and_removed(proxy, connection):
    proxy.add(Fault(headers={"etag": '"wrong"', "x-amz-new": "1", "Server": None}))
    response, body = get(connection)
    assert response.headers.get_all("ETag") == ['"wrong"']
    assert (response.getheader("x-amz-new"), response.getheader("Server")) == ("1", None)
    assert body == BODY
    assert proxy.requests()[0].response_headers["etag"] == '"wrong"'


# Which requests are struck.


def test_rules_choose_by_method_key_and_function(proxy, connection):
    proxy.add(Fault.error(501, "Method"), method="HEAD")
    proxy.add(Fault.error(502, "Key"), key="second")
    proxy.add(Fault.error(503, "Function"), match=lambda request: request.headers.get("range") == "bytes=5-")
    assert get(connection, method="HEAD")[0].status == 501
    assert get(connection, key="the-second")[0].status == 502
    assert get(connection, Range="bytes=5-")[0].status == 503
    assert get(connection)[0].status == 200


def test_rules_skip_and_strike_only_so_often(proxy, connection):
    rule = proxy.add(Fault.slow_down(), match=lambda _: len(proxy.requests()) > 0, skip=1, times=2)
    assert [get(connection)[0].status for _ in range(5)] == [200, 503, 503, 200, 200]
    assert (rule.hits, rule.seen) == (2, 5)


def test_faults_add_up_and_the_last_of_a_kind_wins(proxy, connection):
    proxy.add(Fault(latency=0.1, headers={"a": "1", "b": "1"}))
    proxy.add(Fault.error(500, "First"))
    proxy.add(Fault.error(503, "Last") | Fault.header("b", "2"))
    begun = time.monotonic()
    response, _ = get(connection)
    assert time.monotonic() - begun >= 0.1
    assert (response.status, response.getheader("a"), response.getheader("b")) == (503, "1", "2")


def test_faults_are_taken_away(proxy, connection):
    rule = proxy.add(Fault.slow_down())
    proxy.add(Fault.header("x-amz-new", "1"))
    proxy.remove(rule)
    assert get(connection)[0].getheader("x-amz-new") == "1"
    proxy.heal()
    assert get(connection)[0].getheader("x-amz-new") is None


def test_what_a_match_function_raises_is_raised_by_close(upstream, caplog):
    proxy = FaultProxy(f"http://127.0.0.1:{upstream.server_port}").start()
    proxy.add(Fault.drop(), match=lambda request: request.headers["range"])
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=10)
    with pytest.raises(http.client.RemoteDisconnected):
        get(connection)
    connection.close()
    with pytest.raises(KeyError, match="range"):
        proxy.close()
    proxy.close()


@pytest.mark.parametrize("upstream", ["https://127.0.0.1:1", "127.0.0.1:1", "http://127.0.0.1"])
def test_an_address_that_cannot_be_served_is_refused(upstream):
    with pytest.raises(ConfigurationError, match="upstream must be like"):
        FaultProxy(upstream)


def test_settings_that_make_no_sense_are_refused(proxy):
    for make in (
        lambda: Fault(latency=-1),
        lambda: Fault(bandwidth=0),
        lambda: Fault.reset(after=-1),
        lambda: proxy.add(Fault.drop(), times=0),
        lambda: FaultProxy("http://127.0.0.1:1").endpoint,
    ):
        with pytest.raises(ConfigurationError):
            make()


def test_a_server_that_is_not_there_looks_like_a_closed_connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with FaultProxy(address) as proxy:
        connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=10)
        with pytest.raises(http.client.RemoteDisconnected):
            get(connection)
        connection.close()
        assert proxy.requests()[0].status is None


# With a real server and a real client.


def test_signatures_stay_valid_and_large_bodies_pass(s3_server, bucket, fault_proxy):
    proxy = fault_proxy(s3_server)
    client = s3_server.at(proxy.endpoint).client()
    body = os.urandom(5 * MIB + 17)
    client.put_object(Bucket=bucket, Key="a key+ü", Body=body, ChecksumAlgorithm="CRC32")
    assert client.get_object(Bucket=bucket, Key="a key+ü")["Body"].read() == body
    assert [request.key for request in proxy.requests()] == ["a key+ü"] * 2
    assert proxy.bytes_sent == len(body)
    client.close()


def test_a_damaged_upload_is_noticed_by_a_server_that_verifies(seaweedfs, fault_proxy):
    proxy = fault_proxy(seaweedfs)
    bucket = seaweedfs.create_bucket()
    client = seaweedfs.at(proxy.endpoint).client()
    proxy.add(Fault.flip(5 * KIB, side="request"), method="PUT")
    with pytest.raises(ClientError) as caught:
        client.put_object(Bucket=bucket, Key="key", Body=bytes(100 * KIB), ChecksumAlgorithm="CRC32")
    assert caught.value.response["Error"]["Code"] in ("BadDigest", "XAmzContentSHA256Mismatch")
    client.close()

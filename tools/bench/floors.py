"""How much of readinto() is the engine, and how much would awscrt or sockets cost without it?

The last two cases are loops over ranges of 8 MiB and nothing else: no retries, no checksums, no budget. The
sockets are those of ``http``, for which OpenSSL decrypts.
"""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from libraries import CONNECTOR, cases
from measure import BUCKET, MIB, REGION, Question, boto_client, endpoint, main
from objects import readinto
from read_object import KEY, SIZE, prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core.transports.http._sockets import ByteSocket

PART = 8 * MIB
IN_FLIGHT = 12
_PATIENCE = 30.0
READERS = cases("readinto", readinto)
_HEAD_END = b"\r\n\r\n"


def without_checksums() -> Callable[[], object]:
    """The transport http, which verifies nothing."""
    from s3torch.core import S3Client, S3ClientConfig, S3ReaderConstructor

    s3 = S3Client(REGION, endpoint=endpoint(), s3client_config=S3ClientConfig(transport="http", verify="off"))
    constructor, target = S3ReaderConstructor.range_based(0), bytearray(b"\1" * SIZE)
    return lambda: s3.get_object(BUCKET, KEY, reader_constructor=constructor).readinto(target)


def awscrt() -> Callable[[], object]:
    """A loop over requests of awscrt."""
    from awscrt import http, io, s3

    loops = io.EventLoopGroup(2)
    url = urlsplit(endpoint())
    options: dict[str, Any] = {"tls_mode": s3.S3RequestTlsMode.DISABLED}
    if url.scheme == "https":
        trusted = io.TlsContextOptions()
        trusted.override_default_trust_store_from_path(None, os.environ["AWS_CA_BUNDLE"])
        tls = io.ClientTlsContext(trusted).new_connection_options()
        tls.set_server_name(url.hostname)
        options = {"tls_connection_options": tls}
    bootstrap = io.ClientBootstrap(loops, io.DefaultHostResolver(loops))
    client = s3.S3Client(bootstrap=bootstrap, region=REGION, part_size=PART, **options)
    target, view = _target()
    host, path = _signed()
    turns = threading.Semaphore(IN_FLIGHT)

    def put(*, chunk: bytes, offset: int, **_: Any) -> None:
        view[offset : offset + len(chunk)] = chunk

    def ask(start: int) -> Any:
        turns.acquire()
        headers = http.HttpHeaders([("Host", host), ("Range", f"bytes={start}-{start + PART - 1}")])
        return client.make_request(
            type=s3.S3RequestType.GET_OBJECT,
            request=http.HttpRequest("GET", path, headers),
            part_size=PART,
            on_body=put,
            on_done=lambda **_: turns.release(),
        ).finished_future

    def work() -> None:
        for future in [ask(start) for start in range(0, len(target), PART)]:
            future.result()

    return work


def sockets() -> Callable[[], object]:
    """Threads over sockets."""
    target, view = _target()
    host, path = _signed()
    free = [_connect() for _ in range(IN_FLIGHT)]

    def receive(start: int) -> None:
        connected = free.pop()
        stop = start + PART
        lines = f"GET {path} HTTP/1.1", f"Host: {host}", f"Range: bytes={start}-{stop - 1}", "", ""
        connected.stall.expect_head()
        connected.send("\r\n".join(lines).encode())
        data = b""
        while _HEAD_END not in data:
            data += connected.receive(16 * 1024)
        connected.stall.expect_bytes()
        body = data.partition(_HEAD_END)[2]
        view[start : start + len(body)] = body
        start += len(body)
        while start < stop:
            start += connected.receive_into(view[start:stop])
        free.append(connected)

    pool = ThreadPoolExecutor(IN_FLIGHT)
    return lambda: list(pool.map(receive, range(0, len(target), PART)))


def _target() -> tuple[bytearray, memoryview]:
    target = bytearray(b"\1" * SIZE)
    return target, memoryview(target)


def _signed() -> tuple[str, str]:
    """Returns the host and the path of a signed URL."""
    place = {"Bucket": BUCKET, "Key": KEY}
    url = urlsplit(boto_client().generate_presigned_url("get_object", Params=place))
    return url.netloc, f"{url.path}?{url.query}"


def _connect() -> ByteSocket:
    from s3torch.core.transports.http._sockets import PlainSocket, StallTimer
    from s3torch.core.transports.http._tls import TlsSocket, trusting_context

    url = urlsplit(endpoint())
    plain = PlainSocket(
        socket.create_connection((url.hostname or "", url.port or 443)), StallTimer(_PATIENCE)
    )
    plain.stall.expect_head()
    if url.scheme == "http":
        return plain
    secure = TlsSocket(plain, trusting_context(os.environ["AWS_CA_BUNDLE"]), url.hostname or "")
    secure.use(StallTimer(_PATIENCE))
    return secure


if __name__ == "__main__":
    main(
        Question(
            title="readinto() of one object of 256 MiB, and what bounds it",
            cases={
                **{name: READERS[name] for name in (CONNECTOR, "s3torch (http)", "s3torch (crt)")},
                "s3torch (http), verify=off": without_checksums,
                "awscrt alone": awscrt,
                "sockets alone": sockets,
            },
            units=SIZE / 1e9,
            unit="GB",
            size=SIZE,
            prepare=prepare,
        )
    )

"""Fuzzes what reads the answers of a store: HTTP off a connection, listings, other documents and headers.

``hatch run fuzz:answers http -max_total_time=600``: the targets are ``http``, ``listings`` and ``documents``,
and what follows goes to libFuzzer. An input after which anything but our errors comes out, or that takes too
long or too much memory, is written to a file. ``tests/test_fuzz.py`` runs the same targets for a moment.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3torch.core import requests
from s3torch.core.errors import ConfigurationError, S3Error
from s3torch.core.models import MultipartUpload, PutOptions
from s3torch.core.ranges import ByteRange
from s3torch.core.transports.http._connection import Connection
from s3torch.core.transports.http._sockets import StallTimer
from s3torch.core.transports.http._transport import Download

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_LIMIT = 1 << 20
_UPLOAD = MultipartUpload("bucket", "key", "upload")
_OPTIONS = PutOptions()
_RANGE = ByteRange(2, 6)
_OPERATIONS: list[requests.Request[Any]] = [
    requests.get_object("bucket", "key"),
    requests.get_object("bucket", "key", byte_range=_RANGE),
    requests.get_object("bucket", "key", byte_range=ByteRange(0, 9)),
    requests.get_object("bucket", "key", if_match='"e"', size=5),
    requests.list_part_sizes("bucket", "key"),
    requests.head_object("bucket", "key"),
    requests.put_object("bucket", "key", options=_OPTIONS),
    requests.delete_object("bucket", "key"),
    requests.delete_objects("bucket", [("key", None)]),
    requests.copy_object("bucket", "key", "bucket", "copy"),
    requests.get_object_tagging("bucket", "key"),
    requests.create_multipart_upload("bucket", "key", options=_OPTIONS),
    requests.upload_part(_UPLOAD, 1),
    requests.upload_part_copy(_UPLOAD, 1, "bucket", "key", byte_range=_RANGE),
    requests.complete_multipart_upload(_UPLOAD, [], options=_OPTIONS),
    requests.abort_multipart_upload(_UPLOAD),
]
_LISTINGS: list[requests.Request[Any]] = [
    requests.list_objects("bucket"),
    requests.list_object_versions("bucket"),
    requests.list_multipart_uploads("bucket"),
]


class _Wire:
    """The socket of a server that has sent some bytes and closed the connection."""

    session = None

    def __init__(self, data: bytes, step: int) -> None:
        self._data = data
        self._step = step
        self.stall = StallTimer(1.0)

    def use(self, stall: StallTimer) -> None:
        self.stall = stall

    def send(self, data: bytes | memoryview) -> int:
        return len(data)

    def receive(self, limit: int, *, whole: bool = False) -> bytes:
        count = limit if whole else min(limit, self._step)
        piece, self._data = self._data[:count], self._data[count:]
        return piece

    def receive_into(self, view: memoryview) -> int:
        piece = self.receive(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def has_answer(self) -> bool:
        return True

    def is_alive(self) -> bool:
        return bool(self._data)

    def interrupt(self) -> None:
        """Nobody waits."""

    close = interrupt


def http(data: bytes) -> None:
    """Receives an answer: the first bytes say what was asked for and how much comes at a time.

    What the headers and the body say of an object is not looked at; ``documents`` does that.
    """
    which, step, into = (*data[:3], 0, 0, 0)[:3]
    request = _OPERATIONS[which % len(_OPERATIONS)]._replace(read=lambda answer: answer)
    connection = Connection(("http", "host"), _Wire(data[3:], 1 + step * step))
    buffer = memoryview(bytearray(9)) if into % 2 and request.streams else None
    # Broken connections are errors of the operating system, which the transport translates.
    with suppress(OSError), _our_errors():
        answer = connection.ask(b"", has_answer_body=request.method != "HEAD")
        if answer.status < 300 and request.streams:
            download = Download(request, None if buffer is None else len(buffer))
            result = download.receive(answer, connection, buffer)
            if answer.length is not None and result.length != answer.length:
                raise AssertionError(f"{result.length} bytes were taken for {answer.length}")
        else:
            body = connection.body(answer, _LIMIT)
            request.result(requests.Answer(answer.status, answer.headers, body, len(body)))


def listings(data: bytes) -> None:
    """Reads a page of a listing; the first byte says of what."""
    request = _LISTINGS[(data[0] if data else 0) % len(_LISTINGS)]
    with _our_errors():
        request.result(requests.Answer(200, {}, data[1:], len(data) - 1))


def documents(data: bytes) -> None:
    """Reads an answer: the operation, the status, lines of headers, and after an empty line the body."""
    which, status = (*data[:2], 0, 0)[:2]
    head, _, body = data[2:].partition(b"\n\n")
    pairs = [line.partition(":") for line in head.decode("latin-1").split("\n")]
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    request = _OPERATIONS[which % len(_OPERATIONS)]
    with _our_errors():
        request.result(requests.Answer(200 + status * 2, headers, body, len(body)))


class _our_errors(suppress):  # noqa: N801 - It reads like ``suppress``.
    """Lets the errors pass that a caller may see, but none that blames the caller."""

    def __init__(self) -> None:
        super().__init__(S3Error)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        return bool(super().__exit__(kind, error, trace)) and not isinstance(error, ConfigurationError)


_KEY = (
    b"<Contents><Key>a%2Fb</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;e&quot;"
    b"</ETag><Size>5</Size><StorageClass>GLACIER</StorageClass><RestoreStatus><IsRestoreInProgress>false"
    b"</IsRestoreInProgress><RestoreExpiryDate>2026-01-01T00:00:00Z</RestoreExpiryDate></RestoreStatus>"
    b"</Contents>"
)
_PAGE = (
    b'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<IsTruncated>true</IsTruncated><EncodingType>url</EncodingType><NextContinuationToken>t"
    b"</NextContinuationToken>" + _KEY + b"<CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>"
    b"</ListBucketResult>"
)
_VERSIONS = (
    b"<ListVersionsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker><NextVersionIdMarker>v"
    b"</NextVersionIdMarker><Version><Key>k</Key><VersionId>v</VersionId><IsLatest>true</IsLatest><LastModified>"
    b"2026-01-01T00:00:00.000Z</LastModified><Size>5</Size></Version><DeleteMarker><Key>k</Key><LastModified>"
    b"2026-01-01T00:00:00.000Z</LastModified></DeleteMarker></ListVersionsResult>"
)
_UPLOADS = (
    b"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><Upload><Key>k</Key><UploadId>u</UploadId>"
    b"<Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload></ListMultipartUploadsResult>"
)
_FACTS = (
    b'etag: "e"\ncontent-length: 4\ncontent-range: bytes 2-5/9\nlast-modified: Thu, 01 Jan 2026 00:00:00 '
    b'GMT\nx-amz-restore: ongoing-request="false", expiry-date="Thu, 01 Jan 2026 00:00:00 GMT"\n'
    b"x-amz-tagging-count: 2\nx-amz-checksum-crc32: AAAAAA==\nx-amz-meta-a: b\n\n"
)
_ERROR = b"<Error><Code>NoSuchKey</Code><Message>m</Message><Region>r</Region></Error>"
_DOCUMENTS = (
    b"<CopyObjectResult><ETag>&quot;e&quot;</ETag></CopyObjectResult>",
    b"<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>",
    b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
    b"<DeleteResult><Error><Key>k</Key><Code>c</Code><Message>m</Message></Error></DeleteResult>",
    _ERROR,
)
_HEAD = b"HTTP/1.1 206 OK\r\n" + _FACTS.replace(b"\n", b"\r\n")
TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "http": (
        http,
        [
            b"\1\7\1" + _HEAD + b"data",
            b"\1\7\0HTTP/1.1 100 Continue\r\n\r\n" + _HEAD + b"data",
            b"\0\1\0HTTP/1.1 200 OK\r\nETag: e\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndata",
            b"\2\3\0HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;a=b\r\ndata\r\n0\r\nt: x\r\n\r\n",
            b"\3\5\0HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n",
            b"\4\5\0HTTP/1.1 404 No\r\nContent-Length: %d\r\n\r\n%s" % (len(_ERROR), _ERROR),
        ],
    ),
    "listings": (listings, [b"\0" + _PAGE, b"\1" + _VERSIONS, b"\2" + _UPLOADS]),
    "documents": (
        documents,
        [
            *(bytes([which, 3]) + _FACTS + b"data" for which in range(len(_OPERATIONS))),
            *(bytes([which, 0]) + b'etag: "e"\n\n' + body for which, body in enumerate(_DOCUMENTS, 6)),
            b"\0\x66\n\n" + _ERROR,
        ],
    ),
}


def main(arguments: list[str]) -> None:
    """Fuzzes one target with libFuzzer, from its seeds, until it is stopped."""
    import atheris

    target, seeds = TARGETS[arguments[0]]
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{arguments[0]}-"))
    for number, seed in enumerate(seeds):
        (folder / f"seed-{number}").write_bytes(seed)
    atheris.instrument_all()
    limits = ["-timeout=10", "-rss_limit_mb=1024", "-malloc_limit_mb=256", "-max_len=16384"]
    atheris.Setup([sys.argv[0], str(folder), *limits, *arguments[1:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])

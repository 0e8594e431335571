"""Conformance of transports: connections, what comes over them unasked or too slowly, and bare refusals."""

# ruff: noqa: FBT001, S101 - In tests, assert is how they tell, and parametrize gives what it gives.

from __future__ import annotations

import socket
import ssl
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from s3torch.core import requests
from s3torch.core.errors import (
    AccessDeniedError,
    CertificateError,
    NotFoundError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    ServerError,
    TransferCancelledError,
    WrongRegionError,
)
from s3torch.core.models import Credentials
from s3torch.testing._seaweedfs import AUTHORITY, CERTIFICATE, PRIVATE_KEY, certificate_files
from s3torch.testing._transport.case import (
    CUT_OFF,
    KEYS,
    PATIENCE,
    PROMPT,
    Script,
    StaticSession,
    TransportCase,
    failure,
)
from s3torch.testing.scripted import ScriptedAnswer, ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from s3torch.core.requests import Request

_RIGHT = ScriptedAnswer(body=b"right")
_BARE = {"Content-Length": None, "ETag": None}
_INTERIM = {status: ScriptedAnswer(status, headers=_BARE).to_bytes() for status in (100, 101, 102, 103)}
_UNASKED = {
    "answer": ScriptedAnswer(body=b"of nobody").to_bytes(),
    "time-out": ScriptedAnswer(408, headers={"Connection": "close"}).to_bytes(),
    "interim answer": _INTERIM[100],
    "byte": b"x",
}
_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_CHUNKS = b"\r\n5\r\nright\r\n0\r\n\r\n"
_ODD_BODIES = {
    "two lengths": _OK + b"Content-Length: 5\r\nContent-Length: 3\r\n\r\nright",
    "two lengths in one": _OK + b"Content-Length: 3, 5\r\n\r\nright",
    "one length twice": _OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nright",
    "a sign": _OK + b"Content-Length: +5\r\n\r\nright",
    "less than nothing": _OK + b"Content-Length: -5\r\n\r\nright",
    "more than there can be": _OK + b"Content-Length: 99999999999999999999\r\n\r\nright",
    "chunks and a length": _OK + _CHUNKED + b"Content-Length: 3\r\n" + _CHUNKS,
    "a length and chunks": _OK + b"Content-Length: 3\r\n" + _CHUNKED + _CHUNKS,
    "almost chunks": _OK + b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\nright",
    "chunk longer than its size": _OK + _CHUNKED + b"\r\n4\r\nright\r\n0\r\n\r\n",
    "chunk of no size": _OK + _CHUNKED + b"\r\n0x5\r\nright\r\n0\r\n\r\n",
    "space behind a name": _OK + b"Content-Length : 5\r\n\r\nright",
    "204 with a body": b"HTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\nright",
    "an answer behind it": _RIGHT.to_bytes() + _UNASKED["answer"],
}
_OTHER_KEYS = Credentials("AKIDANEW", "SECRET", "token")


class ConnectionTests(TransportCase):
    """What a transport makes of what comes over its connections."""

    @pytest.mark.parametrize("close", [False, True], ids=["open", "closed"])
    @pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in _UNASKED.items()])
    def test_answer_that_nobody_has_asked_for(self, script: Script, data: bytes, close: bool) -> None:
        """What comes while a connection idles is no answer to the next request, nor is it an attempt."""
        script.server.will(ScriptedAnswer(body=b"first"), _RIGHT)
        transport = script.connect()
        assert transport.get("bucket", "key").result(PATIENCE).data == b"first"
        script.server.push(data, close=close)
        time.sleep(0.1)
        assert transport.get("bucket", "key").result(PATIENCE).data == b"right"
        assert len(script.server.requests) == 2
        assert script.retries == []

    @pytest.fixture
    def strict(self, script: Script) -> Script:
        if not self.reads_http_strictly:
            pytest.skip("the transport takes what is malformed")
        return script

    @pytest.fixture
    def slow(self, script: Script) -> Script:
        if not self.ends_slow_answers:
            pytest.skip("the transport waits for what comes byte by byte")
        return script

    @pytest.mark.parametrize("status", [100, 102, 103])
    def test_interim_answers(self, strict: Script, status: int) -> None:
        """The answer is the one that comes after them."""
        answer = ScriptedAnswer(raw=_INTERIM[status] * 2 + _RIGHT.to_bytes())
        strict.server.will(answer, answer)
        transport = strict.connect()
        assert transport.get("bucket", "key").result(PATIENCE).data == b"right"
        assert transport.put("bucket", "key", memoryview(b"data")).result(PATIENCE).etag == '"e"'
        assert strict.retries == []

    def test_protocol_is_not_switched(self, strict: Script) -> None:
        strict.server.will(*[ScriptedAnswer(raw=_INTERIM[101] + _RIGHT.to_bytes())] * 2)
        failure(strict.connect(max_attempts=1).get("bucket", "key"), S3ConnectionError)

    @pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in _ODD_BODIES.items()])
    def test_end_of_a_body(self, strict: Script, raw: bytes) -> None:
        """Where it is not told in one way, the answer is none, and never a part of the next one."""
        strict.server.will(ScriptedAnswer(raw=raw), ScriptedAnswer(body=b"next"))
        transport = strict.connect(max_attempts=1)
        transfer = transport.get("bucket", "key")
        try:
            assert transfer.result(PATIENCE).data == b"right"
        except S3Error:
            failure(transfer, (*CUT_OFF, ServerError))
        assert transport.get("bucket", "key").result(PATIENCE).data == b"next"

    def test_head_has_to_end(self, slow: Script) -> None:
        """``read_timeout`` is for all of it, also where a byte comes now and then."""
        slow.server.will(ScriptedAnswer(slow=-1, pause=0.2))
        failure(slow.connect(max_attempts=1, read_timeout=0.4).get("bucket", "key"), S3TimeoutError)

    def test_slow_body_is_waited_for(self, script: Script) -> None:
        script.server.will(ScriptedAnswer(body=b"right", slow=0, pause=0.1))
        assert script.connect(read_timeout=0.4).get("bucket", "key").result(PATIENCE).data == b"right"

    @pytest.mark.parametrize("buffered", [False, True])
    def test_lowest_speed(self, slow: Script, buffered: bool) -> None:
        """Unless ``low_speed_limit`` says that it is too slow."""
        slow.server.will(ScriptedAnswer(body=b"x" * 200, slow=0, pause=0.1))
        transport = slow.connect(max_attempts=1, low_speed_limit=1000, low_speed_time=0.5)
        into = memoryview(bytearray(200)) if buffered else None
        failure(transport.get("bucket", "key", into=into), S3TimeoutError)

    def test_end_is_prompt_while_it_connects(self, script: Script) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as silent:
            script.session = StaticSession(f"https://127.0.0.1:{silent.getsockname()[1]}", KEYS)
            transfer = script.connect().get("bucket", "key")
            time.sleep(0.2)
            assert transfer.cancel()
            failure(transfer, TransferCancelledError, seconds=PROMPT)


class CertificateTests(TransportCase):
    """Whom a transport trusts."""

    @pytest.fixture
    def authority(self, tmp_path: Path) -> Path:
        """A folder with a certificate for this machine, and that of an authority which nobody knows."""
        for name, content in certificate_files().items():
            (tmp_path / name).write_bytes(content)
        return tmp_path

    @pytest.fixture
    def tls(self, authority: Path) -> Iterator[Script]:
        """A scripted server that speaks TLS, and transports to it."""
        if not self.speaks_http:
            pytest.skip("the transport does not speak HTTP")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority / CERTIFICATE, authority / PRIVATE_KEY)
        with ScriptedServer(tls=context) as server:
            sealed = Script(self, server)
            sealed.server.will(_RIGHT)
            yield sealed
            sealed.close()

    def test_unknown_authority(self, tls: Script) -> None:
        """Nothing is sent, it is told at once, and not tried again."""
        transfer = tls.connect().get("bucket", "key")
        error = failure(transfer, CertificateError, seconds=PROMPT)
        assert error.__cause__ is not None
        assert (tls.server.requests, tls.retries) == ([], [])

    def test_bundle_of_the_session(self, tls: Script, authority: Path) -> None:
        assert isinstance(tls.session, StaticSession)
        tls.session.ca_bundle = str(authority / AUTHORITY)
        transport = tls.connect()
        assert transport.get("bucket", "key").result(PATIENCE).data == b"right"
        # Also behind TLS nobody has asked for this.
        tls.server.push(_UNASKED["answer"])
        time.sleep(0.1)
        tls.server.will(ScriptedAnswer(body=b"next"))
        assert transport.get("bucket", "key").result(PATIENCE).data == b"next"


class BareRefusalTests(TransportCase):
    """Refusals that say little: the answer to a HEAD has no body, and so no code."""

    def test_head_with_expired_keys(self, script: Script) -> None:
        """What a HEAD gets for them is 400, as for much else, so the keys are renewed once."""
        script.session = session = StaticSession(script.server.endpoint, KEYS, _OTHER_KEYS)
        # S3 may tell the region also where that is right.
        expired = ScriptedAnswer(400, headers={"x-amz-bucket-region": "us-east-1"})
        script.server.will(expired, _RIGHT, expired, expired)
        transport = script.connect()
        assert transport.head_object("bucket", "key").size == 5
        assert session.renewals == [(KEYS, "bucket")]
        with pytest.raises(S3Error) as caught:
            transport.head_object("bucket", "key")
        assert (type(caught.value), caught.value.status, caught.value.attempts) == (S3Error, 400, 1)

    def test_head_in_another_region(self, script: Script) -> None:
        session = script.session
        script.server.will(ScriptedAnswer(400, headers={"x-amz-bucket-region": "eu-west-1"}))
        with pytest.raises(WrongRegionError) as caught:
            script.connect().head_object("bucket", "key")
        assert caught.value.expected_region == "eu-west-1"
        assert isinstance(session, StaticSession)
        assert session.renewals == []

    @pytest.mark.parametrize(("status", "expected"), [(403, AccessDeniedError), (404, NotFoundError)])
    def test_refused_head(self, script: Script, status: int, expected: type[S3Error]) -> None:
        script.server.will(ScriptedAnswer(status))
        with pytest.raises(expected, match="HEAD") as caught:
            script.connect().head_object("bucket", "key")
        assert (caught.value.status, caught.value.code, caught.value.attempts) == (status, None, 1)

    def test_signature_for_another_region(self, script: Script) -> None:
        """The body tells the right one, where no header does."""
        code = "<Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region>"
        script.server.will(ScriptedAnswer(400, f"<Error>{code}</Error>".encode()))
        error = failure(script.connect().get("bucket", "key"), WrongRegionError)
        assert isinstance(error, WrongRegionError)
        assert error.expected_region == "eu-west-1"

    def test_redirect_that_names_an_endpoint(self, script: Script) -> None:
        """As S3 did before it told regions, and as others do."""
        code = "<Code>PermanentRedirect</Code><Endpoint>elsewhere.example</Endpoint>"
        script.server.will(ScriptedAnswer(301, f"<Error>{code}</Error>".encode()))
        error = failure(script.connect().get("bucket", "key"), WrongRegionError)
        assert "elsewhere.example" in str(error)

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    @pytest.mark.parametrize("ask", [requests.get_object, requests.head_object])
    def test_bare_redirect(self, script: Script, status: int, ask: Callable[..., Request[Any]]) -> None:
        """The error tells where to, but for what may be secret, and nobody goes there."""
        location = "https://user:word@elsewhere.example/key?X-Amz-Signature=sealed"
        script.server.will(ScriptedAnswer(status, headers={"Location": location}), _RIGHT)
        transfer = script.connect().send(ask("bucket", "key"))
        with pytest.raises(S3Error, match=r"https://elsewhere\.example/key") as caught:
            transfer.result(PATIENCE)
        assert "word" not in str(caught.value)
        assert "sealed" not in str(caught.value)
        assert len(script.server.requests) == 1

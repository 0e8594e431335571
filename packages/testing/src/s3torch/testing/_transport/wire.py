"""Conformance of transports: what goes over the wire, and what is tried again."""

# ruff: noqa: S101 - In tests, assert is how they tell, and parametrize gives what it gives.

from __future__ import annotations

import base64
import hashlib
import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest

from s3torch.core import requests
from s3torch.core.errors import (
    AccessDeniedError,
    ChecksumMismatchError,
    ConfigurationError,
    ConflictError,
    NoCredentialsError,
    NotFoundError,
    PreconditionFailedError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    ServerError,
    ThrottledError,
)
from s3torch.core.models import BucketEndpoint, CompletedPart, Credentials, MultipartUpload, PutOptions
from s3torch.core.ranges import ByteRange
from s3torch.core.transports import body_of, decide_retry, request_headers, request_target
from s3torch.testing._transport.case import (
    CUT_OFF,
    KEYS,
    PATIENCE,
    StaticSession,
    TransportCase,
    expect_released,
    failure,
    wait,
)
from s3torch.testing.scripted import ScriptedAnswer, ScriptedServer, refusal

if TYPE_CHECKING:
    from s3torch.core.requests import Request
    from s3torch.testing._transport.case import Script, TransportCalls

_DATA = bytes(range(256)) * 40
_UPLOAD = MultipartUpload("bucket", "key", "upload")
_OTHER_KEYS = Credentials("AKIDANEW", "SECRET", "token")
_OPTIONS = PutOptions("STANDARD_IA", "text/x-test", {"a": "b c"}, if_none_match="*", tags={"t": "1+1"})
_REQUESTS: list[Request[Any]] = [
    requests.get_object("bucket", "a b/ü+%20?#&=~", version_id="v/1"),
    requests.get_object("bucket", "key", byte_range=ByteRange(5, 9), if_match='"e"'),
    requests.head_object("bucket", "key"),
    requests.put_object("bucket", "key", options=_OPTIONS, checksum=("CRC32", "AAAAAA==")),
    requests.list_objects("bucket", prefix="a b+", delimiter="/", start_after="t=/+"),
    requests.delete_object("bucket", "key", version_id="v"),
    requests.delete_objects("bucket", [("<ü>", None), ("key", "v")]),
    requests.copy_object("other", "ü key", "bucket", "key", if_match='"e"'),
    requests.create_multipart_upload("bucket", "key", options=_OPTIONS, checksum_algorithm="CRC32"),
    requests.complete_multipart_upload(_UPLOAD, [CompletedPart(1, '"p"', None)], options=PutOptions()),
]
_RETRIED = [
    (400, "RequestTimeout", S3TimeoutError),
    (408, "RequestTimeout", S3TimeoutError),
    (409, "ConditionalRequestConflict", ConflictError),
    (409, "OperationAborted", ConflictError),
    (429, "TooManyRequests", ThrottledError),
    (500, "InternalError", ServerError),
    (502, "BadGateway", ServerError),
    (503, "SlowDown", ThrottledError),
    (503, "ServiceUnavailable", ThrottledError),
    (504, "GatewayTimeout", ServerError),
]
_FINAL = [
    (400, "BadDigest", ChecksumMismatchError),
    (403, "AccessDenied", AccessDeniedError),
    (403, "SignatureDoesNotMatch", AccessDeniedError),
    (404, "NoSuchKey", NotFoundError),
    (409, "BucketNotEmpty", ConflictError),
    (412, "PreconditionFailed", PreconditionFailedError),
    (501, "NotImplemented", ServerError),
]


def _put(transport: TransportCalls) -> Any:
    return transport.put("bucket", "key", memoryview(_DATA))


class WireTests(TransportCase):
    """What the server sees of a request."""

    @pytest.mark.parametrize(
        "asked", [pytest.param(one, id=f"{n}-{one.operation}") for n, one in enumerate(_REQUESTS)]
    )
    def test_request_arrives_as_it_is(self, script: Script, asked: Request[Any]) -> None:
        """Target, headers and content are those that ``s3torch.core.transports`` makes of it."""
        script.server.will(refusal(404, "NoSuchKey"))
        context = script.context(requester_pays=True, expected_bucket_owner="123456789012")
        transport = self.create_transport(context)
        wait(transport.send(asked))
        transport.close()
        endpoint = script.session.endpoint("bucket")
        (told,) = script.server.requests
        assert (told.method, told.path) == (asked.method, request_target(asked, endpoint))
        assert told.body == asked.content
        expected = request_headers(asked, context, endpoint, body=body_of(asked, None))
        for name, value in expected:
            found = told.headers.get(name.lower())
            # A library may add what it is to the User-Agent.
            assert found == value or (name == "User-Agent" and found and value in found), name
        assert told.headers["x-amz-request-payer"] == "requester"
        assert told.headers["x-amz-expected-bucket-owner"] == "123456789012"

    def test_customer_key_is_sent(self, script: Script) -> None:
        """Objects that are encrypted with a key of the customer are read and stored with it."""
        key = b"k" * 32
        script.server.will(ScriptedAnswer(), ScriptedAnswer())
        transport = script.connect(sse_customer_key=lambda: key)
        transport.get("bucket", "key").result(PATIENCE)
        _put(transport).result(PATIENCE)
        digest = base64.b64encode(hashlib.md5(key, usedforsecurity=False).digest()).decode()
        for told in script.server.requests:
            assert told.headers["x-amz-server-side-encryption-customer-key-md5"] == digest

    @pytest.mark.parametrize("size", [0, 1, 3_000_000])
    def test_body_is_sent(self, script: Script, size: int) -> None:
        """All bytes of it arrive, also of a piece of a writable buffer, and none but these."""
        body = bytearray(b"x" + bytes(size) + b"y")
        script.server.will(ScriptedAnswer())
        script.connect().put("bucket", "key", memoryview(body)[1:-1]).result(PATIENCE)
        (told,) = script.server.requests
        assert told.headers["content-length"] == str(size)
        assert told.body == bytes(size)
        expect_released(body)

    def test_requests_are_signed(self, script: Script) -> None:
        """The session's keys sign all that decides what is done; a token goes along, and no secret does."""
        script.session = StaticSession(script.server.endpoint, _OTHER_KEYS)
        script.server.will(ScriptedAnswer(), ScriptedAnswer())
        transport = script.connect(requester_pays=True)
        transport.get("bucket", "key").result(PATIENCE)
        _put(transport).result(PATIENCE)
        for told in script.server.requests:
            authorization = told.headers["authorization"]
            assert authorization.startswith("AWS4-HMAC-SHA256 ")
            assert f"Credential={_OTHER_KEYS.access_key}/" in authorization
            assert "/us-east-1/s3/aws4_request" in authorization
            for name in ("host", "x-amz-date", "x-amz-request-payer", "x-amz-security-token"):
                assert name in authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
            assert told.headers["x-amz-security-token"] == "token"

    def test_token_of_a_session_with_a_bucket(self, script: Script) -> None:
        """It has a header of its own, as directory buckets want it."""

        class DirectorySession(StaticSession):
            def endpoint(self, bucket: str) -> BucketEndpoint:
                usual = super().endpoint(bucket)
                return BucketEndpoint("http", usual.host, "/", "us-east-1", "s3express", session_auth=True)

        script.session = DirectorySession(script.server.endpoint, _OTHER_KEYS)
        script.server.will(ScriptedAnswer())
        script.connect().get("bucket", "key").result(PATIENCE)
        (told,) = script.server.requests
        assert told.headers["x-amz-s3session-token"] == "token"
        assert "x-amz-s3session-token" in told.headers["authorization"]
        assert "/us-east-1/s3express/aws4_request" in told.headers["authorization"]
        assert "x-amz-security-token" not in told.headers

    def test_anonymous_requests_are_not_signed(self, script: Script) -> None:
        script.session = StaticSession(script.server.endpoint)
        script.server.will(ScriptedAnswer(), ScriptedAnswer())
        transport = script.connect(unsigned=True)
        transport.get("bucket", "key").result(PATIENCE)
        _put(transport).result(PATIENCE)
        for told in script.server.requests:
            assert not {"authorization", "x-amz-security-token"} & set(told.headers)

    @pytest.mark.parametrize(
        ("question", "error"), [("credentials", NoCredentialsError), ("endpoint", ConfigurationError)]
    )
    def test_session_that_fails(self, script: Script, question: str, error: type[S3Error]) -> None:
        """The transfer tells, not ``send``."""

        def fail(*_: object) -> Any:
            raise error("there is none")

        setattr(script.session, question, fail)
        failure(script.connect().get("bucket", "key"), error)
        assert script.server.requests == []

    def test_customer_key_that_fails(self, script: Script) -> None:
        """The transfer tells, not ``send``."""
        transport = script.connect(sse_customer_key=lambda: b"too short")
        failure(transport.get("bucket", "key"), ConfigurationError)


class RetryTests(TransportCase):
    """What is tried again, how often, and what is told of it."""

    @pytest.mark.parametrize(("status", "code", "expected"), _RETRIED)
    def test_failure_that_may_pass(
        self, script: Script, status: int, code: str, expected: type[S3Error]
    ) -> None:
        """The request is sent again, whole, and the listener is told once for each time."""
        script.server.will(*[refusal(status, code)] * 2, ScriptedAnswer())
        transfer = _put(script.connect())
        wait(transfer)
        assert transfer.result().etag == '"e"'
        assert [told.body for told in script.server.requests] == [_DATA] * 3
        assert [told.attempt for told in script.retries] == [1, 2]
        for told in script.retries:
            assert (told.operation, told.bucket, told.key) == ("PutObject", "bucket", "key")
            assert type(told.error) is expected
            # A library may tell of failures that pass only what kind they are of.
            assert told.error.status is not None
            assert (told.error.status // 100, told.error.key) == (status // 100, "key")
            assert told.transfer is transfer
            assert told.thread != threading.get_ident()

    def test_pause_before_the_next_attempt(self, script: Script) -> None:
        """It is as long as it was told, and as ``decide_retry`` says."""
        script.server.will(*[refusal(503, "SlowDown")] * 2, ScriptedAnswer())
        wait(_put(script.connect()))
        asked = script.server.requests
        for told, before, after in zip(script.retries, asked[:-1], asked[1:], strict=True):
            least, most = (
                decide_retry(told.error, told.attempt, attempts=3, jitter=jitter).seconds
                for jitter in (0.5, 1)
            )
            assert least <= told.seconds <= most
            assert after.at - before.at > told.seconds * 0.9 - 0.01

    @pytest.mark.parametrize("attempts", [1, 2, 4])
    def test_attempts_are_counted(self, script: Script, attempts: int) -> None:
        script.server.will(*[refusal(503, "SlowDown")] * 9)
        transfer = script.connect(max_attempts=attempts).get("bucket", "key")
        wait(transfer)
        error = failure(transfer, ThrottledError)
        assert error.attempts == len(script.server.requests) == attempts
        assert [told.attempt for told in script.retries] == [*range(1, attempts)]

    @pytest.mark.parametrize(("status", "code", "expected"), _FINAL)
    def test_refusal_is_final(self, script: Script, status: int, code: str, expected: type[S3Error]) -> None:
        script.server.will(*[refusal(status, code)] * 9)
        transport = script.connect()
        get, put = transport.get("bucket", "key"), _put(transport)
        for error in (failure(get, expected), failure(put, expected, "PutObject")):
            assert (error.status, error.code, error.attempts) == (status, code, 1)
        assert (len(script.server.requests), script.retries) == (2, [])

    @pytest.mark.parametrize("broken", [False, True])
    def test_secrets_are_not_shown(self, script: Script, *, broken: bool) -> None:
        """No error has the token, the secret or the customer's key in it, not even in quotes."""
        key = b"the-key-of-a-customer-32-bytes.."
        keys = Credentials("AKIDANEW", "a-secret-key", "a-session-token")
        hidden = ("a-secret-key", "a-session-token", base64.b64encode(key).decode())
        quoted = f"x-amz-security-token:{hidden[1]}\nx-amz-server-side-encryption-customer-key:{hidden[2]}\n"
        told = f"<Error><Code>SignatureDoesNotMatch</Code><Message>{quoted}</Message></Error>".encode()
        script.session = StaticSession(script.server.endpoint, keys)
        script.server.will(*[ScriptedAnswer(cut=-1) if broken else ScriptedAnswer(403, told)] * 9)
        transport = script.connect(sse_customer_key=lambda: key, max_attempts=1)
        for transfer in (transport.get("bucket", "key"), _put(transport)):
            wait(transfer)
            with pytest.raises(S3Error) as caught:
                transfer.result()
            error = caught.value
            shown = f"{error} {error!r} {vars(error)} {pickle.dumps(error)!r} {error.__cause__!r}"
            assert not [secret for secret in hidden if secret in shown]

    def test_failures_of_all_kinds_are_counted_together(self, script: Script) -> None:
        """A lost answer is an attempt: the request may have reached the store."""
        lost, broken = ScriptedAnswer(cut=-1), ScriptedAnswer(body=_DATA, cut=0)
        # The first: on a kept connection, a lost answer may only mean that the server had closed it before.
        script.server.will(lost, refusal(500, "InternalError"), broken, ScriptedAnswer(body=_DATA))
        transfer = script.connect(max_attempts=4).get("bucket", "key")
        wait(transfer)
        assert transfer.result().data == _DATA
        assert [told.attempt for told in script.retries] == [1, 2, 3]
        assert type(script.retries[0].error) is S3ConnectionError
        assert script.retries[0].error.__cause__ is not None
        assert type(script.retries[1].error) is ServerError
        assert isinstance(script.retries[2].error, CUT_OFF)

    def test_lost_answer_of_the_last_attempt(self, script: Script) -> None:
        script.server.will(*[ScriptedAnswer(cut=-1)] * 9)
        error = failure(_put(script.connect(max_attempts=2)), S3ConnectionError, "PutObject")
        assert (error.attempts, len(script.server.requests)) == (2, 2)
        assert error.__cause__ is not None

    def test_nobody_listens(self, script: Script) -> None:
        with ScriptedServer() as server:
            gone = server.endpoint
        script.session = StaticSession(gone, KEYS)
        error = failure(script.connect(max_attempts=2).get("bucket", "key"), S3ConnectionError)
        assert error.__cause__ is not None

    def test_refusal_after_a_lost_answer(self, script: Script) -> None:
        """The error tells that the attempt before may have done it."""
        script.server.will(ScriptedAnswer(cut=-1), refusal(412, "PreconditionFailed"))
        assert failure(_put(script.connect()), PreconditionFailedError, "PutObject").attempts == 2

    @pytest.mark.parametrize("code", ["ExpiredToken", "TokenRefreshRequired"])
    def test_expired_keys_are_renewed_once(self, script: Script, code: str) -> None:
        """The request is signed with the others and told as a retry; later ones begin with them."""
        script.session = session = StaticSession(script.server.endpoint, KEYS, _OTHER_KEYS)
        script.server.will(refusal(400, code), ScriptedAnswer(), ScriptedAnswer())
        transport = script.connect()
        transfer = _put(transport)
        wait(transfer)
        assert transfer.result().etag == '"e"'
        _put(transport).result(PATIENCE)
        assert session.renewals == [(KEYS, "bucket")]
        first, *others = (told.headers["authorization"] for told in script.server.requests)
        assert f"Credential={KEYS.access_key}/" in first
        assert [f"Credential={_OTHER_KEYS.access_key}/" in other for other in others] == [True, True]
        assert [told.body for told in script.server.requests] == [_DATA] * 3
        assert [(told.attempt, told.seconds, told.transfer) for told in script.retries] == [(1, 0, transfer)]
        assert isinstance(script.retries[0].error, AccessDeniedError)

    def test_keys_that_expire_again(self, script: Script) -> None:
        more = [Credentials(f"AKID{number}", "SECRET") for number in range(9)]
        script.session = session = StaticSession(script.server.endpoint, KEYS, *more)
        script.server.will(*[refusal(400, "ExpiredToken")] * 9)
        error = failure(_put(script.connect(max_attempts=5)), AccessDeniedError, "PutObject")
        assert (error.code, error.attempts) == ("ExpiredToken", 2)
        assert (len(script.server.requests), len(session.renewals)) == (2, 1)

    def test_keys_that_cannot_be_renewed(self, script: Script) -> None:
        session = script.session
        script.server.will(*[refusal(400, "ExpiredToken")] * 9)
        error = failure(_put(script.connect()), AccessDeniedError, "PutObject")
        assert (error.code, error.attempts) == ("ExpiredToken", 1)
        assert (len(script.server.requests), script.retries) == (1, [])
        assert isinstance(session, StaticSession)
        assert session.renewals == [(KEYS, "bucket")]

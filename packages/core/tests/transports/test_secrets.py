"""Secrets are in no error, frame, log, warning or pickle, whatever goes wrong."""

from __future__ import annotations

import base64
import functools
import logging
import pickle
import traceback

import pytest

from s3torch.core import Credentials, S3Client, S3ClientConfig, UserAgent
from s3torch.core.errors import AccessDeniedError, ConfigurationError, S3ConnectionError, S3Error

SECRET = "s3cret-of-this-test"
TOKEN = "t0ken-of-this-test"
KEY = b"customer-key-of-this-test-123456"
PASSWORD = "pa55word"
BASIC = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
HIDDEN = [SECRET, TOKEN, KEY.decode(), base64.b64encode(KEY).decode(), PASSWORD, BASIC]
QUOTED = f"GET\n/\n\nx-amz-security-token:{TOKEN}\nx-amz-server-side-encryption-customer-key: "
QUOTED += f"{base64.b64encode(KEY).decode()}\n"


def put(client):
    with client.put_object("bucket", "key") as writer:
        writer.write(b"data")


OPERATIONS = {
    "get": lambda client: client.get_object("bucket", "key").read(),
    "head": lambda client: client.head_object("bucket", "key"),
    "put": put,
    "list": lambda client: list(client.list_objects("bucket")),
    "delete": lambda client: client.delete_object("bucket", "key"),
    "delete many": lambda client: client.delete_objects("bucket", ["key"]),
    "copy": lambda client: client.copy_object("bucket", "key", "bucket", "copy"),
}


def customer_key():
    return KEY


def credentials():
    return Credentials("AKID", SECRET, TOKEN)


@pytest.fixture(params=["crt", "http"])
def client(request, stub):
    with S3Client("us-east-1", endpoint=stub.endpoint, s3client_config=settings(request.param)) as client:
        yield client


def settings(transport, **others):
    given = {"credentials": credentials, "sse_customer_key": customer_key, "max_attempts": 2, **others}
    return S3ClientConfig(transport=transport, read_timeout=1, connect_timeout=5, **given)


@pytest.fixture
def hides(caplog, recwarn):
    """Calls a function, which has to fail, and looks for secrets in all that can be seen of the failure."""
    # What botocore logs at this level is all of a request; that is its own.
    caplog.set_level(logging.DEBUG, "s3torch")

    def hides(call, kind=S3Error):
        with pytest.raises(kind) as caught:
            call()
        told = [*shown(caught.value), *(record.getMessage() for record in caplog.records)]
        for text in [*told, *(str(warning.message) for warning in recwarn)]:
            for secret in HIDDEN:
                assert secret not in text
        return caught.value

    return hides


def shown(error):
    """What error trackers, logs and other processes get of an error."""
    yield from (str(error), repr(error), pickle.dumps(error).decode("latin-1"))
    link = error
    while link is not None:
        yield repr(vars(link))
        link = link.__cause__ or link.__context__
    yield "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    yield "".join(getattr(error, "__notes__", ()))


@pytest.mark.promise(10)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_server_that_quotes_the_request(client, stub, answer, hides, operation):
    told = f"<Error><Code>SignatureDoesNotMatch</Code><Message>We got {QUOTED}</Message><CanonicalRequest>"
    told = f"{told}{QUOTED}</CanonicalRequest></Error>".encode()
    stub.will(answer(403, told, {"x-quoted": QUOTED.replace("\n", " ")}))
    del told
    error = hides(functools.partial(OPERATIONS[operation], client), AccessDeniedError)
    assert error.status == 403
    assert TOKEN in stub.requests[0].headers["x-amz-security-token"]


@pytest.mark.promise(10)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_connection_that_breaks(client, stub, answer, hides, operation):
    stub.will(*[answer(200, b"data", cut=-1)] * 2)
    hides(functools.partial(OPERATIONS[operation], client))


@pytest.mark.parametrize("broken", [False, True])
def test_a_session_with_a_directory_bucket_that_fails(client, stub, answer, hides, broken):
    told = f"<Error><Code>AccessDenied</Code><Message>We got {QUOTED}</Message></Error>".encode()
    stub.will(*[answer(cut=-1) if broken else answer(403, told)] * 5)
    del told
    error = hides(functools.partial(client.head_object, "data--use1-az4--x-s3", "key"))
    assert error.operation == "CreateSession"
    assert TOKEN in stub.requests[0].headers["x-amz-security-token"]


def test_an_answer_that_stays_away(client, stub, answer, hides):
    stub.will(*[answer(200, b"data", stall=-1)] * 2)
    hides(functools.partial(OPERATIONS["get"], client), TimeoutError)


@pytest.mark.parametrize("name", ["crt", "http"])
def test_a_header_that_cannot_be_sent(stub, answer, hides, name):
    stub.will(*[answer(200, b"data")] * 2)
    agent = UserAgent(["a\r\nb"])
    with S3Client(
        "us-east-1", endpoint=stub.endpoint, user_agent=agent, s3client_config=settings(name)
    ) as client:
        hides(functools.partial(OPERATIONS["head"], client))


@pytest.mark.promise(10)
@pytest.mark.parametrize("name", ["crt", "http"])
@pytest.mark.parametrize(
    "url",
    [
        "http://user:PASSWORD@[::1",
        "http://user:PASSWORD@proxy.invalid:port",
        "http://user:PASSWORD/x@proxy.invalid:80",
        "http://user:12/PASSWORD@proxy.invalid:80",
        "http://user:PASSWORD#x@proxy.invalid:80",
        "user:PASSWORD:x@proxy.invalid:99999",
        "socks5://user:PASSWORD@127.0.0.1:9",
        "http://user:PASSWORD@127.0.0.1:9",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_bad_proxy(hides, monkeypatch, name, url, scheme):
    for variable in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, url.replace("PASSWORD", PASSWORD))
    config = settings(name, sse_customer_key=None)
    with S3Client("us-east-1", endpoint=f"{scheme}://storage.invalid", s3client_config=config) as client:
        hides(functools.partial(OPERATIONS["get"], client))
        hides(functools.partial(OPERATIONS["list"], client))


def test_a_proxy_that_refuses(stub, answer, hides, monkeypatch):
    for variable in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, stub.endpoint.replace("//", f"//user:{PASSWORD}@"))
    stub.will(*[answer(407, f"Proxy-Authorization: Basic {BASIC}".encode())] * 2)
    with S3Client(
        "us-east-1", endpoint="https://storage.invalid", s3client_config=settings("http")
    ) as client:
        hides(functools.partial(OPERATIONS["get"], client), S3ConnectionError)
    assert stub.requests[0].headers["proxy-authorization"] == f"Basic {BASIC}"


BAD_KEYS = {
    "a token with a line break": lambda: ("AKID", SECRET, f"{TOKEN}\n"),
    "a secret with a line break": lambda: ("AKID", f"{SECRET}\n", TOKEN),
    "an access key with a header": lambda: (f"{SECRET}\r\nEvil: yes", SECRET, TOKEN),
    "a token that is no ASCII": lambda: ("AKID", SECRET, f"{TOKEN}é"),
}


@pytest.mark.promise(10)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("case", BAD_KEYS)
@pytest.mark.parametrize("name", ["crt", "http"])
def test_keys_are_checked_where_they_come_in(stub, hides, monkeypatch, tmp_path, case, operation, name):
    call = OPERATIONS[operation]

    def of_function():
        return Credentials(*BAD_KEYS[case]())

    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    for config in (
        settings(name, credentials=of_function, sse_customer_key=None),
        settings(name, credentials=None, sse_customer_key=None),
    ):
        for variable, number in zip(names, range(3), strict=True):
            monkeypatch.setenv(variable, BAD_KEYS[case]()[number])
        with S3Client("us-east-1", endpoint=stub.endpoint, s3client_config=config) as client:
            error = hides(functools.partial(call, client), ConfigurationError)
        assert "it is not shown" in str(error)
    assert stub.requests == []


@pytest.mark.promise(10)
@pytest.mark.parametrize("cut", [slice(None, -1), slice(0), None], ids=["short", "empty", "text"])
@pytest.mark.parametrize("name", ["crt", "http", "memory"])
def test_a_customer_key_that_is_none(stub, hides, cut, name):
    make = KEY.decode if cut is None else functools.partial(KEY.__getitem__, cut)
    config = settings(name, sse_customer_key=make)
    del make
    with S3Client("us-east-1", endpoint=stub.endpoint, s3client_config=config) as client:
        for operation in ("get", "put", "head"):
            hides(functools.partial(OPERATIONS[operation], client), ConfigurationError)
    assert stub.requests == []


@pytest.mark.parametrize("field", ["access_key", "secret_key", "session_token"])
def test_keys_that_are_no_text(hides, field):
    def make(kind):
        Credentials(**{"access_key": "AKID", "secret_key": "s", field: kind(SECRET)})

    for kind in (str.encode, list, lambda text: {"key": text}):
        hides(functools.partial(make, kind), ConfigurationError)


def test_keys_show_themselves_nowhere():
    keys = credentials()
    assert repr([keys, keys.access_key, keys.secret_key, {"t": keys.session_token}]).count("<secret>") == 3
    assert SECRET not in f"{keys} {keys!r} %r" % (keys.secret_key,)
    # But whoever signs with them may use them in every way.
    assert f"AWS4{keys.secret_key}" == "AWS4" + keys.secret_key == f"AWS4{SECRET}"
    assert pickle.loads(pickle.dumps(keys)) == keys

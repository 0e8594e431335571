"""Every source of credentials at the wire: who signs a read, and who signs a HEAD."""

from __future__ import annotations

import functools
import json
import logging
import pickle
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from s3torch.core import Credentials, S3Client, S3ClientConfig
from s3torch.core.errors import NoCredentialsError, S3Error
from s3torch.testing.faults import Fault

ROLE = "arn:aws:iam::123456789012:role/trainer"
LONG = timedelta(hours=6)
# Within the time in which botocore has to refresh, 10 minutes.
SHORT = timedelta(minutes=5)
SECRET = "the-secret-of-this-test"


class Issuer:
    """A server on loopback that gives out keys: as a container agent, and as the metadata of an instance.

    The keys are ``key-1``, ``key-2`` …, each valid for as long as ``lives`` says; its last entry is for all
    that follow.
    """

    def __init__(self):
        self.lives = [LONG]
        self.issued = 0
        self.seen = []
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                issuer._answer(self)

            def do_PUT(self):
                issuer._answer(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def keys(self):
        life = self.lives[min(self.issued, len(self.lives) - 1)]
        self.issued += 1
        return {
            "Code": "Success",
            "AccessKeyId": f"key-{self.issued}",
            "SecretAccessKey": SECRET,
            "Token": f"token-{self.issued}",
            "Expiration": (datetime.now(UTC) + life).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def _answer(self, request):
        self.seen.append((request.command, request.path, dict(request.headers)))
        role = "/latest/meta-data/iam/security-credentials/"
        if request.path == "/latest/api/token":
            body, extra = b"metadata-token", [("x-aws-ec2-metadata-token-ttl-seconds", "21600")]
        elif request.path == role:
            body, extra = b"trainer", []
        else:
            body, extra = json.dumps(self.keys()).encode(), []
        request.send_response(200)
        for name, value in [("Content-Length", str(len(body))), *extra]:
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def issuer():
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes the AWS files."""

    def write(config="", credentials=""):
        for name, text in (("AWS_CONFIG_FILE", config), ("AWS_SHARED_CREDENTIALS_FILE", credentials)):
            path = tmp_path / name
            path.write_text(text)
            monkeypatch.setenv(name, str(path))

    return write


class Signed:
    """A client of one transport before a server that notes who signs."""

    def __init__(self, server, proxy, transport):
        self.proxy = proxy
        self.transport = transport
        self.bucket = server.create_bucket()
        boto = server.client()
        boto.put_object(Bucket=self.bucket, Key="key", Body=b"data")
        boto.close()
        self._clients = []

    def client(self, **settings):
        config = S3ClientConfig(transport=self.transport, max_attempts=2, **settings)
        client = S3Client("us-east-1", endpoint=self.proxy.endpoint, s3client_config=config)
        self._clients.append(client)
        return client

    def signers(self, client=None, **settings):
        """Access key and session token of a read and of a HEAD."""
        client = client or self.client(**settings)
        assert client.get_object(self.bucket, "key").read() == b"data"
        assert client.head_object(self.bucket, "key").size == 4
        return [signer(request) for request in self.proxy.requests(key="key")[-2:]]

    def close(self):
        for client in self._clients:
            client.close()


def signer(request):
    authorization = request.headers.get("authorization", "")
    access_key = authorization.partition("Credential=")[2].split("/")[0] or None
    return access_key, request.headers.get("x-amz-security-token")


every_transport = pytest.mark.parametrize("signed", ["crt", "http"], indirect=True)


@pytest.fixture
def signed(request, moto, fault_proxy):
    signed = Signed(moto, fault_proxy(moto), getattr(request, "param", "crt"))
    yield signed
    signed.close()


@every_transport
def test_nobody(signed, moto):
    boto = moto.client()
    boto.put_bucket_acl(Bucket=signed.bucket, ACL="public-read")
    boto.put_object(Bucket=signed.bucket, Key="key", Body=b"data", ACL="public-read")
    boto.close()
    assert signed.signers(unsigned=True) == [(None, None)] * 2


@every_transport
def test_keys_of_the_environment(signed, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "env-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert signed.signers() == [("env-key", None)] * 2
    monkeypatch.setenv("AWS_SESSION_TOKEN", "env-token")
    assert signed.signers() == [("env-key", "env-token")] * 2


def test_keys_of_a_profile_come_before_the_environment(signed, files, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "env-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    files(credentials=f"[lab]\naws_access_key_id = lab-key\naws_secret_access_key = {SECRET}\n")
    assert signed.signers(profile="lab") == [("lab-key", None)] * 2


def roles(signed):
    """Who asked for a role, and what for."""
    return [signer(request)[0] for request in signed.proxy.requests("POST")]


@pytest.fixture
def sts(signed, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", signed.proxy.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def temporary(found):
    """Checks that both signed with the same temporary keys, and returns the access key."""
    (access_key, token), second = found
    assert (access_key, token) == second
    assert access_key is not None
    assert access_key.startswith("ASIA")
    assert token
    return access_key


def test_a_role_that_is_assumed_with_another_profile(signed, sts, files):
    files(
        config=f"[profile work]\nrole_arn = {ROLE}\nsource_profile = base\n",
        credentials=f"[base]\naws_access_key_id = base-key\naws_secret_access_key = {SECRET}\n",
    )
    temporary(signed.signers(profile="work"))
    assert roles(signed) == ["base-key"]


def test_a_role_that_is_assumed_with_keys_of_the_environment(signed, sts, files, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "env-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    files(config=f"[profile work]\nrole_arn = {ROLE}\ncredential_source = Environment\n")
    temporary(signed.signers(profile="work"))
    assert roles(signed) == ["env-key"]


def test_a_role_that_is_assumed_with_keys_of_the_container(signed, sts, files, issuer, monkeypatch):
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{issuer.url}/keys")
    files(config=f"[profile work]\nrole_arn = {ROLE}\ncredential_source = EcsContainer\n")
    temporary(signed.signers(profile="work"))
    assert roles(signed) == ["key-1"]


def test_a_web_identity(signed, sts, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("a-web-identity")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    temporary(signed.signers())
    assert roles(signed) == [None]


def test_a_container(signed, issuer, monkeypatch):
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{issuer.url}/keys")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "of-the-container")
    assert signed.signers() == [("key-1", "token-1")] * 2
    ((_, path, headers),) = issuer.seen
    assert (path, headers["Authorization"]) == ("/keys", "of-the-container")


def test_an_instance(signed, issuer, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", issuer.url)
    assert signed.signers() == [("key-1", "token-1")] * 2
    # Version 2 of the service: a token first.
    assert [method for method, _, _ in issuer.seen] == ["PUT", "GET", "GET"]


def test_a_process(signed, files, tmp_path):
    script = tmp_path / "keys.py"
    told = {"Version": 1, "AccessKeyId": "process-key", "SecretAccessKey": SECRET, "SessionToken": "t"}
    script.write_text(f"print({json.dumps(json.dumps(told))})")
    files(config=f"[profile made]\ncredential_process = {sys.executable} {script}\n")
    assert signed.signers(profile="made") == [("process-key", "t")] * 2


def test_a_function(signed, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "env-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    found = signed.signers(credentials=lambda: Credentials("function-key", SECRET, "t"))
    assert found == [("function-key", "t")] * 2


@every_transport
def test_keys_that_end_are_renewed_while_a_client_lives(signed, issuer, monkeypatch):
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{issuer.url}/keys")
    issuer.lives = [SHORT, SHORT, LONG]
    client = signed.client()
    signed.signers(client)
    assert signed.signers(client) == [("key-3", "token-3")] * 2
    assert issuer.issued == 3


def test_keys_that_a_listing_is_refused_with_are_renewed_once(signed, issuer, monkeypatch):
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{issuer.url}/keys")
    client = signed.client()
    signed.proxy.add(Fault.expired_token(), method="GET", times=1)
    assert [info.key for page in client.list_objects(signed.bucket) for info in page.object_info] == ["key"]
    assert [signer(request)[0] for request in signed.proxy.requests("GET")] == ["key-1", "key-2"]


@every_transport
def test_keys_that_are_refused_are_renewed_once(signed, issuer, monkeypatch):
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{issuer.url}/keys")
    client = signed.client()
    signed.proxy.add(Fault.expired_token(), method="GET", key="key", times=1)
    assert client.get_object(signed.bucket, "key").read() == b"data"
    assert [signer(request)[0] for request in signed.proxy.requests("GET")] == ["key-1", "key-2"]

    signed.proxy.clear()
    signed.proxy.add(Fault.expired_token(), method="GET", key="key")
    with pytest.raises(S3Error) as caught:
        client.get_object(signed.bucket, "key").read()
    assert caught.value.code == "ExpiredToken"
    assert len(signed.proxy.requests("GET")) == 2


SSO = "sso_start_url = https://corp.awsapps.com/start\nsso_region = us-east-1\n"
BROKEN = {
    "a login that is over": (
        f"[profile p]\n{SSO}sso_account_id = 123456789012\nsso_role_name = trainer\n",
        "aws sso login|SSO",
    ),
    "a process that fails": ("[profile p]\ncredential_process = false\n", "credential|process"),
    "a role without a source": (f"[profile p]\nrole_arn = {ROLE}\n", "source_profile|credential_source"),
    "an empty profile": ("[profile p]\n", "profile p"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_errors_say_what_was_tried(signed, files, tmp_path, monkeypatch, case):
    monkeypatch.setenv("HOME", str(tmp_path))
    config, said = BROKEN[case]
    files(config=config)
    client = signed.client(profile="p")
    with pytest.raises(NoCredentialsError, match=said):
        client.get_object(signed.bucket, "key").read()
    with pytest.raises(NoCredentialsError, match=said):
        client.head_object(signed.bucket, "key")
    assert signed.proxy.requests() == []


def test_a_role_that_is_refused(signed, sts, files):
    files(
        config=f"[profile work]\nrole_arn = {ROLE}\nsource_profile = base\n",
        credentials=f"[base]\naws_access_key_id = base-key\naws_secret_access_key = {SECRET}\n",
    )
    signed.proxy.add(Fault.error(403, "AccessDenied", "no such role for you"), method="POST")
    with pytest.raises(NoCredentialsError, match="AssumeRole"):
        signed.client(profile="work").get_object(signed.bucket, "key").read()


@pytest.mark.promise(10)
@every_transport
def test_a_secret_shows_up_nowhere(signed, issuer, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, logger="s3torch")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{issuer.url}/keys")
    client = signed.client()
    signed.signers(client)
    signed.proxy.add(Fault.error(403, "SignatureDoesNotMatch", "The request signature does not match"))
    shown = [repr(client), repr(client.s3client_config), repr(Credentials("a", SECRET, "token-1"))]
    reader = client.get_object(signed.bucket, "key")
    for ask in (reader.read, functools.partial(client.head_object, signed.bucket, "key")):
        with pytest.raises(S3Error) as caught:
            ask()
        error = caught.value
        shown += [str(error), repr(error), repr(error.__cause__), repr(vars(error))]
        shown.append(pickle.dumps(error).decode("latin-1"))
    shown.append(pickle.dumps(client).decode("latin-1"))
    shown += [record.getMessage() for record in caplog.records if record.name.startswith("s3torch")]
    for text in shown:
        assert SECRET not in text
        assert "token-1" not in text

"""Directory buckets (S3 Express One Zone) at the wire.

SeaweedFS checks the signature of every request, for the service ``s3express`` too, but begins no sessions:
the proxy before it answers CreateSession with keys that SeaweedFS knows.
"""

from __future__ import annotations

import pickle
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from s3torch.core import Credentials, S3Client, S3ClientConfig
from s3torch.core.errors import AccessDeniedError, ConfigurationError, S3Error, ThrottledError
from s3torch.testing.faults import Fault

HOUR = timedelta(hours=1)

_buckets = {}


def session_answer(access_key, secret_key, *, token="session-1", life=HOUR):
    expiration = (datetime.now(UTC) + life).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Fault.answer(
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<CreateSessionResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Credentials>'
        f"<SessionToken>{token}</SessionToken><SecretAccessKey>{secret_key}</SecretAccessKey>"
        f"<AccessKeyId>{access_key}</AccessKeyId><Expiration>{expiration}</Expiration>"
        "</Credentials></CreateSessionResult>"
    )


def asks_for_session(request):
    return "session" in request.query


class Zone:
    """A directory bucket behind a proxy that counts, and clients whose own keys SeaweedFS does not know."""

    def __init__(self, server, proxy, transport):
        self.proxy = proxy
        self.server = server
        self.transport = transport
        # One for all tests, because SeaweedFS gives every bucket volumes of its own.
        if server.endpoint not in _buckets:
            name = f"s3torch-{uuid.uuid4().hex[:8]}--use1-az4--x-s3"
            _buckets[server.endpoint] = server.create_bucket(name)
        self.bucket = _buckets[server.endpoint]
        self.boto = server.client()
        self._clients = []

    def begin(self, *, token="session-1", life=HOUR, identity=None, **when):
        """Lets the proxy answer CreateSession with the keys of somebody whom SeaweedFS knows."""
        who = identity or self.server
        fault = session_answer(who.access_key, who.secret_key, token=token, life=life)
        return self.proxy.add(fault, match=asks_for_session, **when)

    def client(self, **settings):
        # Requests are counted, also those of transports that ask for the checksum with one of its own.
        config = S3ClientConfig(transport=self.transport, max_attempts=2, verify="off", **settings)
        client = S3Client("us-east-1", endpoint=self.proxy.endpoint, s3client_config=config)
        self._clients.append(client)
        return client

    @property
    def sessions(self):
        return [request for request in self.proxy.requests() if asks_for_session(request)]

    @property
    def others(self):
        return [request for request in self.proxy.requests() if not asks_for_session(request)]

    def close(self):
        for client in self._clients:
            client.close()
        for entry in self.boto.list_objects_v2(Bucket=self.bucket).get("Contents", []):
            self.boto.delete_object(Bucket=self.bucket, Key=entry["Key"])
        self.boto.close()


@pytest.fixture(params=["crt", "http"])
def zone(request, seaweedfs, fault_proxy, monkeypatch):
    # SeaweedFS refuses these, so whatever works was signed with the keys of a session.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "own-access-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "own-secret-key")
    zone = Zone(seaweedfs, fault_proxy(seaweedfs), request.param)
    yield zone
    zone.close()


def signer(request):
    """Access key and service of a signature."""
    scope = request.headers["authorization"].partition("Credential=")[2].split(",")[0].split("/")
    return scope[0], scope[3]


def test_all_requests_use_one_session(zone):
    zone.begin()
    client = zone.client()
    with client.put_object(zone.bucket, "folder/key") as writer:
        writer.write(b"in one zone")
    assert client.get_object(zone.bucket, "folder/key").read() == b"in one zone"
    assert client.head_object(zone.bucket, "folder/key").size == 11
    pages = client.list_objects(zone.bucket, "folder/")
    assert [info.key for page in pages for info in page.object_info] == ["folder/key"]
    client.delete_object(zone.bucket, "folder/key")

    assert len(zone.sessions) == 1
    assert signer(zone.sessions[0]) == ("own-access-key", "s3express")
    assert [request.method for request in zone.others] == ["PUT", "GET", "HEAD", "GET", "DELETE"]
    for request in zone.others:
        assert signer(request) == (zone.server.access_key, "s3express")
        assert request.headers["x-amz-s3session-token"] == "session-1"
        assert "x-amz-s3session-token" in request.headers["authorization"]
        assert "x-amz-security-token" not in request.headers


def test_large_objects(zone):
    zone.begin()
    client = zone.client(part_size=5 * 2**20)
    content = bytes(range(256)) * 2**15 * 2
    with client.put_object(zone.bucket, "large") as writer:
        writer.write(content)
    assert client.get_object(zone.bucket, "large").read() == content
    assert len(zone.sessions) == 1
    assert len(zone.others) > 4


def test_threads_share_a_session(zone):
    zone.boto.put_object(Bucket=zone.bucket, Key="key", Body=b"data")
    zone.begin()
    client = zone.client()
    together = threading.Barrier(8)

    def read(_):
        together.wait()
        return client.get_object(zone.bucket, "key").read()

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read, range(8))) == [b"data"] * 8
    assert len(zone.sessions) == 1


def test_a_session_is_renewed_before_it_ends(zone):
    zone.boto.put_object(Bucket=zone.bucket, Key="key", Body=b"data")
    zone.begin(token="short", life=timedelta(seconds=40), times=1)
    zone.begin(token="long", skip=1)
    client = zone.client()
    for _ in range(3):
        assert client.get_object(zone.bucket, "key").read() == b"data"
    assert len(zone.sessions) == 2
    assert zone.others[-1].headers["x-amz-s3session-token"] == "long"


def test_a_session_that_cannot_be_renewed_in_advance_goes_on(zone):
    zone.boto.put_object(Bucket=zone.bucket, Key="key", Body=b"data")
    zone.proxy.add(Fault.error(403, "AccessDenied"), match=asks_for_session)
    zone.begin(life=timedelta(seconds=40), times=1)
    client = zone.client()
    for _ in range(3):
        assert client.get_object(zone.bucket, "key").read() == b"data"
    assert len(zone.sessions) == 2


def test_a_session_that_was_refused_is_renewed_once(zone):
    zone.boto.put_object(Bucket=zone.bucket, Key="key", Body=b"data")
    zone.begin(token="refused", times=1)
    zone.begin(token="another", skip=1)
    zone.proxy.add(Fault.expired_token(), method="GET", key="key", times=1)
    client = zone.client()
    assert client.get_object(zone.bucket, "key").read() == b"data"
    tokens = [request.headers["x-amz-s3session-token"] for request in zone.others]
    assert tokens == ["refused", "another"]


def test_the_keys_of_a_session_have_to_fit(zone):
    """The proof that SeaweedFS checks these signatures."""
    zone.boto.put_object(Bucket=zone.bucket, Key="key", Body=b"data")
    fault = session_answer(zone.server.access_key, "a wrong secret")
    zone.proxy.add(fault, match=asks_for_session)
    with pytest.raises(AccessDeniedError) as caught:
        zone.client().get_object(zone.bucket, "key").read()
    assert caught.value.code == "SignatureDoesNotMatch"


def test_a_refused_session_is_told_with_its_operation(zone):
    zone.proxy.add(Fault.error(403, "AccessDenied", "not you"), match=asks_for_session)
    client = zone.client()
    with pytest.raises(AccessDeniedError, match="not you") as caught:
        client.get_object(zone.bucket, "key").read()
    assert (caught.value.operation, caught.value.bucket) == ("CreateSession", zone.bucket)
    assert "own-secret-key" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        # So do moto and others, which know no sessions.
        "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
        "<CreateSessionResult><Credentials/></CreateSessionResult>",
        "<CreateSessionResult><Credentials><AccessKeyId>A</AccessKeyId></Credentials></CreateSessionResult>",
        "<html><body>Please log in</body></html>",
    ],
    ids=["a listing", "nothing", "half", "a web page"],
)
def test_a_session_without_keys_is_an_error(zone, answer):
    zone.proxy.add(Fault.answer(answer), match=asks_for_session)
    with pytest.raises(S3Error) as caught:
        zone.client().get_object(zone.bucket, "key").read()
    assert (caught.value.operation, caught.value.bucket) == ("CreateSession", zone.bucket)


def test_a_bucket_that_is_busy_is_asked_for_a_session_as_often_as_allowed(zone):
    zone.proxy.add(Fault.slow_down(), match=asks_for_session)
    with pytest.raises(ThrottledError) as caught:
        zone.client().get_object(zone.bucket, "key").read()
    assert caught.value.operation == "CreateSession"
    assert len(zone.sessions) == 2


def test_own_keys_that_have_ended_are_renewed_for_a_session(zone):
    zone.boto.put_object(Bucket=zone.bucket, Key="key", Body=b"data")
    zone.begin()
    zone.proxy.add(Fault.expired_token(), match=asks_for_session, times=1)
    names = iter(["ended", "fresh"])
    client = zone.client(credentials=lambda: Credentials(next(names), "secret"))
    assert client.get_object(zone.bucket, "key").read() == b"data"
    assert [signer(request)[0] for request in zone.sessions] == ["ended", "fresh"]


def test_sessions_can_be_switched_off(zone, monkeypatch):
    monkeypatch.setenv("AWS_S3_DISABLE_EXPRESS_SESSION_AUTH", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", zone.server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", zone.server.secret_key)
    zone.boto.put_object(Bucket=zone.bucket, Key="key", Body=b"data")
    client = zone.client()
    assert client.get_object(zone.bucket, "key").read() == b"data"
    assert client.head_object(zone.bucket, "key").size == 4
    assert zone.sessions == []
    for request in zone.others:
        assert signer(request) == (zone.server.access_key, "s3express")
        assert "x-amz-s3session-token" not in request.headers


@pytest.mark.promise(10)
def test_a_session_does_not_travel(zone):
    zone.boto.put_object(Bucket=zone.bucket, Key="key", Body=b"data")
    zone.begin(token="of-this-process")
    client = zone.client()
    client.get_object(zone.bucket, "key").read()
    travelling = pickle.dumps(client)
    for secret in (zone.server.secret_key, "of-this-process", "own-secret-key"):
        assert secret.encode() not in travelling
    copy = pickle.loads(travelling)
    assert copy.get_object(zone.bucket, "key").read() == b"data"
    copy.close()
    assert len(zone.sessions) == 2


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        ({"prefix": "folder/na"}, "folder/"),
        ({"prefix": "na"}, "must end in '/'"),
        ({"delimiter": "-"}, "delimiter"),
    ],
    ids=["within a folder", "at the root", "delimiter"],
)
def test_listings_that_cannot_be(zone, listing, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        list(zone.client().list_objects(zone.bucket, **listing))
    assert caught.value.bucket == zone.bucket
    assert zone.proxy.requests() == []


def test_a_listing_that_cannot_begin_in_the_middle(zone):
    listing = zone.client().list_objects(zone.bucket, "folder/", start_after="folder/key")
    with pytest.raises(ConfigurationError, match="no order"):
        list(listing)
    assert zone.proxy.requests() == []

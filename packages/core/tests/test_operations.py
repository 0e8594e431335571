"""What a client does with many objects at a time, at the wire and in memory."""

from __future__ import annotations

import pickle
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.errors import (
    AccessDeniedError,
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    S3Error,
    ServerError,
)
from s3torch.core.models import PutOptions
from s3torch.core.operations._copying import CopyJob, copy_ranges
from s3torch.core.operations._globs import Glob
from s3torch.core.operations._listing import _WholeFolders
from s3torch.core.ranges import GIB, MAX_PARTS, MIB, MIN_PART_SIZE
from s3torch.testing.faults import Fault
from s3torch.testing.transport_tests import TransportCalls

LARGE = 11 * MIB
PARTS = PutOptions(
    content_type="text/x-test", metadata={"a": "1"}, tags={"t": "x y"}, cache_control="max-age=5"
)


def keys(infos):
    return [info.key for info in infos]


# Deleting.


def test_many_keys_are_deleted_1000_at_a_time(wire):
    client = wire.client()
    assert client.delete_objects(wire.bucket, (f"none/{number}" for number in range(2001))) == []
    assert wire.methods == ["POST"] * 3


def is_batch(request):
    return "delete" in request.query


NO_BATCHES = [
    Fault.error(400, "MissingContentMD5"),
    Fault.error(501, "NotImplemented"),
    Fault.error(405, "MethodNotAllowed"),
    Fault.answer("<html><body>Please log in</body></html>"),
    Fault.answer(""),
    Fault.answer("<DeleteResult><Err"),
]


@pytest.mark.parametrize("fault", NO_BATCHES, ids=["400", "501", "405", "page", "empty", "half"])
def test_a_store_that_deletes_one_by_one(wire, caplog, monkeypatch, fault):
    monkeypatch.setattr("s3torch.core.operations._bulk._KEYS_PER_REQUEST", 5)
    names = [f"p.{number}" for number in range(20)]
    for key in (*names, "q"):
        wire.put(key)
    wire.proxy.add(fault, method="POST", match=is_batch)
    deletion = wire.client(max_attempts=1).delete_prefix(wire.bucket, "p.")
    assert (deletion.deleted, deletion.failures) == (20, [])
    methods = wire.methods
    assert (methods.count("GET"), methods.count("DELETE")) == (1, 20)
    assert 1 <= methods.count("POST") <= 4
    assert keys(wire.client().walk(wire.bucket)) == ["q"]
    assert ["one by one" in record.message for record in caplog.records] == [True]


def test_what_is_not_deleted_one_by_one_is_told(wire):
    for key in ("a", "b", "c"):
        wire.put(key)
    wire.proxy.add(Fault.error(501, "NotImplemented"), method="POST", match=is_batch)
    denied = wire.proxy.add(Fault.error(403, "AccessDenied"), method="DELETE", match=lambda r: r.key == "b")
    (failure,) = wire.client().delete_objects(wire.bucket, ["a", "b", "c"])
    assert (failure.key, failure.code, denied.hits) == ("b", "AccessDenied", 1)
    assert keys(wire.client().walk(wire.bucket)) == ["b"]
    wire.proxy.add(Fault.error(500, "InternalError"), method="DELETE")
    with pytest.raises(ServerError):
        wire.client(max_attempts=1).delete_objects(wire.bucket, ["b"])


def test_a_refusal_to_delete_many_is_an_error(wire):
    wire.put("a")
    wire.proxy.add(Fault.error(403, "AccessDenied"), method="POST", match=is_batch)
    with pytest.raises(AccessDeniedError):
        wire.client().delete_objects(wire.bucket, ["a"])
    assert wire.get("a") == b"data"


@pytest.mark.promise(9)
def test_all_below_a_prefix_is_deleted(wire):
    # No folders: SeaweedFS keeps empty ones of objects that were deleted together.
    for key in ("p.1", "p.2.3", "p.ü +", "pq", "q"):
        wire.put(key)
    client = wire.client()
    deletion = client.delete_prefix(wire.bucket, "p.")
    assert (deletion.deleted, deletion.failures) == (3, [])
    assert wire.methods == ["GET", "POST"]
    assert sorted(keys(client.walk(wire.bucket))) == ["pq", "q"]
    assert client.delete_prefix(wire.bucket, "p.").deleted == 0


@pytest.mark.promise(9)
@pytest.mark.parametrize("prefix", ["", None, b"p"])
def test_a_whole_bucket_is_not_deleted_by_accident(client, store, prefix):
    store.put("bucket", "k", b"")
    with pytest.raises(ConfigurationError, match="prefix"):
        client.delete_prefix("bucket", prefix)
    assert client.exists("bucket", "k")


def test_a_long_prefix_is_deleted_while_it_is_listed(client, store):
    for number in range(2500):
        store.put("bucket", f"p/{number}", b"")
    store.put("bucket", "q", b"")
    assert client.delete_prefix("bucket", "p/").deleted == 2500
    assert keys(client.walk("bucket")) == ["q"]


@pytest.fixture
def versioned(store, client):
    store.create_bucket("versioned", keeps_versions=True)
    return client


def put(client, bucket, key, data=b"data", **options):
    with client.put_object(bucket, key, options=PutOptions(**options)) as writer:
        writer.write(data)


def test_versions_are_listed_and_deleted(versioned):
    for data in (b"1", b"22"):
        put(versioned, "versioned", "k", data)
    versioned.delete_object("versioned", "k")
    listing = versioned.list_object_versions("versioned", max_keys=2)
    first = next(listing)
    (second,) = pickle.loads(pickle.dumps(listing))
    told = [*first.versions, *second.versions]
    assert [(one.size, one.is_delete_marker) for one in told] == [(0, True), (2, False), (1, False)]
    assert not versioned.exists("versioned", "k")
    assert versioned.exists("versioned", "k", version_id=told[1].version_id)
    assert versioned.get_object("versioned", "k", version_id=told[2].version_id).read() == b"1"
    versioned.copy_object("versioned", "k", "versioned", "c", version_id=told[2].version_id)
    assert versioned.get_object("versioned", "c").read() == b"1"
    assert versioned.delete_objects("versioned", [told[0], ("k", told[1].version_id)]) == []
    assert versioned.get_object("versioned", "k").read() == b"1"
    put(versioned, "versioned", "k", b"333")
    assert versioned.delete_prefix("versioned", "k", versions=True).deleted == 2
    assert [one.key for page in versioned.list_object_versions("versioned") for one in page.versions] == ["c"]


@pytest.mark.parametrize("key", [5, None, ("k",), ("k", None), ("k", "v", "w"), b"k"])
def test_what_is_no_key_is_not_deleted(client, key):
    with pytest.raises(ConfigurationError, match="key"):
        client.delete_objects("bucket", [key])


# Copying.


@given(st.integers(1, 48 * 1024 * GIB), st.sampled_from([MIN_PART_SIZE, 128 * MIB]))
def test_the_parts_of_a_copy(size, part_size):
    ranges = copy_ranges(size, part_size=part_size)
    assert 1 <= len(ranges) <= MAX_PARTS
    assert (ranges[0].start, ranges[-1].stop) == (0, size)
    assert all(one.stop == two.start for one, two in pairwise(ranges))
    assert all(len(one) >= part_size for one in ranges[:-1])
    assert all(len(one) <= 5 * GIB for one in ranges)


def test_a_copy_is_one_request(wire):
    wire.put("a b", b"data")
    client = wire.client()
    client.copy_object(wire.bucket, "a b", wire.bucket, "k")
    assert wire.methods == ["PUT"]
    assert wire.get("k") == b"data"


def job(wire, **how):
    """A copy that calls large what this test calls large."""
    return CopyJob(
        src_bucket=wire.bucket,
        src_key="from ü+",
        dst_bucket=wire.bucket,
        dst_key="to",
        limit=10 * MIB,
        part_size=MIN_PART_SIZE,
        **{"options": PutOptions(), **how},
    )


@pytest.fixture
def large(wire):
    """A client, and an object that one request does not copy."""
    client = wire.client()
    put_options = PARTS
    with client.put_object(wire.bucket, "from ü+", options=put_options) as writer:
        writer.write(wire.content(LARGE))
    wire.proxy.clear()
    return client


def test_a_large_object_is_copied_in_parts(wire, large):
    job(wire, size=LARGE, options=PutOptions(storage_class="STANDARD_IA")).run(large._handle.get())
    # Head and tags of the source, three parts, and an upload begun and completed.
    assert sorted(wire.methods) == ["GET", "HEAD", "POST", "POST", "PUT", "PUT", "PUT"]
    assert wire.get("to") == wire.content(LARGE)
    head = large.head_object(wire.bucket, "to")
    assert (head.content_type, head.metadata, head.cache_control) == ("text/x-test", {"a": "1"}, "max-age=5")
    assert head.storage_class == "STANDARD_IA"
    assert wire.direct.get_object_tagging(Bucket=wire.bucket, Key="to")["TagSet"] == [
        {"Key": "t", "Value": "x y"}
    ]
    assert wire.uploads() == []


def test_a_copy_whose_success_was_not_heard_of(wire, large):
    rule = wire.proxy.add(
        Fault.drop(side="response"), method="POST", match=lambda request: "uploadId" in request.query, times=1
    )
    job(wire, size=LARGE).run(large._handle.get())
    assert rule.hits == 1
    assert wire.get("to") == wire.content(LARGE)
    assert wire.uploads() == []


def test_a_refusal_tells_that_an_object_is_too_large(wire, large):
    wire.proxy.add(Fault.error(400, "InvalidRequest"), method="PUT", times=1)
    job(wire).run(large._handle.get())
    assert wire.get("to") == wire.content(LARGE)
    wire.put("from ü+", b"small")
    wire.proxy.add(Fault.error(400, "InvalidRequest"), method="PUT", times=1)
    with pytest.raises(S3Error) as caught:
        job(wire).run(large._handle.get())
    assert caught.value.code == "InvalidRequest"


def test_a_copy_whose_source_is_replaced_leaves_nothing(wire, large):
    wire.put("to", b"old")
    info = large.head_object(wire.bucket, "from ü+")
    wire.put("from ü+", wire.content(LARGE)[::-1])
    with pytest.raises(PreconditionFailedError):
        job(wire, size=LARGE, etag=info.etag).run(large._handle.get())
    assert wire.get("to") == b"old"
    assert wire.uploads() == []


@pytest.mark.promise(7)
def test_a_part_that_cannot_be_copied_fails_the_copy(wire, large):
    wire.put("to", b"old")
    wire.proxy.add(Fault.error(403, "AccessDenied"), method="PUT", skip=1, times=1)
    with pytest.raises(AccessDeniedError):
        job(wire, size=LARGE).run(large._handle.get())
    assert wire.get("to") == b"old"
    assert wire.uploads() == []


def test_tags_that_may_not_be_read_are_left(wire, large, caplog):
    wire.proxy.add(Fault.error(403, "AccessDenied"), method="GET", times=1)
    job(wire, size=LARGE).run(large._handle.get())
    assert "without tags" in caplog.text
    assert wire.get("to") == wire.content(LARGE)


def test_object_info_pins_a_copy(client, store):
    store.put("bucket", "a", b"first")
    (page,) = client.list_objects("bucket")
    client.copy_object("bucket", "a", "bucket", "b", object_info=page.object_info[0])
    store.put("bucket", "a", b"second")
    with pytest.raises(PreconditionFailedError):
        client.copy_object("bucket", "a", "bucket", "b", object_info=page.object_info[0])
    assert store.get("bucket", "b").data == b"first"


def test_copies_are_kept_as_uploads_are(store):
    defaults = PutOptions(storage_class="STANDARD_IA", server_side_encryption="AES256", metadata={"d": "1"})
    config = S3ClientConfig(transport="memory", endpoint=store.endpoint, put_options=defaults)
    store.put("bucket", "a", b"data", options=PutOptions(metadata={"m": "1"}))
    with S3Client("us-east-1", s3client_config=config) as client:
        client.copy_object("bucket", "a", "bucket", "b")
        head = client.head_object("bucket", "b")
    assert (head.storage_class, head.metadata) == ("STANDARD_IA", {"m": "1"})
    assert head.server_side_encryption == "AES256"


def test_copies_with_a_key_of_the_customer(wire):
    def key():
        return bytes(range(32))

    client = wire.client(sse_customer_key=key)
    with client.put_object(wire.bucket, "from ü+") as writer:
        writer.write(wire.content(LARGE))
    client.copy_object(wire.bucket, "from ü+", wire.bucket, "one")
    assert client.get_object(wire.bucket, "one").read() == wire.content(LARGE)
    with pytest.raises(S3Error):
        wire.client().get_object(wire.bucket, "one").read()


# Uploads that nobody completes.


@pytest.mark.promise(9)
def test_old_uploads_are_aborted(wire):
    client = wire.client()
    for key in ("p/1", "p/2 ü", "q"):
        wire.direct.create_multipart_upload(Bucket=wire.bucket, Key=key)
    assert client.abort_stale_uploads(wire.bucket, older_than=timedelta(hours=1)) == []
    assert len(list(client.list_multipart_uploads(wire.bucket))) == 3
    aborted = client.abort_stale_uploads(wire.bucket, "p/", older_than=timedelta())
    assert sorted(one.key for one in aborted) == ["p/1", "p/2 ü"]
    assert [one["Key"] for one in wire.uploads()] == ["q"]


def test_an_upload_that_cannot_be_aborted_does_not_keep_the_others(wire):
    client = wire.client()
    for key in ("a", "b", "c"):
        wire.direct.create_multipart_upload(Bucket=wire.bucket, Key=key)
    wire.proxy.add(Fault.error(403, "AccessDenied"), method="DELETE", times=1)
    with pytest.raises(AccessDeniedError) as caught:
        client.abort_stale_uploads(wire.bucket, older_than=timedelta())
    assert "2 uploads were aborted, 1 could not be" in caught.value.__notes__[0]
    assert len(wire.uploads()) == 1


@pytest.mark.parametrize("age", [timedelta(-1), 3600, None])
def test_an_age_is_a_timedelta(client, age):
    with pytest.raises(ConfigurationError, match="older_than"):
        client.abort_stale_uploads("bucket", older_than=age)


# Finding.


def test_walk_and_glob(client, store):
    sizes = {"train/a.tar": 5, "train/b/c.tar": 50, "train/b/d.txt": 500, "val/e.tar": 0}
    for key, size in sizes.items():
        store.put("bucket", key, bytes(size))
    assert keys(client.walk("bucket")) == sorted(sizes)
    assert keys(client.walk("bucket", "train/", suffix=".tar")) == ["train/a.tar", "train/b/c.tar"]
    assert keys(client.walk("bucket", suffix=(".txt", "e.tar"))) == ["train/b/d.txt", "val/e.tar"]
    assert keys(client.walk("bucket", min_size=5, max_size=50)) == ["train/a.tar", "train/b/c.tar"]
    assert keys(client.walk("bucket", where=lambda info: info.size == 500)) == ["train/b/d.txt"]
    assert keys(client.glob("bucket", "{train,val}/**/*.tar", min_size=1)) == ["train/a.tar", "train/b/c.tar"]
    assert keys(client.glob("bucket", "train/*")) == ["train/a.tar"]
    assert keys(client.glob("bucket", "none/*")) == []
    assert sorted(keys(client.glob("bucket", "**", ordered=False))) == sorted(sizes)


def test_bad_questions_are_refused_at_once(client):
    for call in (
        lambda: client.walk(""),
        lambda: client.walk("bucket", requests=0),
        lambda: client.walk("bucket", requests=1000),
        lambda: client.walk("bucket", suffix=5),
        lambda: client.glob("bucket", "{0,1,2,3,4,5,6,7,8,9}" * 4),
    ):
        with pytest.raises(ConfigurationError):
            call()
    with pytest.raises(NotFoundError):
        list(client.walk("no-bucket"))


def test_directory_buckets_are_asked_for_whole_folders(client, store):
    bucket = "base--use1-az4--x-s3"
    store.create_bucket(bucket)
    for number in range(1200):
        store.put(bucket, f"a/b{number % 3}/{number}", b"")
    assert len(keys(client.glob(bucket, "a/b1/*"))) == 400
    assert len(keys(client.glob(bucket, "a/b[12]/*"))) == 800
    assert len(keys(client.walk(bucket, "a/b1"))) == 400
    folders = _WholeFolders(Glob("a/*/x-*.pt"))
    assert folders.below("a/b/") == ["a/b/"]
    assert folders.below("c/") == []
    assert not folders.prunes("a/")


def test_many_pages_of_a_real_server(seaweedfs, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key)
    bucket = seaweedfs.create_bucket()
    names = {f"{folder}/{number % 7}/{number:04}" for folder in ("a", "b b", "ü") for number in range(400)}
    with S3Client("us-east-1", endpoint=seaweedfs.endpoint) as client:
        transport = TransportCalls(client._handle.get().transport)
        started = [transport.put(bucket, name, memoryview(b"")) for name in names]
        for transfer in started:
            transfer.result(30)
        for ordered in (True, False):
            found = keys(client.walk(bucket, ordered=ordered))
            assert len(found) == len(names)
            assert set(found) == names
        assert len(keys(client.glob(bucket, "{a,ü}/[0-2]/*5"))) == len(
            [name for name in names if name[0] in "aü" and name.split("/")[1] in "012" and name[-1] == "5"]
        )
        assert client.delete_prefix(bucket, "a").deleted == 400
        assert set(keys(client.walk(bucket))) == {name for name in names if name[0] != "a"}
        assert client.delete_prefix(bucket, "b b/").deleted + client.delete_prefix(bucket, "ü").deleted == 800
        assert keys(client.walk(bucket)) == []

"""Names, listings, directories, copies and removal."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

from s3torch.core import ConfigurationError, Credentials, PutOptions, S3ClientConfig, S3Error
from s3torch.fsspec import DirectoryNotEmptyError, ObjectExistsError, S3FileSystem
from s3torch.fsspec._options import ClientOptions


@pytest.fixture
def tree(fs, root):
    for name in ("a.txt", "d/b.txt", "d/e/c.txt", "d.txt", "z"):
        fs.pipe_file(f"{root}/{name}", name.encode())
    return root


def names(root, entries):
    return sorted(entry.removeprefix(f"{root}/") for entry in entries)


@pytest.mark.parametrize(
    "path",
    ["s3://bucket/a/b", "s3a://bucket/a/b", "bucket/a/b/", Path("bucket/a/b"), Path("s3://bucket/a/b")],
)
def test_paths(path):
    assert S3FileSystem._strip_protocol(path) == "bucket/a/b"
    assert S3FileSystem._parent(path) == "bucket/a"


def test_fsspec_takes_this_class_for_s3():
    assert fsspec.get_filesystem_class("s3") is S3FileSystem
    assert fsspec.get_filesystem_class("s3a") is S3FileSystem


def test_ls(fs, tree):
    entries = {entry["name"].removeprefix(f"{tree}/"): entry for entry in fs.ls(f"s3://{tree}/")}
    assert sorted(entries) == ["a.txt", "d", "d.txt", "z"]
    assert entries["d"]["type"] == "directory"
    assert entries["d"]["size"] == 0
    assert entries["a.txt"]["type"] == "file"
    assert entries["a.txt"]["size"] == 5
    assert entries["a.txt"]["ETag"].startswith('"')
    assert datetime.now(UTC) - entries["a.txt"]["LastModified"] < timedelta(minutes=5)
    assert names(tree, fs.ls(tree, detail=False)) == ["a.txt", "d", "d.txt", "z"]
    assert fs.ls(f"{tree}/a.txt", detail=False) == [f"{tree}/a.txt"]
    with pytest.raises(FileNotFoundError):
        fs.ls(f"{tree}/none")


def test_info_exists_isdir_isfile(fs, tree):
    assert fs.info(f"{tree}/a.txt")["size"] == 5
    assert fs.info(f"{tree}/d")["type"] == "directory"
    assert fs.info(tree.partition("/")[0])["type"] == "directory"
    for path, is_file, is_directory in (
        (f"{tree}/a.txt", True, False),
        (f"{tree}/d", False, True),
        (f"{tree}/none", False, False),
        (tree.partition("/")[0], False, True),
        ("no-such-bucket", False, False),
        ("", False, True),
    ):
        assert fs.isfile(path) is is_file
        assert fs.isdir(path) is is_directory
        assert fs.exists(path) is (is_file or is_directory)
    with pytest.raises(FileNotFoundError, match="none"):
        fs.info(f"{tree}/none")


def test_find_walk_glob_du(fs, tree):
    assert names(tree, fs.find(tree)) == ["a.txt", "d.txt", "d/b.txt", "d/e/c.txt", "z"]
    assert names(tree, fs.find(tree, maxdepth=1)) == ["a.txt", "d.txt", "z"]
    assert names(tree, fs.find(f"{tree}/d", withdirs=True)) == ["d", "d/b.txt", "d/e", "d/e/c.txt"]
    assert fs.find(f"{tree}/a.txt") == [f"{tree}/a.txt"]
    assert fs.find(f"{tree}/none") == []
    assert fs.find(tree, detail=True)[f"{tree}/z"]["size"] == 1
    assert names(tree, fs.glob(f"{tree}/*.txt")) == ["a.txt", "d.txt"]
    assert names(tree, fs.glob(f"{tree}/**/*.txt")) == ["a.txt", "d.txt", "d/b.txt", "d/e/c.txt"]
    assert [(sorted(dirs), sorted(files)) for _, dirs, files in fs.walk(tree)] == [
        (["d"], ["a.txt", "d.txt", "z"]),
        (["e"], ["b.txt"]),
        ([], ["c.txt"]),
    ]
    assert fs.du(tree) == sum(len(name) for name in ("a.txt", "d/b.txt", "d/e/c.txt", "d.txt", "z"))


def test_directories_that_were_made(fs, root, options):
    assert not fs.isdir(f"{root}/x/y")
    fs.makedirs(f"s3://{root}/x/y")
    fs.makedirs(f"{root}/x/y", exist_ok=True)
    assert fs.isdir(f"{root}/x/y")
    assert fs.isdir(f"{root}/x")
    assert fs.ls(f"{root}/x", detail=False) == [f"{root}/x/y"]
    with pytest.raises(ObjectExistsError):
        fs.mkdir(f"{root}/x/y")
    found = []
    # fsspec makes another instance in another thread.
    thread = threading.Thread(
        target=lambda: found.append(fsspec.filesystem("s3", **options).isdir(f"{root}/x/y"))
    )
    thread.start()
    thread.join()
    assert found == [True]
    fs.pipe_file(f"{root}/x/y/file", b"")
    with pytest.raises(DirectoryNotEmptyError):
        fs.rmdir(f"{root}/x/y")
    fs.rm(f"{root}/x", recursive=True)
    assert not fs.isdir(f"{root}/x")


def test_copy_and_move(fs, tree):
    fs.copy(f"{tree}/a.txt", f"{tree}/copy of 50% ü+.txt")
    assert fs.cat_file(f"{tree}/copy of 50% ü+.txt") == b"a.txt"
    fs.mv(f"{tree}/z", f"{tree}/moved")
    assert not fs.exists(f"{tree}/z")
    fs.mv(f"{tree}/d", f"{tree}/n", recursive=True)
    assert names(tree, fs.find(f"{tree}/n")) == ["n/b.txt", "n/e/c.txt"]
    assert not fs.exists(f"{tree}/d")
    with pytest.raises(FileNotFoundError):
        fs.cp_file(f"{tree}/none", f"{tree}/other")


def test_rm(fs, tree):
    fs.rm(f"{tree}/a.txt")
    fs.rm([f"{tree}/d.txt", f"{tree}/z"])
    assert names(tree, fs.find(tree)) == ["d/b.txt", "d/e/c.txt"]
    fs.rm(f"{tree}/d/*.txt")
    assert names(tree, fs.find(tree)) == ["d/e/c.txt"]
    fs.rm(tree, recursive=True)
    assert fs.find(tree) == []
    with pytest.raises(FileNotFoundError):
        fs.rm(tree, recursive=True)


def test_rm_of_more_than_a_page(fs, root):
    fs.pipe_file(f"{root}/many/0", b"")
    bucket, _, prefix = root.partition("/")
    for number in range(1, 1003):
        fs.client.copy_object(bucket, f"{prefix}/many/0", bucket, f"{prefix}/many/{number}")
    fs.pipe_file(f"{root}/many-more", b"")
    assert len(fs.find(f"{root}/many")) == 1003
    fs.rm(f"{root}/many", recursive=True)
    assert fs.find(root) == [f"{root}/many-more"]


def test_touch_modified_ukey_checksum(fs, root):
    fs.touch(f"{root}/a")
    assert fs.size(f"{root}/a") == 0
    assert fs.created(f"{root}/a") == fs.modified(f"{root}/a")
    before = fs.ukey(f"{root}/a"), fs.checksum(f"{root}/a")
    fs.pipe_file(f"{root}/a", b"1")
    assert fs.ukey(f"{root}/a") != before[0]
    assert fs.checksum(f"{root}/a") != before[1]
    with pytest.raises(IsADirectoryError):
        fs.modified(root)


def test_listings_are_fresh_by_default(fs, options, root):
    fs.pipe_file(f"{root}/a", b"")
    assert names(root, fs.ls(root, detail=False)) == ["a"]
    fs.client.copy_object(*f"{root}/a".split("/", 1), *f"{root}/b".split("/", 1))
    assert names(root, fs.ls(root, detail=False)) == ["a", "b"]


def test_cached_listings_know_of_what_this_process_does(options, root):
    fs = S3FileSystem(use_listings_cache=True, **options)
    fs.pipe_file(f"{root}/d/a", b"")
    assert names(root, fs.ls(f"{root}/d", detail=False)) == ["d/a"]
    fs.client.copy_object(*f"{root}/d/a".split("/", 1), *f"{root}/d/b".split("/", 1))
    assert names(root, fs.ls(f"{root}/d", detail=False)) == ["d/a"]
    assert fs.info(f"{root}/d/a")["size"] == 0
    assert names(root, fs.ls(f"{root}/d", detail=False, refresh=True)) == ["d/a", "d/b"]
    fs.pipe_file(f"{root}/d/c", b"")
    assert names(root, fs.ls(f"{root}/d", detail=False)) == ["d/a", "d/b", "d/c"]
    fs.rm(f"{root}/d/a")
    assert names(root, fs.ls(f"{root}/d", detail=False)) == ["d/b", "d/c"]
    fs.ls(f"{root}/d")
    fs.rm(root, recursive=True)
    assert not fs.isdir(f"{root}/d")


@pytest.mark.promise(5)
def test_pickled_filesystems_and_files(fs, root):
    fs.pipe_file(f"{root}/a", b"abc")
    other = pickle.loads(pickle.dumps(fs))
    assert other == fs
    assert other.cat_file(f"{root}/a") == b"abc"
    assert pickle.loads(pickle.dumps(fs.open(f"{root}/a", "rb"))).read() == b"abc"


@pytest.mark.promise(4)
@pytest.mark.parametrize(
    # The memory of this process stays here.
    ("options", "method"),
    [("memory", "fork"), ("seaweedfs", "fork"), ("seaweedfs", "spawn")],
    indirect=["options"],
)
def test_children_go_on_after_the_parent_used_it(fs, root, method):
    fs.pipe_file(f"{root}/a", b"abc")
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(fs.cat_file, f"{root}/a").result(60) == b"abc"
        assert pool.submit(fs.open, f"{root}/a", "rb").result(60).read() == b"abc"
    assert fs.cat_file(f"{root}/a") == b"abc"


def test_threads_share_a_client(fs, options):
    clients = []
    thread = threading.Thread(target=lambda: clients.append(fsspec.filesystem("s3", **options).client))
    thread.start()
    thread.join()
    assert clients == [fs.client]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"colour": "red"}, "unknown option colour"),
        ({"session": object()}, "unknown option session .* use profile"),
        ({"cache_regions": True}, "give the region"),
        ({"use_ssl": False}, "endpoint_url that begins with http://"),
        ({"config_kwargs": {"signature_version": "s3"}}, "signs with s3v4"),
        ({"config_kwargs": {"proxies": {"http": "http://p"}}}, "HTTPS_PROXY"),
        ({"config_kwargs": {"s3": {"use_accelerate_endpoint": True}}}, "use_accelerate_endpoint"),
        ({"client_kwargs": {"api_version": "2006-03-01"}}, "unknown option api_version for client_kwargs"),
        ({"s3_additional_kwargs": {"SSECustomerKey": "k"}}, "sse_customer_key"),
        ({"key": "k"}, "key and secret go together"),
        ({"token": "t"}, "key and secret go together"),
        ({"endpoint": "http://a", "endpoint_url": "http://b"}, "mean the same"),
        ({"endpoint_url": "a"}, "invalid S3 endpoint"),
        ({"client_kwargs": {"verify": False}}, r"ca_bundle=\.\.\."),
        ({"anon": True, "requester_pays": True}, "requester_pays"),
    ],
)
def test_wrong_options_are_refused(options, text):
    with pytest.raises(ConfigurationError, match=text):
        S3FileSystem(skip_instance_cache=True, **options)


def test_options_of_s3fs_are_understood():
    options = ClientOptions.from_storage_options(
        anon=True,
        profile="p",
        client_kwargs={"endpoint_url": "http://host:1", "region_name": "eu-west-1"},
        s3client_config=S3ClientConfig(max_attempts=3),
    )
    assert (options.region, options.endpoint) == ("eu-west-1", "http://host:1")
    assert options.config == S3ClientConfig(unsigned=True, profile="p", max_attempts=3)
    settings = ClientOptions.from_storage_options(
        username="k",
        password="hidden",
        use_ssl=False,
        endpoint_url="http://host:1",
        fixed_upload_size=True,
        client_kwargs={"verify": "/ca.pem", "use_ssl": False, "aws_session_token": "t"},
        config_kwargs={
            "connect_timeout": 3,
            "read_timeout": 4,
            "max_pool_connections": 50,
            "retries": {"max_attempts": 4, "mode": "adaptive"},
            "s3": {"addressing_style": "path"},
            "signature_version": "s3v4",
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
        s3_additional_kwargs={
            "ServerSideEncryption": "aws:kms",
            "SSEKMSKeyId": "key-1",
            "StorageClass": "STANDARD_IA",
            "Tagging": "a=b%20c",
            "RequestPayer": "requester",
            "ExpectedBucketOwner": "123456789012",
        },
        default_cache_type="readahead",
        default_fill_cache=False,
        default_block_size=5,
        max_concurrency=3,
        cache_regions=False,
        version_aware=True,
        loop=None,
    ).config
    assert settings.credentials() == Credentials("k", "hidden", "t")
    assert settings == S3ClientConfig(
        credentials=settings.credentials,
        growing_parts=False,
        ca_bundle="/ca.pem",
        connect_timeout=3,
        read_timeout=4,
        max_connections=50,
        max_attempts=5,
        addressing_style="path",
        checksum_algorithm="off",
        verify="off",
        requester_pays=True,
        expected_bucket_owner="123456789012",
        put_options=PutOptions(
            server_side_encryption="aws:kms",
            kms_key_id="key-1",
            storage_class="STANDARD_IA",
            tags={"a": "b c"},
        ),
    )
    keys = ClientOptions.from_storage_options(key="k", secret="hidden", token="t")
    assert "hidden" not in repr(keys)
    assert keys == ClientOptions.from_storage_options(key="k", secret="hidden", token="t")
    assert keys.config.credentials().secret_key == "hidden"


@pytest.mark.parametrize("path", ["", "s3://", "bucket", "s3://bucket/"])
def test_a_path_without_a_key_is_no_file(path):
    fs = S3FileSystem("us-east-1")
    with pytest.raises((ConfigurationError, IsADirectoryError)):
        fs.open(path, "wb")


def test_a_server_that_cannot_be_asked_is_no_answer():
    config = S3ClientConfig(transport="http", max_attempts=1, connect_timeout=1)
    fs = S3FileSystem("us-east-1", endpoint="http://127.0.0.1:9", key="k", secret="s", s3client_config=config)
    for ask in (fs.exists, fs.isfile, fs.isdir):
        with pytest.raises(S3Error):
            ask("bucket/key")


def test_cat_of_many(fs, root):
    paths = {f"{root}/many/{number:03}": str(number).encode() for number in range(60)}
    fs.pipe(paths)
    assert fs.cat(list(paths)) == paths
    assert fs.cat(f"{root}/many/*") == paths
    assert fs.cat(f"{root}/many", recursive=True) == paths
    missing = f"{root}/many/missing"
    with pytest.raises(FileNotFoundError):
        fs.cat([*paths, missing])
    assert fs.cat([*paths, missing], on_error="omit") == paths
    assert isinstance(fs.cat([*paths, missing], on_error="return")[missing], FileNotFoundError)


def test_cat_ranges(fs, root):
    data = bytes(range(256)) * 40
    fs.pipe({f"{root}/a": data, f"{root}/b": data[::-1]})
    paths = [f"{root}/{'ab'[number % 2]}" for number in range(200)]
    starts, ends = list(range(0, 2000, 10)), list(range(7, 2007, 10))
    expected = [
        (data if path.endswith("a") else data[::-1])[start:end]
        for path, start, end in zip(paths, starts, ends, strict=True)
    ]
    assert fs.cat_ranges(paths, starts, ends) == expected
    assert fs.cat_ranges(paths[:2], -5, None) == [data[-5:], data[::-1][-5:]]
    assert fs.cat_ranges(paths[:2], [len(data) - 3, len(data)], [len(data) + 9] * 2) == [data[-3:], b""]
    assert fs.cat_ranges(paths[:2], [5, 0], [5, 0]) == [b"", b""]
    assert isinstance(fs.cat_ranges([root.partition("/")[0]], 0, 2)[0], IsADirectoryError)
    found = fs.cat_ranges([f"{root}/a", f"{root}/none"], 0, 2)
    assert found[0] == data[:2]
    assert isinstance(found[1], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([f"{root}/a", f"{root}/none"], 0, 2, on_error="raise")
    for wrong in ({"max_gap": 3}, {"ends": [1]}):
        with pytest.raises(ConfigurationError):
            fs.cat_ranges(**{"paths": paths, "starts": starts, "ends": ends} | wrong)


def test_wrapped_for_coroutines(options, root):
    fs = AsyncFileSystemWrapper(fsspec.filesystem("s3", asynchronous=True, **options), asynchronous=True)

    async def store_and_read():
        await fs._pipe_file(f"{root}/a", b"abc")
        return await fs._cat_file(f"{root}/a"), await fs._cat_ranges([f"{root}/a"], [1], [2])

    assert asyncio.run(store_and_read()) == (b"abc", [b"b"])

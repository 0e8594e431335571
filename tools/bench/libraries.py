"""The libraries that are compared, each behind the same few methods, with its defaults.

A method that a library lacks is work that it cannot do, and ``cases`` leaves that out. What is read comes
back as the library hands it out: a copy that its users need not make is no part of its costs.
"""

from __future__ import annotations

import os
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# A real one is used as it is; without it each question starts a server of its own.
REAL_BUCKET = os.environ.get("BENCH_BUCKET")
BUCKET = REAL_BUCKET or "bench"
REGION = os.environ.get("AWS_REGION", "us-east-1") if REAL_BUCKET else "us-east-1"
CONNECTOR = "s3torchconnector"


def endpoint() -> str:
    """The server of this run."""
    return os.environ["AWS_ENDPOINT_URL"]


def connector_config() -> Any:
    """How s3torchconnector finds a bucket on loopback."""
    from s3torchconnector import S3ClientConfig

    return S3ClientConfig(force_path_style=True)


def connector_client() -> Any:
    """The client of s3torchconnector."""
    from s3torchconnector._s3client import S3Client

    return S3Client(REGION, endpoint=endpoint(), s3client_config=connector_config())


def boto_client() -> Any:
    """A boto3 client for the server of this run."""
    import boto3

    # Of a session of its own: the default one keeps the keys of the server before.
    return boto3.Session().client("s3", endpoint_url=endpoint(), region_name=REGION)


def s3torch_client(transport: str | None) -> Any:
    """A client of ours with this transport; ``None`` for the default."""
    from s3torch.core import S3Client, S3ClientConfig

    return S3Client(REGION, endpoint=endpoint(), s3client_config=S3ClientConfig(transport=transport))


def s3fs_filesystem(**options: Any) -> Any:
    """The filesystem of s3fs, without its cache of listings."""
    import s3fs

    client = {"endpoint_url": endpoint(), "region_name": REGION}
    return s3fs.S3FileSystem(client_kwargs=client, use_listings_cache=False, **options)


class _Connector:
    """s3torchconnector, and ours, which has the same methods."""

    def __init__(self) -> None:
        import s3torchconnector

        self.package: Any = s3torchconnector
        self.client: Any = connector_client()

    def read(self, key: str) -> object:
        return self.client.get_object(BUCKET, key).read()

    def readinto(self, key: str, buffer: bytearray) -> object:
        # Without a buffer of its own it reads straight into ours.
        constructor = self.package.S3ReaderConstructor.range_based(0)
        return self.client.get_object(BUCKET, key, reader_constructor=constructor).readinto(buffer)

    def open(self, key: str, *, sparse: bool) -> Any:
        kind = self.package.S3ReaderConstructor
        return self.client.get_object(
            BUCKET, key, reader_constructor=kind.range_based(0) if sparse else kind.sequential()
        )

    def write(self, key: str, pieces: Iterable[memoryview]) -> None:
        with self.client.put_object(BUCKET, key) as writer:
            for piece in pieces:
                writer.write(piece)

    def each(self, prefix: str) -> Iterator[object]:
        for page in self.client.list_objects(BUCKET, prefix):
            for info in page.object_info:
                yield self.client.get_object(BUCKET, info.key, object_info=info).read()

    def keys(self, prefix: str) -> Iterable[object]:
        return (info for page in self.client.list_objects(BUCKET, prefix) for info in page.object_info)


class _S3torch(_Connector):
    """Ours, with one transport."""

    def __init__(self, transport: str | None) -> None:
        import s3torch.core

        self.package = s3torch.core
        self.client = s3torch_client(transport)


class _Boto3:
    """boto3; ``download_fileobj`` and ``upload_fileobj`` move several parts at once."""

    def __init__(self) -> None:
        self.client = boto_client()

    def read(self, key: str) -> object:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def readinto(self, key: str, buffer: bytearray) -> object:
        rest = memoryview(buffer)
        body = self.client.get_object(Bucket=BUCKET, Key=key)["Body"]
        while rest:
            rest = rest[body.readinto(rest) :]
        return buffer

    def write(self, key: str, pieces: Iterable[memoryview]) -> None:
        descriptor = os.memfd_create("source")
        for piece in pieces:
            os.write(descriptor, piece)
        self.client.upload_file(f"/proc/self/fd/{descriptor}", BUCKET, key)
        os.close(descriptor)

    def keys(self, prefix: str) -> Iterable[Any]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return (entry for page in pages for entry in page["Contents"])

    def each(self, prefix: str) -> Iterator[object]:
        for entry in self.keys(prefix):
            yield self.read(entry["Key"])


class _S3fs:
    """s3fs."""

    def __init__(self) -> None:
        self.fs = s3fs_filesystem()

    def read(self, key: str) -> object:
        return self.fs.cat_file(f"{BUCKET}/{key}")

    def open(self, key: str, *, sparse: bool) -> Any:
        # Its default reads 50 MiB ahead, which nobody wants who reads here and there.
        return self.fs.open(f"{BUCKET}/{key}", **({"block_size": 64 * 1024} if sparse else {}))

    def readinto(self, key: str, buffer: bytearray) -> object:
        with self.fs.open(f"{BUCKET}/{key}", "rb") as file:
            return file.readinto(buffer)

    def write(self, key: str, pieces: Iterable[memoryview]) -> None:
        with self.fs.open(f"{BUCKET}/{key}", "wb") as file:
            for piece in pieces:
                file.write(piece)

    def keys(self, prefix: str) -> Iterable[str]:
        found: Iterable[str] = self.fs.find(f"{BUCKET}/{prefix}")
        return found

    def each(self, prefix: str) -> Iterator[object]:
        for path in self.keys(prefix):
            yield self.fs.cat_file(path)


class _Obstore:
    """obstore. It has no way to read into memory of the caller but a copy."""

    def __init__(self) -> None:
        import obstore
        from obstore.store import S3Store

        self.obstore = obstore
        self.store = S3Store(BUCKET, endpoint=endpoint(), region=REGION, client_options={"allow_http": True})

    def read(self, key: str) -> object:
        return bytes(self.obstore.get(self.store, key).bytes())

    def readinto(self, key: str, buffer: bytearray) -> object:
        memoryview(buffer)[:] = memoryview(self.obstore.get(self.store, key).bytes())
        return buffer

    def open(self, key: str, *, sparse: bool) -> Any:
        options = {"buffer_size": 64 * 1024} if sparse else {}
        return closing(self.obstore.open_reader(self.store, key, **options))

    def write(self, key: str, pieces: Iterable[memoryview]) -> None:
        self.obstore.put(self.store, key, map(bytes, pieces))

    def keys(self, prefix: str) -> Iterable[Any]:
        return (entry for page in self.obstore.list(self.store, prefix) for entry in page)

    def each(self, prefix: str) -> Iterator[object]:
        for entry in self.keys(prefix):
            yield self.read(entry["path"])


class _MultiStorageClient:
    """NVIDIA's multi-storage-client, with its part in Rust."""

    def __init__(self) -> None:
        from multistorageclient import StorageClient, StorageClientConfig

        options = {
            "base_path": BUCKET,
            "region_name": REGION,
            "endpoint_url": endpoint(),
            "rust_client": {"allow_http": True} if endpoint().startswith("http:") else {},
        }
        profiles = {"bench": {"storage_provider": {"type": "s3", "options": options}}}
        self.client = StorageClient(StorageClientConfig.from_dict({"profiles": profiles}, profile="bench"))

    def read(self, key: str) -> object:
        return self.client.read(key)

    def open(self, key: str, *, sparse: bool) -> Any:  # noqa: ARG002
        return self.client.open(key, "rb")

    def write(self, key: str, pieces: Iterable[memoryview]) -> None:
        with self.client.open(key, "wb") as file:
            for piece in pieces:
                file.write(piece)

    def keys(self, prefix: str) -> Iterable[Any]:
        found: Iterable[Any] = self.client.list(path=prefix)
        return found

    def each(self, prefix: str) -> Iterator[object]:
        for entry in self.keys(prefix):
            yield self.client.read(entry.key)


LIBRARIES: dict[str, Callable[[], Any]] = {
    CONNECTOR: _Connector,
    "s3torch (crt)": partial(_S3torch, "crt"),
    "s3torch (http)": partial(_S3torch, "http"),
    "boto3": _Boto3,
    "s3fs": _S3fs,
    "obstore": _Obstore,
    "multi-storage-client": _MultiStorageClient,
}


def cases(method: str, do: Callable[[Any], object]) -> dict[str, Callable[[], Callable[[], object]]]:
    """The cases of a piece of work, for each library that has a method.

    Args:
        method: What it needs of a library.
        do: Does the work with a library.
    """

    def case(name: str) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            library = LIBRARIES[name]()
            return lambda: do(library)

        return make

    return {
        name: case(name) for name, made in LIBRARIES.items() if hasattr(getattr(made, "func", made), method)
    }

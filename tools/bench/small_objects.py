"""How fast are many small objects read, one at a time?"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from measure import (
    BUCKET,
    Question,
    boto_client,
    by_library,
    connector_client,
    main,
    obstore_client,
    s3fs_client,
    s3torch_client,
)

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT = 1000
SIZE = 100 * 1024
PREFIX = "small/"


def prepare(boto: Any) -> None:
    """Puts the objects."""
    body = os.urandom(SIZE)

    def put(number: int) -> None:
        boto.put_object(Bucket=BUCKET, Key=f"{PREFIX}{number:05}", Body=body)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(COUNT)))


def s3torch(transport: str) -> Callable[[], object]:
    """Our client."""
    return _read_all(s3torch_client(transport))


def connector() -> Callable[[], object]:
    """The client of s3torchconnector."""
    return _read_all(connector_client())


def boto3() -> Callable[[], object]:
    """get_object() of boto3."""
    s3 = boto_client()

    def work() -> None:
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=PREFIX):
            for entry in page["Contents"]:
                s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()

    return work


def s3fs() -> Callable[[], object]:
    """cat_file() of s3fs."""
    fs = s3fs_client()

    def work() -> None:
        fs.invalidate_cache()
        for path in fs.find(f"{BUCKET}/{PREFIX}"):
            fs.cat_file(path)

    return work


def obstore() -> Callable[[], object]:
    """get() of obstore."""
    import obstore

    store = obstore_client()

    def work() -> None:
        for page in obstore.list(store, PREFIX):
            for entry in page:
                bytes(obstore.get(store, entry["path"]).bytes())

    return work


def _read_all(s3: Any) -> Callable[[], object]:
    def work() -> None:
        for page in s3.list_objects(BUCKET, PREFIX):
            for info in page.object_info:
                with s3.get_object(BUCKET, info.key, object_info=info) as reader:
                    reader.read()

    return work


if __name__ == "__main__":
    main(
        Question(
            title=f"{COUNT} objects of 100 KiB, listed and read one at a time",
            cases=by_library(connector=connector, s3torch=s3torch, boto3=boto3, s3fs=s3fs, obstore=obstore),
            units=COUNT,
            unit="objects",
            size=COUNT * SIZE,
            prepare=prepare,
        )
    )

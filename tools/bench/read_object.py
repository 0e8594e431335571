"""How fast is one large object read with read()?"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from measure import (
    BUCKET,
    MIB,
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

SIZE = 256 * MIB
KEY = "large"


def prepare(boto: Any) -> None:
    """Puts the object."""
    boto.upload_fileobj(io.BytesIO(bytes(range(256)) * (SIZE // 256)), BUCKET, KEY)


def s3torch(transport: str) -> Callable[[], object]:
    """read() of our sequential reader."""
    s3 = s3torch_client(transport)
    return lambda: s3.get_object(BUCKET, KEY).read()


def connector() -> Callable[[], object]:
    """read() of s3torchconnector's sequential reader."""
    s3 = connector_client()
    return lambda: s3.get_object(BUCKET, KEY).read()


def boto3() -> Callable[[], object]:
    """One GetObject of boto3."""
    s3 = boto_client()
    return lambda: s3.get_object(Bucket=BUCKET, Key=KEY)["Body"].read()  # noqa: PLW0108


def s3fs() -> Callable[[], object]:
    """cat_file() of s3fs."""
    fs = s3fs_client()
    return lambda: fs.cat_file(f"{BUCKET}/{KEY}")


def obstore() -> Callable[[], object]:
    """get() of obstore."""
    import obstore

    store = obstore_client()
    return lambda: bytes(obstore.get(store, KEY).bytes())


READ = Question(
    title="read() of one object of 256 MiB",
    cases=by_library(connector=connector, s3torch=s3torch, boto3=boto3, s3fs=s3fs, obstore=obstore),
    units=SIZE / 1e9,
    unit="GB",
    size=SIZE,
    prepare=prepare,
)

if __name__ == "__main__":
    main(READ)

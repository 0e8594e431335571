"""Whether an upload was stored after all, when only the answer that says so was lost.

A request that makes an object appear may succeed while its answer is lost with the connection. The next
attempt then meets the object of the first: the condition of a create-only upload does not hold any more, and
the multipart upload is gone. Neither is a failure if the object that is there is the one that was sent.

That is so where it has the same checksum, or the same ETag, and more than one attempt was made. An upload of
another writer with the very same bytes, between two attempts of this one, cannot be told from it; who uses
create-only uploads as locks has to write something that is only theirs.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from s3torch.core import requests
from s3torch.core.errors import NotFoundError, PreconditionFailedError, S3Error
from s3torch.core.models import PutResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from s3torch.core._runtime import Runtime
    from s3torch.core.models import CompletedPart

_MD5_LENGTH = 32


def stored_after_all(
    error: S3Error,
    runtime: Runtime,
    *,
    bucket: str,
    key: str,
    checksum: tuple[str, str] | None,
    etag: Callable[[], str | None],
) -> PutResult:
    """Returns what was stored, if it was, or raises the error.

    Args:
        error: What the last attempt to make the object appear was answered with.
        runtime: Asked for the object that is there, in one request.
        bucket: The bucket.
        key: The key.
        checksum: The algorithm and the checksum of the whole object.
        etag: Computes the ETag that S3 gives the object; ``None`` where that cannot be known.
    """
    refused = isinstance(error, PreconditionFailedError) or (
        isinstance(error, NotFoundError) and error.code == "NoSuchUpload"
    )
    if not refused or (error.attempts or 1) < 2:
        raise error
    try:
        head = runtime.call(requests.head_object(bucket, key))
    except S3Error as exc:
        error.add_note(f"Whether an earlier attempt was stored could not be asked: {exc}")
        raise error from exc
    known = None if checksum is None else head.checksums.get(checksum[0])
    # Neither is empty where they are equal.
    same = known == checksum[1] if checksum is not None and known is not None else head.etag == etag()
    if not same:
        raise error
    return PutResult(head.etag, head.version_id)


def etag_of_body(body: memoryview) -> str:
    """Computes the ETag of an object that was stored in one request, unless it is encrypted with KMS."""
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


def etag_of_parts(parts: Sequence[CompletedPart]) -> str | None:
    """Computes the ETag of an object of these parts; ``None`` where their ETags are no MD5 sums."""
    told = [part.etag.strip('"') for part in parts]
    try:
        digests = [bytes.fromhex(text) for text in told if len(text) == _MD5_LENGTH]
    except ValueError:
        return None
    if len(digests) < len(told):
        return None
    whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
    return f'"{whole}-{len(told)}"'

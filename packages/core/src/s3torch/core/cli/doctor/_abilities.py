"""What a store can do of what the promises of s3torch need, and what falls back where it cannot."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from s3torch.core import requests
from s3torch.core.cli._objects import folder_of
from s3torch.core.cli.findings import Finding, Severity
from s3torch.core.errors import (
    AccessDeniedError,
    PreconditionFailedError,
    S3Error,
)
from s3torch.core.models import PutOptions
from s3torch.core.ranges import ByteRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3torch.core import S3Client
    from s3torch.core.models import ListObjectResult, MultipartUpload

_TOPIC = "Store"
_CONTENT = b"s3torch doctor\n"
_OTHER_ETAG = '"00000000000000000000000000000000"'
_NO_CHECKSUMS = (
    "reads are compared by length and ETag alone, so damage in transit or in the store goes unnoticed; "
    "checkpoints of s3torch-dcp keep checksums of their own"
)
_NO_SETTING = "no setting helps; use another store, or a newer release of this one"
_NO_CONDITIONS = (
    "of two jobs that save to one path at the same moment, one may replace the other's checkpoint without an "
    "error"
)


def look_at_first_object(client: S3Client, bucket: str, page: ListObjectResult) -> Iterator[Finding]:
    """Tells what the first object of a listing says of the permission to read, and of checksums."""
    info = next(iter(page.object_info), None)
    if info is None:
        text = "there is no object here to look at"
        yield Finding(_TOPIC, "reading", Severity.NOTE, text, "name a prefix with objects, or give --write")
        return
    try:
        head = client.head_object(bucket, info.key)
    except AccessDeniedError:
        text = f"these keys may list, but not read {info.key}"
        remedy = f"allow s3:GetObject on arn:aws:s3:::{bucket}/* (and kms:Decrypt for a key of KMS)"
        yield Finding(_TOPIC, "reading", Severity.ERROR, text, remedy)
    except S3Error as error:
        yield Finding(_TOPIC, "reading", Severity.WARNING, str(error), "see the error")
    else:
        yield _kept_checksums(head.checksums, info.key)


def _kept_checksums(checksums: Any, key: str) -> Finding:
    if checksums:
        listed = ", ".join(
            f"{name} of {'parts' if '-' in value else 'all bytes'}" for name, value in checksums.items()
        )
        return Finding(_TOPIC, "reading", Severity.OK, f"{key} can be read; kept with it: {listed}")
    text = f"{key} can be read; no checksum is kept with it, so only length and ETag are compared"
    remedy = "what s3torch stores carries one; --write shows whether this store keeps it"
    return Finding(_TOPIC, "reading", Severity.NOTE, text, remedy)


def try_abilities(client: S3Client, bucket: str, prefix: str) -> list[Finding]:
    """Tries with objects of its own what the store can do, and removes them.

    They are in a folder ``.s3torch-doctor-…`` below the prefix, whose name nobody else has.
    """
    trial = _Trial(client, bucket, f"{folder_of(prefix)}.s3torch-doctor-{uuid4().hex}/")
    found: list[Finding] = []
    try:
        found += trial.run()
    finally:
        left = trial.clean_up()
        if left is not None:
            found.append(left)
    return found


class _Trial:
    """Objects that nobody else has, and what can be done with them."""

    def __init__(self, client: S3Client, bucket: str, folder: str) -> None:
        self._client = client
        self._call = client._handle.call
        self._bucket = bucket
        self._folder = folder
        self._key = f"{folder}object"
        self._uploads: list[MultipartUpload] = []

    def run(self) -> Iterator[Finding]:
        """Tries one thing after the other; without the permission to write there is only that."""
        written = self._write()
        yield written
        if written.severity is Severity.ERROR:
            return
        yield self._try("checksums", self._checksums, Severity.WARNING, _NO_CHECKSUMS)
        yield self._try("conditional PUT", self._condition, Severity.WARNING, _NO_CONDITIONS)
        text = "an object that is replaced while it is read is noticed late, by the ETag of an answer"
        yield self._try("conditional GET", self._pinned_read, Severity.NOTE, text)
        text = "cp within S3 and consolidation move bytes through this machine"
        yield self._try("CopyObject", self._copy, Severity.NOTE, text)
        text = "uploads of more than one part fail"
        remedy = "raise S3ClientConfig(part_size=…) above the size of your objects, or use another store"
        yield self._try("multipart upload", self._multipart, Severity.ERROR, text, remedy)
        text = "objects over 5 GiB are not copied within S3, and what did not change is sent again"
        yield self._try("UploadPartCopy", self._part_copy, Severity.NOTE, text)
        text = "many objects are deleted one by one, which takes longer"
        yield self._try("DeleteObjects", self._delete_many, Severity.NOTE, text)

    def _permissions(self) -> str:
        actions = "s3:PutObject, s3:GetObject, s3:DeleteObject and s3:AbortMultipartUpload"
        return f"allow {actions} on arn:aws:s3:::{self._bucket}/{self._folder.rpartition('.')[0]}*"

    def _write(self) -> Finding:
        denied = "not write"
        try:
            with self._client.put_object(self._bucket, self._key) as writer:
                writer.write(_CONTENT)
            denied = "write, but not read what they wrote"
            same = self._client.get_object(self._bucket, self._key).read() == _CONTENT
        except AccessDeniedError as error:
            text = f"these keys may {denied} [{error.code or error.status}]"
            return Finding(_TOPIC, "writing", Severity.ERROR, text, self._permissions())
        except S3Error as error:
            remedy = "if the store knows no checksums: S3ClientConfig(checksum_algorithm='off')"
            return Finding(_TOPIC, "writing", Severity.ERROR, str(error), remedy)
        if not same:
            return Finding(
                _TOPIC,
                "writing",
                Severity.ERROR,
                "the object came back with other bytes",
                "do not use this store",
            )
        return Finding(_TOPIC, "writing", Severity.OK, "an object was stored and came back unchanged")

    def _try(
        self, name: str, trial: Callable[[], str], severity: Severity, without: str, remedy: str = _NO_SETTING
    ) -> Finding:
        """Tries one ability; a trial returns what it saw, or raises or is refused where there is none."""
        try:
            return Finding(_TOPIC, name, Severity.OK, trial())
        except _MissingError as exc:
            why = str(exc)
        except AccessDeniedError as error:
            # Of the store it says nothing.
            text = f"not known: these keys may not try it [{error.code or error.status}]"
            return Finding(_TOPIC, name, severity, text, self._permissions())
        except S3Error as error:
            told = error.code or error.status or type(error).__name__
            why = f"refused ({told})"
        if severity is Severity.NOTE:
            remedy = "nothing has to be done"
        return Finding(_TOPIC, name, severity, f"{why}: {without}", remedy)

    def _checksums(self) -> str:
        head = self._client.head_object(self._bucket, self._key)
        if not head.checksums:
            raise _MissingError("the store keeps none")
        return f"{', '.join(sorted(head.checksums))} is kept, and returned with the object"

    def _condition(self) -> str:
        options = PutOptions(if_none_match="*")
        request = requests.put_object(self._bucket, self._key, options=options)
        runtime = self._client._handle.get()
        try:
            runtime.send_and_wait(request, body=memoryview(_CONTENT))
        except PreconditionFailedError:
            return "If-None-Match is obeyed: an existing object is not replaced by mistake"
        raise _MissingError("If-None-Match is ignored")

    def _pinned_read(self) -> str:
        wanted = requests.get_object(
            self._bucket, self._key, byte_range=ByteRange(0, 1), if_match=_OTHER_ETAG
        )
        try:
            self._call(wanted)
        except PreconditionFailedError:
            return "If-Match is obeyed: all ranges come from one version of an object"
        raise _MissingError("If-Match is ignored")

    def _copy(self) -> str:
        self._client.copy_object(self._bucket, self._key, self._bucket, f"{self._folder}copy")
        if self._client.get_object(self._bucket, f"{self._folder}copy").read() != _CONTENT:
            raise _MissingError("the copy has other bytes")
        return "objects are copied within the store"

    def _begin(self, name: str) -> MultipartUpload:
        key = f"{self._folder}{name}"
        upload = self._call(requests.create_multipart_upload(self._bucket, key, options=PutOptions()))
        self._uploads.append(upload)
        return upload

    def _multipart(self) -> str:
        upload = self._begin("parts")
        runtime = self._client._handle.get()
        part = runtime.send_and_wait(requests.upload_part(upload, 1), body=memoryview(_CONTENT))
        self._call(requests.complete_multipart_upload(upload, [part], options=PutOptions()))
        return "objects are stored in parts"

    def _part_copy(self) -> str:
        upload = self._begin("copied-parts")
        whole = ByteRange(0, len(_CONTENT))
        part = self._call(requests.upload_part_copy(upload, 1, self._bucket, self._key, byte_range=whole))
        self._call(requests.complete_multipart_upload(upload, [part], options=PutOptions()))
        if self._client.get_object(self._bucket, upload.key).read() != _CONTENT:
            raise _MissingError("the copied part has other bytes")
        return "ranges of objects are copied within the store"

    def _delete_many(self) -> str:
        keys = [(f"{self._folder}copy", None), (f"{self._folder}parts", None)]
        failures = self._call(requests.delete_objects(self._bucket, keys))
        if failures:
            raise _MissingError(f"{failures[0].code} for {failures[0].key}")
        return "1,000 objects are deleted with one request"

    def clean_up(self) -> Finding | None:
        """Removes all that was stored, with its versions; tells what could not be removed."""
        error: S3Error | None = None
        for upload in self._uploads:
            with suppress(S3Error):
                self._call(requests.abort_multipart_upload(upload))
        for name in ("object", "copy", "parts", "copied-parts"):
            try:
                self._client.delete_object(self._bucket, self._folder + name)
            except S3Error as exc:
                error = exc
        with suppress(S3Error):
            versions = self._client.list_object_versions(self._bucket, self._folder)
            own = [one for page in versions for one in page.versions if one.version_id != "null"]
            self._client.delete_objects(self._bucket, own) if own else None
        try:
            left = [info.key for info in self._client.walk(self._bucket, self._folder)]
        except S3Error:
            left = [] if error is None else [self._folder]
        if not left:
            return None
        remedy = f"s3torch rm --recursive s3://{self._bucket}/{self._folder}"
        why = "" if error is None else f": {error.message}"
        text = f"{len(left)} objects of this command could not be deleted{why}"
        return Finding(_TOPIC, "deleting", Severity.ERROR, text, remedy)


class _MissingError(Exception):
    """The store does not have an ability, although it answers as if it had."""

"""A transport that gives errors the texts of s3torchconnector; another transport does the work."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from s3torch.core.abilities import part_copy_of, tags_of, upload_listing_of, versions_of
from s3torch.core.config import default_transport
from s3torch.core.control import BotoControl
from s3torch.core.errors import S3Error
from s3torch.core.plugins.hookspecs import hookimpl
from s3torch.core.plugins.manager import create_transport
from s3torch.core.protocols import SupportsControl
from s3torch.core.ranges import MAX_PART_SIZE, MIN_PART_SIZE
from s3torchconnector._error_texts import with_old_text
from s3torchconnector._s3client.s3client_config import S3ClientConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from s3torch.core import DeleteFailure, HeadObjectResult, ListObjectResult
    from s3torch.core.models import CompletedPart, ListUploadsResult, ListVersionsResult
    from s3torch.core.protocols import ControlPlane, Transfer, Transport, TransportContext

__all__ = ["s3torch_create_transport"]

T = TypeVar("T")


@hookimpl
def s3torch_create_transport(context: TransportContext) -> OldTextTransport:
    """Creates the transport that the configuration asks for, and wraps it.

    Raises:
        S3Error: The part size is out of range; the drop-in says so at the first use.
    """
    config = context.config
    if not MIN_PART_SIZE <= config.part_size <= MAX_PART_SIZE:
        raise S3Error("invalid configuration: part size must be at between 5MiB and 5GiB")
    asked = config.wrapped_transport_name if isinstance(config, S3ClientConfig) else None
    name = asked or default_transport(encrypted=context.session.is_encrypted)
    return OldTextTransport(create_transport(name, context), context)


class OldTextTransport:
    """Passes everything on and changes the texts of errors.

    Args:
        transport: What does the work.
        context: What it was created with.
    """

    def __init__(self, transport: Transport, context: TransportContext) -> None:
        self._transport = transport
        self._control: ControlPlane = (
            transport.control()
            if isinstance(transport, SupportsControl)
            else BotoControl(context.session, context.on_retry)
        )

    def control(self) -> ControlPlane:
        """Returns the control plane, with the old texts as well."""
        return OldTextControl(self._control)

    def close(self) -> None:
        """Closes the transport that does the work."""
        self._transport.close()

    def get(self, bucket: str, key: str, **kwargs: Any) -> Transfer[Any]:
        """Starts one GetObject request."""
        return OldTextTransfer(self._transport.get(bucket, key, **kwargs))

    def put(self, bucket: str, key: str, body: memoryview, **kwargs: Any) -> Transfer[Any]:
        """Starts one PutObject request."""
        return OldTextTransfer(self._transport.put(bucket, key, body, **kwargs))

    def create_multipart_upload(self, bucket: str, key: str, **kwargs: Any) -> Transfer[Any]:
        """Starts a CreateMultipartUpload request."""
        return OldTextTransfer(self._transport.create_multipart_upload(bucket, key, **kwargs))

    def upload_part(self, upload: Any, number: int, body: memoryview, **kwargs: Any) -> Transfer[Any]:
        """Starts one UploadPart request."""
        return OldTextTransfer(self._transport.upload_part(upload, number, body, **kwargs))

    def complete_multipart_upload(self, upload: Any, parts: Sequence[Any], **kwargs: Any) -> Transfer[Any]:
        """Starts a CompleteMultipartUpload request."""
        return OldTextTransfer(self._transport.complete_multipart_upload(upload, parts, **kwargs))

    def abort_multipart_upload(self, upload: Any) -> Transfer[None]:
        """Starts an AbortMultipartUpload request."""
        return OldTextTransfer(self._transport.abort_multipart_upload(upload))


class OldTextTransfer(Generic[T]):
    """A transfer whose errors have the old texts."""

    __slots__ = ("_transfer",)

    def __init__(self, transfer: Transfer[T]) -> None:
        self._transfer = transfer

    def result(self, timeout: float | None = None) -> T:
        """Waits for the end and returns what the work was for."""
        with _old_texts():
            return self._transfer.result(timeout)

    def done(self) -> bool:
        """Tells whether the work has ended."""
        return self._transfer.done()

    def cancel(self) -> bool:
        """Asks to stop the work."""
        return self._transfer.cancel()

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Calls ``fn`` with this transfer when the work has ended."""
        self._transfer.add_done_callback(lambda _: fn(self))


class OldTextControl:
    """A control plane whose errors have the old texts."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    def head_object(self, bucket: str, key: str, **kwargs: Any) -> HeadObjectResult:
        """Asks for the facts of one object."""
        with _old_texts():
            return self._control.head_object(bucket, key, **kwargs)

    def list_objects(self, bucket: str, **kwargs: Any) -> ListObjectResult:
        """Asks for one page of a listing."""
        with _old_texts():
            return self._control.list_objects(bucket, **kwargs)

    def delete_object(self, bucket: str, key: str, **kwargs: Any) -> None:
        """Deletes one object."""
        with _old_texts():
            self._control.delete_object(bucket, key, **kwargs)

    def delete_objects(self, bucket: str, keys: Sequence[str]) -> list[DeleteFailure]:
        """Deletes up to 1,000 objects."""
        with _old_texts():
            return self._control.delete_objects(bucket, keys)

    def copy_object(
        self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str, **kwargs: Any
    ) -> None:
        """Copies one object within S3."""
        with _old_texts():
            self._control.copy_object(src_bucket, src_key, dst_bucket, dst_key, **kwargs)

    def list_object_versions(self, bucket: str, **kwargs: Any) -> ListVersionsResult:
        """Asks for one page of versions."""
        with _old_texts():
            return versions_of(self._control).list_object_versions(bucket, **kwargs)

    def delete_versions(self, bucket: str, versions: Sequence[tuple[str, str]]) -> list[DeleteFailure]:
        """Deletes up to 1,000 versions."""
        with _old_texts():
            return versions_of(self._control).delete_versions(bucket, versions)

    def list_multipart_uploads(self, bucket: str, **kwargs: Any) -> ListUploadsResult:
        """Asks for one page of the multipart uploads in progress."""
        with _old_texts():
            return upload_listing_of(self._control).list_multipart_uploads(bucket, **kwargs)

    def upload_part_copy(
        self, upload: Any, number: int, src_bucket: str, src_key: str, **kwargs: Any
    ) -> CompletedPart:
        """Makes a part of bytes of another object."""
        with _old_texts():
            return part_copy_of(self._control).upload_part_copy(upload, number, src_bucket, src_key, **kwargs)

    def object_tags(self, bucket: str, key: str, **kwargs: Any) -> dict[str, str]:
        """Asks for the tags of an object."""
        with _old_texts():
            return tags_of(self._control).object_tags(bucket, key, **kwargs)

    def close(self) -> None:
        """Frees connections."""
        self._control.close()


@contextmanager
def _old_texts() -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        raise with_old_text(error) from error

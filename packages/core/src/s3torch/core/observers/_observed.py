"""A transport and a control plane that tell observers of what they do; in use only while somebody listens."""

from __future__ import annotations

import inspect
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from s3torch.core.models import CompletedPart, GetResult, MultipartUpload, PutOptions, PutResult
    from s3torch.core.observers._observations import Observation, Observations
    from s3torch.core.protocols import Transfer, Transport
    from s3torch.core.ranges import ByteRange

T = TypeVar("T")

# Where the name of a method is not that of the operation.
_OPERATIONS = {
    "delete_versions": "DeleteObjects",
    "list_objects": "ListObjectsV2",
    "object_tags": "GetObjectTagging",
}


class ObservedTransfer(Future[T]):
    """A transfer whose result comes after observers were told of its end.

    Args:
        transfer: What the transport has started.
        observation: Who is told.
        facts: Gives the arguments for ``Observation.end`` from the result.
    """

    def __init__(
        self, transfer: Transfer[T], observation: Observation, facts: Callable[[T], dict[str, Any]]
    ) -> None:
        super().__init__()
        self._transfer: Transfer[T] | None = transfer
        self._observation = observation
        self._facts = facts
        observation.transfer = transfer
        transfer.add_done_callback(self._finish)

    def cancel(self) -> bool:
        """Cancels the work of the transport."""
        transfer = self._transfer
        return transfer is not None and transfer.cancel()

    def _finish(self, transfer: Transfer[T]) -> None:
        self._transfer = None
        try:
            # Asked so, it is not raised here: this may be the thread of the caller, and a traceback through
            # its frames would hold its buffers.
            error = transfer.exception(0) if isinstance(transfer, Future) else None
            if error is None:
                result = transfer.result(0)
        except BaseException as exc:  # noqa: BLE001 - It is raised where it is waited for.
            error = exc
        if error is None:
            self._observation.end(**self._facts(result))
            self.set_result(result)
        else:
            self._observation.end(error=error)
            self.set_exception(error)


class ObservedTransport:
    """A transport that tells observers. The rules are those of ``s3torch.core.protocols``."""

    def __init__(self, transport: Transport, observations: Observations) -> None:
        self._transport = transport
        self._observations = observations

    def get(
        self,
        bucket: str,
        key: str,
        *,
        byte_range: ByteRange | None = None,
        into: memoryview | None = None,
        if_match: str | None = None,
        version_id: str | None = None,
    ) -> Transfer[GetResult]:
        """Starts one GetObject request."""
        observation = self._observations.begin("GetObject", bucket, key, byte_range=byte_range)
        return _started(
            observation,
            lambda: self._transport.get(
                bucket,
                key,
                byte_range=byte_range,
                into=into,
                if_match=if_match,
                version_id=version_id,
            ),
            lambda result: {"nbytes": result.length, "object_size": result.head.size},
        )

    def put(
        self,
        bucket: str,
        key: str,
        body: memoryview,
        *,
        options: PutOptions,
        checksum: tuple[str, str] | None = None,
    ) -> Transfer[PutResult]:
        """Starts one PutObject request."""
        size = body.nbytes
        return _started(
            self._observations.begin("PutObject", bucket, key, size=size),
            lambda: self._transport.put(bucket, key, body, options=options, checksum=checksum),
            lambda _: {"nbytes": size, "object_size": size},
        )

    def create_multipart_upload(
        self, bucket: str, key: str, *, options: PutOptions, checksum_algorithm: str | None = None
    ) -> Transfer[MultipartUpload]:
        """Starts a CreateMultipartUpload request."""
        return _started(
            self._observations.begin("CreateMultipartUpload", bucket, key),
            lambda: self._transport.create_multipart_upload(
                bucket, key, options=options, checksum_algorithm=checksum_algorithm
            ),
            lambda upload: {"upload_id": upload.upload_id},
        )

    def upload_part(
        self,
        upload: MultipartUpload,
        number: int,
        body: memoryview,
        *,
        checksum: tuple[str, str] | None = None,
    ) -> Transfer[CompletedPart]:
        """Starts one UploadPart request."""
        size = body.nbytes
        return _started(
            self._of_upload("UploadPart", upload, size=size, part_number=number),
            lambda: self._transport.upload_part(upload, number, body, checksum=checksum),
            lambda _: {"nbytes": size},
        )

    def complete_multipart_upload(
        self,
        upload: MultipartUpload,
        parts: Sequence[CompletedPart],
        *,
        options: PutOptions,
        checksum: tuple[str, str] | None = None,
    ) -> Transfer[PutResult]:
        """Starts a CompleteMultipartUpload request."""
        return _started(
            self._of_upload("CompleteMultipartUpload", upload),
            lambda: self._transport.complete_multipart_upload(
                upload, parts, options=options, checksum=checksum
            ),
            _no_facts,
        )

    def abort_multipart_upload(self, upload: MultipartUpload) -> Transfer[None]:
        """Starts an AbortMultipartUpload request."""
        return _started(
            self._of_upload("AbortMultipartUpload", upload),
            lambda: self._transport.abort_multipart_upload(upload),
            _no_facts,
        )

    def close(self) -> None:
        """Closes the transport."""
        self._transport.close()

    def _of_upload(self, operation: str, upload: MultipartUpload, **facts: Any) -> Observation:
        return self._observations.begin(
            operation, upload.bucket, upload.key, upload_id=upload.upload_id, **facts
        )

    def __getattr__(self, name: str) -> Any:
        # What a transport can do besides is none of our business.
        return getattr(self._transport, name)


class ObservedControl:
    """A control plane that tells observers of every method of it that is about a bucket or an upload."""

    def __init__(self, control: object, observations: Observations) -> None:
        self._observations = observations
        for name in dir(control):
            method = getattr(control, name)
            if not name.startswith("_") and callable(method):
                setattr(self, name, self._observed(name, method))

    def _observed(self, name: str, method: Callable[..., T]) -> Callable[..., T]:
        signature = inspect.signature(method)
        if not {"bucket", "dst_bucket", "upload"} & set(signature.parameters):
            return method
        operation = operation_of(name)

        def call(*args: Any, **how: Any) -> T:
            given = signature.bind(*args, **how).arguments
            observation = self._observations.begin(operation, *_place(given), **_facts_of_part(given))
            try:
                result = method(*args, **how)
            except BaseException as exc:
                observation.end(error=exc)
                raise
            observation.end()
            return result

        return call


def operation_of(method: str) -> str:
    """Names the S3 operation of a method of a control plane."""
    return _OPERATIONS.get(method) or "".join(word.capitalize() for word in method.split("_"))


def _place(given: Mapping[str, Any]) -> tuple[str, str | None]:
    """Finds bucket and key, those that are changed, in the arguments of a method of a control plane."""
    if "upload" in given:
        return given["upload"].bucket, given["upload"].key
    if "dst_bucket" in given:
        return given["dst_bucket"], given.get("dst_key")
    return given["bucket"], given.get("key")


def _facts_of_part(given: Mapping[str, Any]) -> dict[str, Any]:
    if "upload" not in given:
        return {}
    return {"upload_id": given["upload"].upload_id, "part_number": given.get("number")}


def _started(
    observation: Observation, start: Callable[[], Transfer[T]], facts: Callable[[T], dict[str, Any]]
) -> ObservedTransfer[T]:
    try:
        transfer = start()
    except BaseException as exc:
        observation.end(error=exc)
        raise
    return ObservedTransfer(transfer, observation, facts)


def _no_facts(_: object) -> dict[str, Any]:
    return {}

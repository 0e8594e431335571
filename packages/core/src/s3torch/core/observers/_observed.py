"""A transport that tells observers of what it does; in use only while somebody listens."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs

from s3torch.core.errors import ThrottledError
from s3torch.core.models import GetResult, MultipartUpload
from s3torch.core.observers._listening import (
    TransferEnd,
    TransferInfo,
    TransferObserver,
    TransferProgress,
    TransferRetry,
    listening,
)

if TYPE_CHECKING:
    from s3torch.core.errors import S3Error
    from s3torch.core.requests import Request
    from s3torch.core.seam import Transfer, Transport

T = TypeVar("T")

_log = logging.getLogger(__name__)
_numbers = itertools.count(1)

_Name = tuple[str, str, str | None]


class Observation:
    """One transfer, and who was told of its start."""

    __slots__ = ("_listeners", "_open", "_retries", "_throttles", "info", "transfer")

    def __init__(self, info: TransferInfo, observations: Observations) -> None:
        self.info = info
        # What the transport has started, once it has.
        self.transfer: Transfer[Any] | None = None
        self._open = observations
        self._listeners = listening.get().listeners
        self._retries = 0
        self._throttles = 0
        for listener in self._listeners:
            listener.tell(TransferObserver.started, info)

    def retry(self, retry: TransferRetry) -> None:
        """Tells of a failed attempt."""
        self._retries += 1
        self._throttles += isinstance(retry.error, ThrottledError)
        for listener in self._listeners:
            listener.tell(TransferObserver.retried, self.info, retry)

    def end(self, result: object = None, *, error: BaseException | None = None) -> None:
        """Tells of the bytes that were moved, and of the end."""
        self._open.forget(self)
        info, object_size, upload_id = self.info, None, self.info.upload_id
        nbytes = info.size or 0 if error is None else 0
        if isinstance(result, GetResult):
            nbytes, object_size = result.length, result.head.size
        elif isinstance(result, MultipartUpload):
            upload_id = result.upload_id
        elif info.operation == "PutObject":
            object_size = info.size
        end = TransferEnd(
            seconds=time.monotonic() - info.time,
            nbytes=nbytes,
            attempts=1 + self._retries,
            throttles=self._throttles + isinstance(error, ThrottledError),
            error=error,
            upload_id=upload_id,
        )
        for listener in self._listeners:
            if nbytes:
                listener.tell(TransferObserver.progressed, info, TransferProgress(nbytes, object_size))
            listener.tell(TransferObserver.ended, info, end)


class Observations:
    """Begins observations, and finds the one that a transport tells a retry of."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.
        self._by_name: dict[_Name, list[Observation]] = {}

    def begin(self, request: Request[Any], size: int | None) -> Observation:
        """Tells of the start of a transfer that sends so many bytes of an object."""
        told = parse_qs(request.query)
        number = told.get("partNumber")
        upload_id = told.get("uploadId")
        info = TransferInfo(
            next(_numbers),
            request.operation,
            request.bucket,
            request.key or None,
            time.monotonic(),
            byte_range=request.byte_range,
            size=size,
            upload_id=upload_id[0] if upload_id else None,
            part_number=int(number[0]) if number else None,
        )
        observation = Observation(info, self)
        with self._lock:
            self._by_name.setdefault(_name_of(info), []).append(observation)
        return observation

    def forget(self, observation: Observation) -> None:
        """Takes note that a transfer has ended."""
        name = _name_of(observation.info)
        with self._lock:
            same = self._by_name.get(name, [])
            if observation in same:
                same.remove(observation)
            if not same:
                self._by_name.pop(name, None)

    def retried(
        self,
        *,
        operation: str,
        bucket: str,
        key: str,
        attempt: int,
        error: S3Error,
        seconds: float,
        transfer: Transfer[Any] | None = None,
    ) -> None:
        """Takes note of a retry; it is the ``on_retry`` of the client's transport."""
        _log.debug("%s; attempt %d failed, the next is in %.2f s", error, attempt, seconds)
        observation = self._find((operation, bucket, key or None), transfer)
        if observation is not None:
            observation.retry(TransferRetry(attempt, error, seconds))

    def _find(self, name: _Name, transfer: Transfer[Any] | None) -> Observation | None:
        with self._lock:
            same = self._by_name.get(name, [])
            # A transport may try again before it has returned the transfer; it may not tell which one it is,
            # or a wrapper of it has returned another.
            candidates = (
                *(observation for observation in same if observation.transfer is transfer),
                *(observation for observation in same if observation.transfer is None),
                *same,
            )
            return candidates[0] if candidates else None


def _name_of(info: TransferInfo) -> _Name:
    return info.operation, info.bucket, info.key


class ObservedTransfer(Future[T]):
    """A transfer whose result comes after observers were told of its end."""

    def __init__(self, transfer: Transfer[T], observation: Observation) -> None:
        super().__init__()
        self._transfer: Transfer[T] | None = transfer
        self._observation = observation
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
            self._observation.end(result)
            self.set_result(result)
        else:
            self._observation.end(error=error)
            self.set_exception(error)


class ObservedTransport:
    """A transport that tells observers. The rules are those of ``s3torch.core.seam``."""

    def __init__(self, transport: Transport, observations: Observations) -> None:
        self._transport = transport
        self._observations = observations

    def send(
        self, request: Request[T], *, body: memoryview | None = None, into: memoryview | None = None
    ) -> Transfer[T]:
        """Starts a request."""
        observation = self._observations.begin(request, None if body is None else body.nbytes)
        try:
            transfer = self._transport.send(request, body=body, into=into)
        except BaseException as exc:
            observation.end(error=exc)
            raise
        return ObservedTransfer(transfer, observation)

    def close(self) -> None:
        """Closes the transport."""
        self._transport.close()

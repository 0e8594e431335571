"""The transfers of one client that observers are being told of."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ThrottledError
from s3torch.core.observers._listening import listening
from s3torch.core.observers.events import (
    TransferEnd,
    TransferInfo,
    TransferObserver,
    TransferProgress,
    TransferRetry,
)

if TYPE_CHECKING:
    from s3torch.core.errors import S3Error
    from s3torch.core.protocols import Transfer

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

    def end(
        self,
        nbytes: int = 0,
        *,
        object_size: int | None = None,
        upload_id: str | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Tells of the bytes that were moved, and of the end."""
        self._open.forget(self)
        end = TransferEnd(
            seconds=time.monotonic() - self.info.time,
            nbytes=nbytes,
            attempts=1 + self._retries,
            throttles=self._throttles + isinstance(error, ThrottledError),
            error=error,
            upload_id=upload_id or self.info.upload_id,
        )
        for listener in self._listeners:
            if nbytes:
                listener.tell(TransferObserver.progressed, self.info, TransferProgress(nbytes, object_size))
            listener.tell(TransferObserver.ended, self.info, end)


class Observations:
    """Begins observations, and finds the one that a transport tells a retry of."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # The collector may end a transfer in here.
        self._by_name: dict[_Name, list[Observation]] = {}

    def begin(self, operation: str, bucket: str, key: str | None, **facts: Any) -> Observation:
        """Tells of the start of a transfer; ``facts`` are further ones of ``TransferInfo``."""
        info = TransferInfo(next(_numbers), operation, bucket, key, time.monotonic(), **facts)
        observation = Observation(info, self)
        with self._lock:
            self._by_name.setdefault((operation, bucket, key), []).append(observation)
        return observation

    def forget(self, observation: Observation) -> None:
        """Takes note that a transfer has ended."""
        name = (observation.info.operation, observation.info.bucket, observation.info.key)
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

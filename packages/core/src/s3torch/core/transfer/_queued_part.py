"""A part that is sent as soon as its multipart upload has an id, so that its writer need not wait for it."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from s3torch.core.errors import TransferCancelledError
from s3torch.core.models import CompletedPart

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core.models import MultipartUpload
    from s3torch.core.seam import Transfer


class QueuedPart(Future[CompletedPart]):
    """The transfer of a part, which waits for another transfer first.

    Args:
        created: The beginning of the upload; where it fails, the part fails with the same error.
        start: Starts the part; called on a thread of the transport, or on this one if ``created`` is done.
    """

    def __init__(
        self,
        created: Transfer[MultipartUpload],
        start: Callable[[MultipartUpload], Transfer[CompletedPart]],
    ) -> None:
        super().__init__()
        self._start: Callable[[MultipartUpload], Transfer[CompletedPart]] | None = start
        self._sent: Transfer[CompletedPart] | None = None
        self._cancelled = False
        self._lock = threading.RLock()
        created.add_done_callback(self._begin)

    @property
    def was_sent(self) -> bool:
        """Tells whether the transport was given the part."""
        with self._lock:
            return self._sent is not None

    def cancel(self) -> bool:
        """Stops the part; one that was not sent yet never is."""
        with self._lock:
            if self.done():
                return False
            self._cancelled = True
            sent = self._sent
        if sent is not None:
            sent.cancel()
        return True

    def _begin(self, created: Transfer[MultipartUpload]) -> None:
        try:
            upload = created.result(0)
            with self._lock:
                if self._cancelled or self._start is None:
                    raise TransferCancelledError(  # noqa: TRY301
                        "the transfer was cancelled",
                        operation="UploadPart",
                        bucket=upload.bucket,
                        key=upload.key,
                    )
                self._sent = sent = self._start(upload)
        except BaseException as exc:  # noqa: BLE001 - It is raised where it is waited for.
            self._start = None
            self.set_exception(exc)
        else:
            # The function holds the part's bytes.
            self._start = None
            sent.add_done_callback(self._finish)

    def _finish(self, sent: Transfer[CompletedPart]) -> None:
        try:
            part = sent.result(0)
        except BaseException as exc:  # noqa: BLE001 - It is raised where it is waited for.
            self.set_exception(exc)
        else:
            self.set_result(part)

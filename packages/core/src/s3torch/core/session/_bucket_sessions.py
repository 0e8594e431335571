"""The keys of directory buckets (S3 Express One Zone): one session for each bucket, renewed before it ends.

All requests to a bucket are signed with the same session, so that a process asks for one per bucket and five
minutes.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from s3torch.core.errors import S3Error

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core.models import Credentials

# A session lives for 300 seconds. Within the first of these before its end one thread fetches the next while
# the others go on; within the second all wait for it.
_SHOULD_RENEW_SECONDS = 60
_MUST_RENEW_SECONDS = 10
_RETRY_SECONDS = 15

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Slot:
    """The session of one bucket."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    keys: Credentials | None = None
    # When renewing in advance makes sense again after it failed, by the monotonic clock.
    next_try: float = 0.0


class BucketSessions:
    """The sessions of one client in one process; may be shared by threads.

    Args:
        create: Sends one CreateSession request for a bucket and returns the keys, with their end.
    """

    def __init__(self, create: Callable[[str], Credentials]) -> None:
        self._create = create
        self._slots: dict[str, _Slot] = {}

    def credentials(self, bucket: str) -> Credentials:
        """Returns keys for a bucket that are valid now."""
        slot = self._slots.setdefault(bucket, _Slot())
        keys = slot.keys
        if keys is None or _seconds_left(keys) <= _MUST_RENEW_SECONDS:
            with slot.lock:
                if slot.keys is keys or slot.keys is None:
                    slot.keys = self._create(bucket)
                return slot.keys
        if _seconds_left(keys) <= _SHOULD_RENEW_SECONDS and slot.lock.acquire(blocking=False):
            try:
                self._renew_in_advance(bucket, slot, keys)
            finally:
                slot.lock.release()
        return slot.keys or keys

    def renew(self, bucket: str, stale: Credentials) -> bool:
        """Begins another session in place of one that S3 has refused; tells whether there is another now."""
        slot = self._slots.setdefault(bucket, _Slot())
        with slot.lock:
            if slot.keys is None or slot.keys == stale:
                slot.keys = self._create(bucket)
            return slot.keys != stale

    def _renew_in_advance(self, bucket: str, slot: _Slot, ending: Credentials) -> None:
        if slot.keys is not ending or time.monotonic() < slot.next_try:
            return
        try:
            slot.keys = self._create(bucket)
        except S3Error as exc:
            slot.next_try = time.monotonic() + _RETRY_SECONDS
            _log.debug("the session with %s goes on until it ends: %s", bucket, exc)


def _seconds_left(keys: Credentials) -> float:
    return 0.0 if keys.expires_at is None else (keys.expires_at - datetime.now(UTC)).total_seconds()

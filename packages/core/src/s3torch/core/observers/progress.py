"""A progress bar of bytes, with tqdm (extra ``progress``)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal, Self

from s3torch.core import _process
from s3torch.core.errors import ConfigurationError
from s3torch.core.observers._listening import TransferObserver, add_observer, remove_observer

if TYPE_CHECKING:
    from types import TracebackType

    from s3torch.core.observers._listening import TransferInfo, TransferProgress

__all__ = ["TransferProgressBar"]


class TransferProgressBar(TransferObserver):
    """Shows in one bar the bytes of all transfers of this process that start in its ``with`` block.

    It goes around whatever moves bytes: an epoch over a dataset, the saving and the loading of a checkpoint.
    A bar counts what its own process moves; the workers of a ``DataLoader`` are other processes.

    Args:
        total: How many bytes there will be, where that is known; without it there is no bar, but the bytes
            so far and their speed.
        direction: Only bytes that are read, or only those that are written; ``None`` for all.
        tqdm_options: Options of ``tqdm.tqdm``, as ``desc``, ``file``, ``disable`` or ``position``.

    Raises:
        ConfigurationError: tqdm is not installed.

    Example:
        >>> from s3torch.core import S3Client, S3ClientConfig
        >>> from s3torch.core.observers.progress import TransferProgressBar
        >>> from s3torch.core.transports.memory import MemoryStore
        >>> MemoryStore.at("http://bars").create_bucket("bucket")
        >>> config = S3ClientConfig(transport="memory", endpoint="http://bars")
        >>> with S3Client("us-east-1", s3client_config=config) as client:
        ...     with TransferProgressBar(1000, desc="saving", disable=True):
        ...         with client.put_object("bucket", "model.pt") as writer:
        ...             _ = writer.write(bytes(1000))
    """

    def __init__(
        self,
        total: int | None = None,
        *,
        direction: Literal["read", "write"] | None = None,
        **tqdm_options: Any,
    ) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError as exc:
            raise ConfigurationError(
                f"a progress bar needs tqdm, which cannot be imported here ({exc}); "
                "install it with pip install 's3torch[progress]'"
            ) from exc
        options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, **tqdm_options}
        self._bar = tqdm(total=total, **options)
        self._direction = direction
        self._pid = _process.here
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.
        self._closed = False

    @property
    def nbytes(self) -> int:
        """The bytes so far."""
        return int(self._bar.n)

    def progressed(self, transfer: TransferInfo, progress: TransferProgress) -> None:
        """Moves the bar."""
        if self._direction in {None, transfer.direction}:
            with self._lock:
                if not self._closed:
                    self._bar.update(progress.nbytes)

    def close(self) -> None:
        """Leaves the bar as it is; may be called again. The bar of a parent is not touched by its child."""
        remove_observer(self)
        if self._pid == _process.here:
            with self._lock:
                self._closed = True
                self._bar.close()

    def __enter__(self) -> Self:
        add_observer(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

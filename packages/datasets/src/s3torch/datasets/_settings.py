"""How a dataset reads: all options that both kinds of datasets have, in one value.

A new option is one line in ``ReadOptions``, which types the keyword arguments, and one in ``Settings``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.hedging import check_hedge_after
from s3torch.datasets.prefetch import check_prefetch
from s3torch.datasets.selection import Selection
from s3torch.datasets.transforms import identity

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import Self

    from s3torch.core import S3ClientConfig, S3Reader, S3ReaderConstructorProtocol
    from s3torch.datasets.ordering import Uneven

OnError = Literal["raise", "skip"]


class ReadOptions(TypedDict, total=False):
    """The keyword arguments of both kinds of datasets, besides those of every constructor."""

    prefetch: int | None
    on_error: OnError
    hedge_after: float | str | None
    select: Selection | None
    cache_dir: str | os.PathLike[str] | None
    cache_limit: int | None


class IterableOptions(ReadOptions, total=False):
    """Those of the iterable dataset."""

    rank: int | None
    world_size: int | None
    shuffle: bool
    seed: int
    uneven: Uneven


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the arguments of a dataset say about reading, checked."""

    endpoint: str | None = None
    transform: Callable[[S3Reader], Any] = identity
    s3client_config: S3ClientConfig | None = None
    reader_constructor: S3ReaderConstructorProtocol | None = None
    prefetch: int | None = None
    on_error: OnError = "raise"
    hedge_after: float | str | None = None
    select: Selection | None = None
    cache_dir: str | os.PathLike[str] | None = None
    cache_limit: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.transform):
            raise ConfigurationError(f"transform must be callable, got {self.transform!r}")
        if self.on_error not in {"raise", "skip"}:
            raise ConfigurationError(f"on_error must be 'raise' or 'skip', got {self.on_error!r}")
        check_prefetch(self.prefetch)
        check_hedge_after(self.hedge_after)
        if self.select is not None and not isinstance(self.select, Selection):
            raise ConfigurationError(f"select must be a Selection, got {self.select!r}")

    @classmethod
    def of(cls, dataset: type, **options: Any) -> Self:
        """Takes the keyword arguments of a kind of dataset.

        Raises:
            TypeError: There is no such argument.
            ConfigurationError: An argument is wrong.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise TypeError(f"{dataset.__name__} got an unexpected keyword argument {name!r}")
        return cls(**options)

    @property
    def hands_readers_out(self) -> bool:
        """Tells whether samples are unread readers, which hold no memory and can be pickled."""
        return self.transform is identity

    @property
    def reads_ahead(self) -> bool:
        """Tells whether downloads are started before they are asked for."""
        return self.prefetch != 0 and not self.hands_readers_out

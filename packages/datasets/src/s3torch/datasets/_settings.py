"""The settings of a dataset of any kind, in one value.

A new setting is one line in ``ReadOptions``, which types the keyword arguments, one in ``Settings``, and its
name in the datasets that have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypedDict, TypeVar

from s3torch.core.errors import ConfigurationError
from s3torch.datasets._opening import check_prefetch
from s3torch.datasets._ranges import check_hedge_after
from s3torch.datasets.order._epoch import check_uneven
from s3torch.datasets.sources._sources import Selection
from s3torch.datasets.transforms import identity

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from typing_extensions import TypeVar as DefaultTypeVar

    from s3torch.core import S3ClientConfig, S3Reader, S3ReaderConstructorProtocol
    from s3torch.datasets.formats import ShardFormat
    from s3torch.datasets.order._epoch import Uneven

    # The default transform returns the reader itself.
    SampleT = DefaultTypeVar("SampleT", default=S3Reader)
else:
    SampleT = TypeVar("SampleT")

InputT = TypeVar("InputT")
OnError = Literal["raise", "skip"]


class ReadOptions(TypedDict, total=False):
    """The keyword arguments of the datasets; each class says which of them it has."""

    prefetch: int | None
    on_error: OnError
    hedge_after: float | str | None
    select: Selection | None
    cache_dir: str | os.PathLike[str] | None
    cache_limit: int | None
    rank: int | None
    world_size: int | None
    shuffle: bool
    seed: int
    uneven: Uneven
    format: str | ShardFormat | None
    shuffle_buffer: int
    samples_per_worker: int | None
    shards_ahead: int
    index_location: str | os.PathLike[str] | None
    save_indexes: bool


class DatasetOptions(ReadOptions, Generic[InputT, SampleT], total=False):
    """The same with those that are also positional, where only keywords are taken."""

    endpoint: str | None
    transform: Callable[[InputT], SampleT]
    s3client_config: S3ClientConfig | None
    reader_constructor: S3ReaderConstructorProtocol | None
    enable_sharding: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Generic[InputT, SampleT]):
    """The arguments of a dataset, checked."""

    endpoint: str | None = None
    transform: Callable[[InputT], SampleT] = identity  # type: ignore[assignment]
    s3client_config: S3ClientConfig | None = None
    reader_constructor: S3ReaderConstructorProtocol | None = None
    enable_sharding: bool = False
    prefetch: int | None = None
    on_error: OnError = "raise"
    hedge_after: float | str | None = None
    select: Selection | None = None
    cache_dir: str | os.PathLike[str] | None = None
    cache_limit: int | None = None
    rank: int | None = None
    world_size: int | None = None
    shuffle: bool = False
    seed: int = 0
    uneven: Uneven = "keep"
    format: str | ShardFormat | None = None
    shuffle_buffer: int = 1000
    samples_per_worker: int | None = None
    shards_ahead: int = 2
    index_location: str | os.PathLike[str] | None = None
    save_indexes: bool = False

    def __post_init__(self) -> None:
        if not callable(self.transform):
            raise ConfigurationError(f"transform must be callable, got {self.transform!r}")
        if self.on_error not in {"raise", "skip"}:
            raise ConfigurationError(f"on_error must be 'raise' or 'skip', got {self.on_error!r}")
        check_prefetch(self.prefetch)
        check_hedge_after(self.hedge_after)
        check_uneven(self.uneven)
        if self.select is not None and not isinstance(self.select, Selection):
            raise ConfigurationError(f"select must be a Selection, got {self.select!r}")
        if self.cache_limit is not None and self.cache_dir is None:
            raise ConfigurationError("cache_limit needs cache_dir")
        numbers = (
            ("shuffle_buffer", self.shuffle_buffer, 1),
            ("shards_ahead", self.shards_ahead, 0),
            ("samples_per_worker", 1 if self.samples_per_worker is None else self.samples_per_worker, 1),
        )
        for name, value, lowest in numbers:
            if type(value) is not int or value < lowest:
                raise ConfigurationError(f"{name} must be an integer from {lowest} on, got {value!r}")

    @property
    def reads_ahead(self) -> bool:
        """Whether downloads are started before they are asked for.

        A reader that is handed out stays unread, so that it can be pickled and holds no memory.
        """
        return self.prefetch != 0 and self.transform is not identity

    @property
    def skips(self) -> bool:
        """Whether what is missing or has changed is left out."""
        return self.on_error == "skip"

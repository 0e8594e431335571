"""How the files of a rank are named: what stands in front of ``{n}.distcp``.

S3 scales by key prefix. Strategies that begin with a number, least significant digit first, spread the
ranks of a large job over many prefixes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Default(int):
    """A number that can be told from the same number given by a caller."""


_DEFAULT_LENGTH = _Default(10)


class S3PrefixStrategyBase(ABC):
    """Base class of prefix strategies; subclass it to name the files in your own way.

    ``strategy(rank)`` is what the writer uses, verbatim: with ``"mine/3/"`` the first file of the rank is
    ``mine/3/0.distcp``. Two ranks must not have the same prefix. The writer asks at every save.
    """

    def __init__(self) -> None:  # noqa: B027 - Subclasses call it, and need not have one.
        """Needs nothing; subclasses may."""

    def __call__(self, rank: int) -> str:
        return self.generate_prefix(rank)

    @abstractmethod
    def generate_prefix(self, rank: int) -> str:
        """Returns the prefix of the files of this rank."""


class DefaultPrefixStrategy(S3PrefixStrategyBase):
    """Names files as torch does: ``__{rank}_``."""

    def generate_prefix(self, rank: int) -> str:
        return f"__{rank}_"


class NumericPrefixStrategy(S3PrefixStrategyBase, ABC):
    """Spreads ranks over numbered prefixes: ``{number}/__{rank}_``, with the digits reversed.

    Args:
        base: The base of the numbers.
        epoch_num: Adds ``epoch_{n}/`` behind the number; 0 is written, too.
        min_prefix_length: Digits of a number at least.
        prefix_count: How many prefixes there are. ``None`` takes the world size, and 1 as long as there is no
            process group.
        min_prefix_len: Another name of ``min_prefix_length``.

    Attributes:
        base: The base of the numbers.
        epoch_num: The epoch, or ``None``.
        min_prefix_len: Digits of a number at least.

    Raises:
        ConfigurationError: A number is out of range. It is also a ``ValueError``.
        TypeError: Both names of the length are given.
    """

    def __init__(
        self,
        base: int,
        epoch_num: int | None = None,
        min_prefix_length: int = _DEFAULT_LENGTH,
        prefix_count: int | None = None,
        *,
        min_prefix_len: int | None = None,
    ) -> None:
        super().__init__()
        length = _one_length(min_prefix_length, min_prefix_len)
        if not _is_integer(length) or length < 1:
            raise ConfigurationError(f"Minimum prefix length must be positive, got {length}")
        _check_epoch(epoch_num)
        if prefix_count is not None and (not _is_integer(prefix_count) or prefix_count < 1):
            raise ConfigurationError(f"Prefix count must be a positive integer, got {prefix_count}")
        self.base = base
        self.epoch_num = epoch_num
        self.min_prefix_len = int(length)
        self._prefix_count = _world_size() if prefix_count is None else prefix_count

    @property
    def prefix_count(self) -> int:
        """How many prefixes there are."""
        # The strategy may be older than the process group.
        if self._prefix_count is None:
            self._prefix_count = _world_size()
        return self._prefix_count or 1

    @property
    def prefix_map(self) -> list[str]:
        """The numbers, by ``rank % prefix_count``."""
        return [self._prefix(number) for number in range(self.prefix_count)]

    def generate_prefix(self, rank: int) -> str:
        return _join(self._prefix(rank % self.prefix_count), self.epoch_num, rank)

    def _prefix(self, number: int) -> str:
        length = max(self.min_prefix_len, _digits(self.prefix_count, self.base))
        return self._format_number(number, length)[::-1]

    @abstractmethod
    def _format_number(self, number: int, length: int) -> str:
        """Writes a number with its most significant digit first, filled with zeros to ``length`` digits."""


class _FormattedPrefixStrategy(NumericPrefixStrategy):
    """Writes numbers as Python formats them."""

    _base: ClassVar[int]
    _letter: ClassVar[str]

    def __init__(
        self,
        epoch_num: int | None = None,
        min_prefix_length: int = _DEFAULT_LENGTH,
        prefix_count: int | None = None,
        *,
        min_prefix_len: int | None = None,
    ) -> None:
        super().__init__(
            self._base, epoch_num, min_prefix_length, prefix_count, min_prefix_len=min_prefix_len
        )

    def _format_number(self, number: int, length: int) -> str:
        return format(number, f"0{length}{self._letter}")


class BinaryPrefixStrategy(_FormattedPrefixStrategy):
    """Spreads ranks over binary prefixes, as ``1100000000/__3_``; arguments are those of the base class."""

    _base, _letter = 2, "b"


class HexPrefixStrategy(_FormattedPrefixStrategy):
    """Spreads ranks over hexadecimal ones, as ``a000000000/__10_``; arguments are those of the base class."""

    _base, _letter = 16, "x"


class RoundRobinPrefixStrategy(S3PrefixStrategyBase):
    """Shares ranks out between prefixes of yours, in turn: ``shard2/__3_``.

    Args:
        user_prefixes: At least one. Slashes at either end are dropped.
        epoch_num: Adds ``epoch_{n}/`` behind the prefix.

    Attributes:
        user_prefixes: The prefixes as they are used.
        epoch_num: The epoch, or ``None``.

    Raises:
        ConfigurationError: There is no prefix, or one of them is empty. It is also a ``ValueError``.
    """

    def __init__(self, user_prefixes: Sequence[str], epoch_num: int | None = None) -> None:
        super().__init__()
        if not user_prefixes:
            raise ConfigurationError("user_prefixes must not be empty")
        if isinstance(user_prefixes, str) or not all(isinstance(p, str) for p in user_prefixes):
            raise ConfigurationError(f"user_prefixes must be a list of strings, got {user_prefixes!r}")
        _check_epoch(epoch_num)
        self.user_prefixes = [prefix.strip("/") for prefix in user_prefixes]
        if not all(self.user_prefixes):
            raise ConfigurationError(f"no user prefix may be empty, got {list(user_prefixes)}")
        self.epoch_num = epoch_num

    def generate_prefix(self, rank: int) -> str:
        return _join(self.user_prefixes[rank % len(self.user_prefixes)], self.epoch_num, rank)


def _join(folder: str, epoch: int | None, rank: int) -> str:
    return f"{folder}/__{rank}_" if epoch is None else f"{folder}/epoch_{epoch}/__{rank}_"


@lru_cache
def _digits(count: int, base: int) -> int:
    """How many digits it takes to write ``count`` different numbers."""
    length = 1
    while base**length < count:
        length += 1
    return length


def _one_length(given: int, other_name: int | None) -> int:
    if other_name is not None and not isinstance(given, _Default):
        raise TypeError("give min_prefix_length or min_prefix_len, not both")
    return given if other_name is None else other_name


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_epoch(value: object) -> None:
    if value is not None and not _is_integer(value):
        raise ConfigurationError(f"Epoch number must be None or an integer, got {value}")


def _world_size() -> int | None:
    """Tells the world size, ``None`` as long as there is no process group."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return None

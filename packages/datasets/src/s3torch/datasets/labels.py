"""Labels that are part of the key, and numbers for them that are the same on every rank."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from s3torch.core import S3Reader

__all__ = ["ClassIndex", "PathLabel", "RegexLabel", "WithLabel"]


@dataclass(frozen=True, slots=True)
class PathLabel:
    """Takes a component of the key: by default the folder, as in ``train/cat/1.jpg``.

    Attributes:
        part: Which, counted from 0, or from the end for negative ones; -1 is the name of the file.
    """

    part: int = -2

    def __call__(self, key: str) -> str:
        """Returns the label of a key.

        Raises:
            ConfigurationError: The key has no such component.
        """
        parts = key.split("/")
        if not -len(parts) <= self.part < len(parts):
            raise ConfigurationError(f"the key {key!r} has no component {self.part}")
        return parts[self.part]


@dataclass(frozen=True, slots=True)
class RegexLabel:
    """Takes what a group of a regular expression matches anywhere in the key.

    Attributes:
        pattern: The expression, as in ``"class_([0-9]+)"``.
        group: The number or the name of the group.
    """

    pattern: str
    group: int | str = 1

    def __post_init__(self) -> None:
        try:
            compiled = re.compile(self.pattern)
        except re.error as exc:
            raise ConfigurationError(f"{self.pattern!r} is no regular expression: {exc}") from exc
        known = range(compiled.groups + 1) if isinstance(self.group, int) else compiled.groupindex
        if self.group not in known:
            raise ConfigurationError(f"{self.pattern!r} has no group {self.group!r}")

    def __call__(self, key: str) -> str:
        """Returns the label of a key.

        Raises:
            ConfigurationError: The expression does not match.
        """
        found = re.search(self.pattern, key)
        label: str | None = None if found is None else found[self.group]
        if label is None:
            raise ConfigurationError(f"the key {key!r} does not match {self.pattern!r}")
        return label


@dataclass(frozen=True, slots=True)
class ClassIndex:
    """Numbers for labels, in the order of the sorted labels, so that ranks with the same listing agree.

    Attributes:
        classes: The labels, sorted; the place of each is its number.
        class_to_idx: The number of each label.
    """

    classes: tuple[str, ...]
    class_to_idx: Mapping[str, int] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(sorted(set(self.classes))))
        object.__setattr__(self, "class_to_idx", {label: at for at, label in enumerate(self.classes)})

    @classmethod
    def from_keys(cls, keys: Iterable[str], label: Callable[[str], str]) -> ClassIndex:
        """Collects the labels of some keys."""
        return cls(tuple({label(key) for key in keys}))

    def __len__(self) -> int:
        return len(self.classes)

    def __call__(self, label: str) -> int:
        """Returns the number of a label.

        Raises:
            ConfigurationError: It is none of the labels.
        """
        number = self.class_to_idx.get(label)
        if number is None:
            raise ConfigurationError(f"unknown label {label!r}; there are {len(self.classes)}")
        return number


@dataclass(frozen=True, slots=True)
class WithLabel:
    """A transform that adds the label of the key: its samples are pairs of value and label.

    Attributes:
        transform: Makes the value of an unread reader.
        label: Makes the label of the key.
        index: Makes a number of the label; ``None`` keeps the label.
    """

    transform: Callable[[S3Reader], Any]
    label: Callable[[str], str] = PathLabel()
    index: ClassIndex | None = None

    def __call__(self, reader: S3Reader) -> tuple[Any, str | int]:
        """Returns value and label."""
        label = self.label(reader.key)
        return self.transform(reader), label if self.index is None else self.index(label)

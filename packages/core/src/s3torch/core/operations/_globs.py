"""Patterns of keys, as shells have them; pure functions of texts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Glob", "expand_braces", "without_covered"]

_FOLDERS = "**"
_MAX_ALTERNATIVES = 1000


class Glob:
    """A pattern of keys, as shells have them.

    | in a pattern | matches |
    | --- | --- |
    | ``*`` | any characters but ``/``, also none |
    | ``?`` | one character but ``/`` |
    | ``[abc]``, ``[a-z]``, ``[!a-z]`` | one of these characters, or one besides them and ``/`` |
    | ``**`` between slashes | any number of folders, also none; at the end everything below |
    | ``{a,b}`` | either pattern; may be nested |

    Everything else stands for itself. ``[*]`` is a star. Case matters, and names that begin with a dot are
    like all others, because to S3 they are.

    Args:
        pattern: The pattern.

    Raises:
        ConfigurationError: Its braces stand for more than 1,000 patterns.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._paths = [_Path.of(one) for one in expand_braces(pattern)]
        self._regex = re.compile("|".join(path.regex for path in self._paths), re.DOTALL)

    def matches(self, key: str) -> bool:
        """Whether a key is one that the pattern means."""
        return self._regex.fullmatch(key) is not None

    @property
    def prefixes(self) -> list[str]:
        """The prefixes below which all keys are that the pattern means, none of them below another."""
        return without_covered(path.literal(0) for path in self._paths)

    def below(self, folder: str) -> list[str]:
        """Tells where below a folder keys can be that the pattern means.

        Args:
            folder: What keys begin with, up to a slash and with it.

        Returns:
            Prefixes that begin with the folder, none of them below another; nothing where no key matches.
        """
        return without_covered(
            folder + path.literal(position) for path in self._paths for position in path.after(folder)
        )

    def prunes(self, prefix: str) -> bool:
        """Whether asking for the folders below a prefix is likely to save more than it costs."""
        folder = prefix[: prefix.rfind("/") + 1]
        places = [(path, position) for path in self._paths for position in path.after(folder)]
        return bool(places) and all(path.is_selective(position) for path, position in places)


@dataclass(frozen=True)
class _Name:
    """The pattern of what stands between two slashes."""

    regex: str
    # What it begins with, and whether that is all of it.
    literal: str
    is_literal: bool

    @property
    def is_any(self) -> bool:
        return self.regex == _ANY

    @cached_property
    def compiled(self) -> re.Pattern[str]:
        return re.compile(self.regex, re.DOTALL)


@dataclass(frozen=True)
class _Path:
    """A pattern without braces; ``None`` stands for any number of folders."""

    names: tuple[_Name | None, ...]

    @classmethod
    def of(cls, pattern: str) -> _Path:
        names: list[_Name | None] = []
        for text in pattern.split("/"):
            if text != _FOLDERS:
                names.append(_parse(text))
            elif not names or names[-1] is not None:
                names.append(None)
        return cls(tuple(names))

    @property
    def regex(self) -> str:
        last = len(self.names) - 1
        pieces = []
        for position, name in enumerate(self.names):
            if name is None:
                pieces.append(".*" if position == last else "(?:[^/]*/)*")
            else:
                pieces.append(name.regex + ("" if position == last else "/"))
        return "".join(pieces)

    def literal(self, position: int) -> str:
        """What all keys have in common from this name on."""
        text = ""
        for number, name in enumerate(self.names[position:], position):
            if name is None:
                break
            text += name.literal
            if not name.is_literal:
                break
            if number < len(self.names) - 1:
                text += "/"
        return text

    def after(self, folder: str) -> set[int]:
        """The names that may come next behind a folder."""
        places = self._with_skipped({0})
        for text in folder.split("/")[:-1]:
            places = self._with_skipped(self._step(places, text))
        return places

    def is_selective(self, position: int) -> bool:
        name, last = self.names[position], len(self.names) - 1
        if name is None:
            return False
        if position == last or not name.is_any:
            return True
        following = self.names[position + 1]
        return position + 1 < last and following is not None and not following.is_any

    def _step(self, places: set[int], text: str) -> set[int]:
        following = set()
        for position in places:
            name = self.names[position]
            if name is None:
                following.add(position)
            elif position < len(self.names) - 1 and name.compiled.fullmatch(text):
                following.add(position + 1)
        return following

    def _with_skipped(self, places: set[int]) -> set[int]:
        # Any number of folders may be none.
        last = len(self.names) - 1
        return places | {place + 1 for place in places if self.names[place] is None and place < last}


def expand_braces(pattern: str) -> list[str]:
    """Writes a pattern out: ``a{b,c}`` is ``ab`` and ``ac``; braces without a comma stand for themselves.

    Raises:
        ConfigurationError: There would be more than 1,000 patterns.
    """
    expanded = [""]
    position = 0
    while position < len(pattern):
        choices, end = _group(pattern, position)
        if choices is None:
            alternatives = [pattern[position:end]]
        else:
            alternatives = [text for choice in choices for text in expand_braces(choice)]
        expanded = [text + more for text in expanded for more in alternatives]
        if len(expanded) > _MAX_ALTERNATIVES:
            raise ConfigurationError(
                f"the braces stand for more than {_MAX_ALTERNATIVES} patterns: {pattern!r}"
            )
        position = end
    return list(dict.fromkeys(expanded))


def without_covered(prefixes: Iterable[str]) -> list[str]:
    """Sorts prefixes, without those that begin with another one."""
    kept: list[str] = []
    for prefix in sorted(set(prefixes)):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return kept


def _group(pattern: str, start: int) -> tuple[list[str] | None, int]:
    """Reads the choices in braces that begin here, or the text up to the next brace."""
    if pattern[start] != "{":
        end = pattern.find("{", start)
        return None, end if end >= 0 else len(pattern)
    depth, choices, begin = 0, [], start + 1
    for position in range(start, len(pattern)):
        character = pattern[position]
        depth += (character == "{") - (character == "}")
        if (character == "," and depth == 1) or depth == 0:
            choices.append(pattern[begin:position])
            begin = position + 1
        if depth == 0:
            return (choices if len(choices) > 1 else None), position + 1 if len(choices) > 1 else start + 1
    return None, start + 1


_ANY = "[^/]*"
_ONE = "[^/]"


def _parse(text: str) -> _Name:
    regex, literal, is_literal = "", "", True
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if character == "*":
            piece = _ANY if not regex.endswith(_ANY) else ""
            only = None
        elif character == "?":
            piece, only = _ONE, None
        elif character == "[" and (end := _end_of_class(text, position)):
            piece, only = _class(text[position:end])
            position = end + 1
        else:
            piece, only = re.escape(character), character
        regex += piece
        if only is None:
            is_literal = False
        elif is_literal:
            literal += only
    return _Name(regex, literal, is_literal)


def _end_of_class(text: str, start: int) -> int:
    """Finds the bracket that closes a class; 0 where there is none. The first character never does."""
    return max(0, text.find("]", start + 1 + text.startswith("!", start)))


def _class(text: str) -> tuple[str, str | None]:
    """Makes a regular expression of what is in brackets, and tells the only character that it means."""
    negated = text.startswith("!")
    members = text[1:] if negated else text
    if len(members) == 1 and not negated:
        return re.escape(members), members
    pieces: list[str] = []
    position = 0
    while position < len(members):
        first = last = members[position]
        if members[position + 1 : position + 2] == "-" and position + 2 < len(members):
            last = members[position + 2]
            position += 2
        position += 1
        if first <= last:
            pieces.append(f"{re.escape(first)}-{re.escape(last)}")
    if not pieces:
        return (_ONE if negated else "(?!)"), None
    return f"(?!/)[{'^' if negated else ''}{''.join(pieces)}]", None

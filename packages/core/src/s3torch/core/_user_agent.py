"""What requests say they come from."""

from __future__ import annotations

import platform
import sys

from s3torch.core._version import __version__
from s3torch.core.errors import ConfigurationError

__all__ = ["UserAgent"]

_SYSTEMS = {"linux": "linux", "darwin": "macos", "win32": "windows"}


class UserAgent:
    """Builds the value of the ``User-Agent`` header.

    Args:
        comments: What the code that uses the client wants to be known by; goes into parentheses at the end.
    """

    def __init__(self, comments: list[str] | None = None) -> None:
        if comments is not None and not (
            isinstance(comments, list) and all(isinstance(comment, str) for comment in comments)
        ):
            raise ConfigurationError("Argument comments must be a List[str]")
        self._comments = tuple(comments or ())

    @property
    def prefix(self) -> str:
        """The whole value, with the comments."""
        comments = "; ".join(filter(None, self._comments))
        return f"{self.get_default_prefix()} ({comments})" if comments else self.get_default_prefix()

    @staticmethod
    def get_default_prefix() -> str:
        """The value without comments: package, operating system, Python, machine, and torch if installed."""
        system = _SYSTEMS.get(sys.platform, sys.platform)
        python = ".".join(str(number) for number in sys.version_info[:3])
        fields = [
            f"s3torch/{__version__}",
            "ua/2.1",
            f"os/{system}#{platform.release()}",
            f"lang/python#{python}",
            f"md/arch#{platform.machine()}",
        ]
        # Imported late: this is where plugins are loaded.
        from s3torch.core.plugins._manager import user_agent_tokens

        return " ".join([*fields, *user_agent_tokens()])

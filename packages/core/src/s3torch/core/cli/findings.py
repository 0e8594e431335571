"""What ``s3torch doctor`` finds; other packages make findings, too, with ``s3torch_doctor_checks``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Finding", "Severity"]


class Severity(IntEnum):
    """How much a finding matters; the worst decides the exit code of ``doctor``."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and how it is.

    Attributes:
        topic: The heading that it stands under, as in ``"Machine"``.
        name: What was looked at, in a word or two, as in ``"open files"``.
        severity: How much it matters.
        text: How it is, in a sentence without a secret.
        remedy: What to do about it; ``None`` where nothing has to be done.
        facts: The same for programs (``--json``).
    """

    topic: str
    name: str
    severity: Severity
    text: str
    remedy: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)

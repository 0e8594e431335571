"""Which questions there are, and what a run of one of them has measured.

A question is a file of ``tools/bench`` that can be run. It takes ``--rounds N``, runs every case in turn,
round after round, and measures each with ``measure.in_child``, which notes the figures where ``BENCH_NOTES``
says. The runner needs to know no more. Of a question that has ``--quick``,
``--works`` or ``--on`` it uses them.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = Path(__file__).resolve().parents[1]
# What most people do comes first, also when time is short.
_FIRST = ("objects", "dataset", "dcp", "checkpoints", "cold_start")
_NO_QUESTIONS = {"run", "measure"}


@dataclass(frozen=True)
class Question:
    """A file that asks something.

    Attributes:
        path: The file.
        title: The first line of its docstring.
        is_plain_question: Whether it is one of ``measure.main``, which can count requests and use a bucket.
    """

    path: Path
    title: str
    is_plain_question: bool = True

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.stem

    @cached_property
    def options(self) -> str:
        """What it says of its options."""
        done = subprocess.run(
            [sys.executable, str(self.path), "--help"], capture_output=True, text=True, check=False
        )
        return done.stdout

    def knows(self, option: str) -> bool:
        """Whether it has an option."""
        return re.search(rf"{option}\b", self.options) is not None


@dataclass(frozen=True)
class Run:
    """What a run of a question has measured.

    Attributes:
        question: Its name.
        title: What it asks.
        notes: What ``in_child`` has noted, in order.
        seconds: How long all of it took.
        failure: The end of what it printed, if it failed.
    """

    question: str
    title: str
    notes: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    failure: str | None = None


def questions() -> list[Question]:
    """Finds all questions, in the order in which they run."""
    found = []
    for path in FOLDER.glob("*.py"):
        source = path.read_text(encoding="utf-8")
        is_plain = "main(" in source and "Question(" in source
        if path.stem not in _NO_QUESTIONS and (is_plain or "in_child(" in source):
            told = ast.get_docstring(ast.parse(source)) or path.stem
            found.append(Question(path, told.splitlines()[0], is_plain))
    places = {name: place for place, name in enumerate(_FIRST)}
    return sorted(found, key=lambda one: (places.get(one.name, len(places)), one.name))


def run(
    question: Question, *options: str, environment: dict[str, str] | None = None, limit: float | None = None
) -> Run:
    """Runs a question and collects what it measures.

    Args:
        question: The question.
        options: For its command line.
        environment: Variables besides those of this process.
        limit: Seconds after which it is ended; what it has measured until then counts.
    """
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        variables = {**os.environ, **(environment or {}), "BENCH_NOTES": str(notes)}
        begin = time.monotonic()
        failure = _call([sys.executable, str(question.path), *options], variables, limit)
        lines = notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []
    seconds = time.monotonic() - begin
    return Run(question.name, question.title, [json.loads(line) for line in lines], seconds, failure)


def _call(command: list[str], variables: dict[str, str], limit: float | None) -> str | None:
    with subprocess.Popen(
        command,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit)
        except BaseException as exc:
            # With the cases that it has started; servers live no longer than it does.
            os.killpg(process.pid, signal.SIGTERM)
            if not isinstance(exc, subprocess.TimeoutExpired):
                raise
            return f"ended after {limit:.0f} seconds"
    return None if process.returncode == 0 else output[-2000:]


def chosen(names: Iterable[str]) -> list[Question]:
    """Finds questions by their names; all without any.

    Raises:
        SystemExit: There is none of that name.
    """
    every = questions()
    wanted = set(names)
    unknown = wanted - {one.name for one in every}
    if unknown:
        raise SystemExit(
            f"no question {', '.join(sorted(unknown))}; there are {', '.join(one.name for one in every)}"
        )
    return [one for one in every if not wanted or one.name in wanted]

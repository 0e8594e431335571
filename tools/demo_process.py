"""The training process as the demonstration sees it: it sends events, and it can be killed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = ["Event", "Life", "TrainingFailedError", "TrainingProcess"]

SCRIPT = Path(__file__).with_name("demo_training.py")
LAST_LINES = 30
# Killed workers count as present until the first process of the machine has taken note of their end.
PATIENCE = 2.0
# Seconds without an event after which the training is taken to hang.
SILENCE = 100

Event = dict[str, Any]


@dataclass
class Life:
    """What one training process has told, from its start to its end or death."""

    events: list[Event] = field(default_factory=list)
    death: str = ""

    @property
    def first_epoch(self) -> int:
        """The epoch that it began with."""
        return int(self.of("step")[0]["epoch"])

    @property
    def last_epoch(self) -> int:
        """The epoch that it was in when it ended."""
        return int(self.of("step")[-1]["epoch"])

    def of(self, name: str) -> list[Event]:
        """Return the events with a name."""
        return [event for event in self.events if event["event"] == name]


class TrainingFailedError(Exception):
    """The training process has failed by itself; the text ends with what it wrote last."""


class TrainingProcess:
    """A run of the training script with its workers, in a process group of its own.

    Ctrl-C in a terminal does not reach that group. Leaving the ``with`` block ends it and removes what it
    left behind.

    Args:
        arguments: The arguments of the script.
    """

    def __init__(self, arguments: list[str]) -> None:
        # A process that is killed does not tidy up, so its temporary files go into a folder of their own. The
        # name is short, because DataLoader workers make sockets there, whose paths have at most 104 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="s3t-", ignore_cleanup_errors=True)
        self._log = Path(self._folder.name) / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(SCRIPT), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "TMPDIR": self._folder.name},
                process_group=0,
            )

    def events(self) -> Iterator[Event]:
        """Yield what the process tells until it ends or is killed from here.

        Raises:
            TrainingFailedError: It ended with an error, or tells nothing any more.
        """
        for line in self._lines():
            yield json.loads(line)
        # Its workers write to the same pipe, so the end of it means that they have ended, too.
        code = self._process.wait()
        if code:
            raise TrainingFailedError(f"the training ended with code {code}:\n{self._last_words()}")

    def _lines(self) -> Iterator[bytes]:
        assert self._process.stdout is not None  # noqa: S101  (for mypy)
        pipe = self._process.stdout.fileno()
        rest = b""
        while select.select([pipe], [], [], SILENCE)[0]:
            chunk = os.read(pipe, 65536)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
        raise TrainingFailedError(f"the training has told nothing for {SILENCE} s:\n{self._last_words()}")

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LAST_LINES:])

    def kill(self) -> None:
        """Kill the process and its workers with SIGKILL, and wait until none of them is left."""
        group = self._process.pid
        if self._process.returncode is None:
            # Its number cannot be given to another group before it is waited for.
            os.killpg(group, signal.SIGKILL)
            self._process.wait()
            deadline = time.monotonic() + PATIENCE
            while _exists(group) and time.monotonic() < deadline:
                time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True

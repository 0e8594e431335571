"""A program of another kind that runs for as long as this process needs it, and never longer.

Between this process and the program stands a small supervisor (``_supervisor.py``) in a session of its own,
holding one end of a pipe. When this process closes its end, ends, or is killed with SIGKILL, the supervisor
kills the program and removes its directory. The obvious alternative, to let the kernel kill the program with
``PR_SET_PDEATHSIG``, is not safe from here: it needs Python code between fork and exec, which may deadlock
where there are other threads, and it fires at the end of the *thread* that started the program. The
supervisor, which has one thread, does use it, so that the program does not outlive the supervisor either.
Ctrl-C in a terminal reaches neither of the two: the program is there until this process has cleaned up.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from s3torch.core.ranges import GIB, KIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_SUPERVISOR = Path(__file__).with_name("_supervisor.py")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the directory in it has an unguessable name and mode 0700
_ROOM = 2 * GIB
_TAIL = 4 * KIB
_FIRST_POLL, _LONGEST_POLL = 0.01, 0.1
_STOP_TIMEOUT = 10.0


class ServerStartError(RuntimeError):
    """A test server did not start; the text ends with the last lines of its log."""


def _make_directory(name: str) -> Path:
    parent = None
    try:
        if shutil.disk_usage(_SHARED_MEMORY).free >= _ROOM and os.access(_SHARED_MEMORY, os.W_OK):
            parent = _SHARED_MEMORY
    except OSError:
        pass  # There is none on this system.
    return Path(tempfile.mkdtemp(prefix=f"s3torch-{name}-", dir=parent))


class SupervisedProcess:
    """A running program with a working directory that lives as long as the program.

    The directory is in memory where there is room, else among the temporary files. ``stop`` is left to the
    process that started the program; in a forked child it does nothing.

    Args:
        name: What the program is called in the directory's name and in errors.
        command: The program and its arguments.
        environment: Its environment, whole but for ``HOME``, which is the directory.
        files: What to put into the directory first.
        leftovers: Files elsewhere that the program leaves behind when it is killed.
        grace: Seconds that it has for an orderly end before it is killed; 0 kills it at once.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        files: Mapping[str, bytes] | None = None,
        leftovers: Iterable[Path] = (),
        grace: float = 0.0,
    ) -> None:
        self.directory = _make_directory(name)
        self._name = name
        self._grace = grace
        self._owner = os.getpid()
        try:
            for file, content in (files or {}).items():
                (self.directory / file).write_bytes(content)
            self._supervisor = self._launch(command, environment, leftovers)
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def _launch(
        self, command: Sequence[str], environment: Mapping[str, str], leftovers: Iterable[Path]
    ) -> subprocess.Popen[bytes]:
        specification = {
            "command": list(command),
            "parent": self._owner,
            "leftovers": [str(path) for path in leftovers],
            "grace": self._grace,
        }
        return subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", "-S", str(_SUPERVISOR), json.dumps(specification)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.directory,
            env={**environment, "HOME": str(self.directory)},
            start_new_session=True,
        )

    def wait_until(self, ready: Callable[[], bool], *, timeout: float) -> None:
        """Waits until the program is ready for work.

        Args:
            ready: Asked again and again.
            timeout: Seconds to wait in all.

        Raises:
            ServerStartError: The program has ended or is not ready in time. It is not stopped by this.
        """
        deadline = time.monotonic() + timeout
        pause = _FIRST_POLL
        while True:
            if self.ended():
                raise ServerStartError(f"{self._name} ended instead of starting; its log:\n{self.log_tail()}")
            if ready():
                return
            if time.monotonic() > deadline:
                raise ServerStartError(
                    f"{self._name} was not ready after {timeout:g} s; its log:\n{self.log_tail()}"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL)

    def ended(self) -> bool:
        """Tells whether the program has ended by itself."""
        return (self.directory / "exit-code").exists() or self._supervisor.poll() is not None

    def log_tail(self) -> str:
        """Returns the last lines of what the program has written."""
        try:
            with (self.directory / "server.log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
                return log.read().decode(errors="replace").strip() or "(empty)"
        except FileNotFoundError:
            return "(none)"

    def stop(self) -> None:
        """Ends the program and removes its directory; may be called again."""
        if os.getpid() != self._owner or self._supervisor.stdin is None:
            return
        if self._supervisor.poll() is None:
            # Closing alone is not enough: a forked child may hold a copy of this end.
            with contextlib.suppress(BrokenPipeError):
                self._supervisor.stdin.write(b"\n")
                self._supervisor.stdin.flush()
        with contextlib.suppress(BrokenPipeError):
            self._supervisor.stdin.close()
        try:
            self._supervisor.wait(self._grace + _STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()
        # Nothing is there any more, unless the supervisor itself has been killed.
        shutil.rmtree(self.directory, ignore_errors=True)

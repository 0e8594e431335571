"""A program of another kind that runs for as long as this process needs it, and never longer.

Between this process and the program stands a small supervisor in a session of its own, holding one end of a
pipe. When this process closes its end, ends, or is killed with SIGKILL, the supervisor kills the program and
removes its directory. The obvious alternative, to let the kernel kill the program with ``PR_SET_PDEATHSIG``,
is not safe from here: it needs Python code between fork and exec, which may deadlock where there are other
threads, and it fires at the end of the *thread* that started the program. The supervisor, which has one
thread, does use it, so that the program does not outlive the supervisor either. Ctrl-C in a terminal reaches
neither of the two: the program is there until this process has cleaned up.

The supervisor runs this file, ``python -I -S _process.py SPECIFICATION``. It imports the standard library
only, and starts in some 30 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the directory in it has an unguessable name and mode 0700
_ROOM = 2 << 30
_TAIL = 4096
_FIRST_POLL, _LONGEST_POLL = 0.01, 0.1
_STOP_TIMEOUT = 10.0
_PR_SET_PDEATHSIG = 1
_SUPERVISION_INTERVAL = 0.2


class ServerStartError(RuntimeError):
    """A test server did not start; the text ends with the last lines of its log."""


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
        specification = {
            "command": list(command),
            "parent": self._owner,
            "leftovers": [str(path) for path in leftovers],
            "grace": grace,
        }
        try:
            for file, content in (files or {}).items():
                (self.directory / file).write_bytes(content)
            self._supervisor = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-I", "-S", __file__, json.dumps(specification)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self.directory,
                env={**environment, "HOME": str(self.directory)},
                start_new_session=True,
            )
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

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
            if (self.directory / "exit-code").exists() or self._supervisor.poll() is not None:
                raise ServerStartError(f"{self._name} ended instead of starting; its log:\n{self._log()}")
            if ready():
                return
            if time.monotonic() > deadline:
                raise ServerStartError(
                    f"{self._name} was not ready after {timeout:g} s; its log:\n{self._log()}"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL)

    def _log(self) -> str:
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
        with contextlib.suppress(BrokenPipeError, ValueError):  # The supervisor has ended, or was stopped.
            # Closing alone is not enough: a forked child may hold a copy of this end.
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


def _make_directory(name: str) -> Path:
    parent = None
    with contextlib.suppress(OSError):  # There is no such directory on this system.
        if shutil.disk_usage(_SHARED_MEMORY).free >= _ROOM and os.access(_SHARED_MEMORY, os.W_OK):
            parent = _SHARED_MEMORY
    return Path(tempfile.mkdtemp(prefix=f"s3torch-{name}-", dir=parent))


def _supervise() -> None:
    """Runs the command of the specification, and cleans up behind it: what the supervisor does."""
    # The session is its own, so Ctrl-C in a terminal does not come here; but a script may send it to all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit)
    specification = json.loads(sys.argv[1])
    directory = Path.cwd()
    try:
        with Path("server.log").open("ab") as log:
            child = subprocess.Popen(  # noqa: S603 - the command comes from the owner
                specification["command"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=_die_with_supervisor if sys.platform == "linux" else None,  # noqa: PLW1509
            )
        try:
            _wait_for_end(child, specification["parent"])
        finally:
            _stop(child, specification["grace"])
            # A server that gave up by itself may have found its ports in use: the files are of another one.
            if child.returncode <= 0:
                for path in specification["leftovers"]:
                    Path(path).unlink(missing_ok=True)
    finally:
        os.chdir("/")
        shutil.rmtree(directory, ignore_errors=True)


def _exit(*_: object) -> NoReturn:
    raise SystemExit(0)


def _die_with_supervisor() -> None:
    # The supervisor has one thread, so running Python between fork and exec is safe here, and the thread
    # whose end the kernel watches is the process itself. Nothing can be done about it if it fails.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for_end(child: subprocess.Popen[bytes], parent: int) -> None:
    """Returns when the owner says so, has closed its end of the pipe, or is no longer there.

    The pipe tells it at once. It does not suffice: a process that the owner has forked holds a copy of the
    owner's end, and would keep the server for as long as it lives.
    """
    reported = False
    while os.getppid() == parent:
        if select.select([sys.stdin], [], [], _SUPERVISION_INTERVAL)[0]:
            return
        if not reported and child.poll() is not None:
            Path("exit-code").write_text(str(child.returncode))
            reported = True


def _stop(child: subprocess.Popen[bytes], grace: float) -> None:
    if child.poll() is None and grace:
        os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace)
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


if __name__ == "__main__":
    _supervise()

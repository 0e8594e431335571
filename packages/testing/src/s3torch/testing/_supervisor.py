"""The program that keeps a test server alive for exactly as long as its owner needs it.

It is run as a file, ``python -I -S _supervisor.py SPECIFICATION``, by ``s3torch.testing._process``,
where the reasons are. It starts in some 20 ms, as it imports nothing but the standard library.
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
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_INTERVAL = 0.2


def _exit(*_: object) -> NoReturn:
    raise SystemExit(0)


def _die_with_supervisor() -> None:
    # This process has one thread, so running Python between fork and exec is safe here, and the thread
    # whose end the kernel watches is the process itself. Nothing can be done about it if it fails.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for_end(child: subprocess.Popen[bytes], parent: int) -> None:
    """Returns when the owner says so, has closed its end of the pipe, or is no longer there.

    The pipe tells it at once. It does not suffice: a process that the owner has forked holds a copy of the
    owner's end, and would keep the server for as long as it lives.
    """
    reported = False
    while os.getppid() == parent:
        if select.select([sys.stdin], [], [], _INTERVAL)[0]:
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


def main() -> None:
    """Runs the command of the specification, and cleans up behind it."""
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


if __name__ == "__main__":
    main()

"""The native log of ``crt``, which is switched on by the environment.

``S3TORCH_CRT_LOG`` is a level: ``off`` (the default), ``fatal``, ``error``, ``warn``, ``info``, ``debug`` or
``trace``. The log goes to stderr, or, with ``S3TORCH_CRT_LOG_DIR``, to a file of each process in that folder.
awscrt takes one log per process, and its lock does not survive a fork. So the log begins with the first
native client, which a program that only starts workers never makes, and a child of a process with a log has
none. awscrt hands each line to a thread that writes it. A process that ends waits until its file is complete;
on stderr the last lines may be missing.
"""

from __future__ import annotations

import ctypes
import logging
import os
import time
from multiprocessing.util import Finalize
from pathlib import Path

from s3torch.core._process import PerProcess

_LEVEL = "S3TORCH_CRT_LOG"
_FOLDER = "S3TORCH_CRT_LOG_DIR"
_LEVELS = {
    "off": "NoLogs",
    "fatal": "Fatal",
    "error": "Error",
    "warn": "Warn",
    "info": "Info",
    "debug": "Debug",
    "trace": "Trace",
}

_COMPLETE_SECONDS = 5.0
_LOOK_SECONDS = 0.005
_TAIL = 2**16

_log = logging.getLogger(__name__)


class NativeLog:
    """The log of one process; begins, where it is wanted, as soon as this is made."""

    def __init__(self) -> None:
        name = os.environ.get(_LEVEL, "").strip().lower() or "off"
        if name not in _LEVELS:
            _log.warning(
                "%s=%r is not a level, so there is no native log. Levels: %s",
                _LEVEL,
                name,
                ", ".join(_LEVELS),
            )
        elif name != "off":
            self._begin(name)

    def _begin(self, name: str) -> None:
        from awscrt.io import LogLevel, init_logging

        try:
            target = _target()
            init_logging(LogLevel[_LEVELS[name]], target or "stderr")
        except RuntimeError:  # The program, or the parent of this process, has begun one.
            return
        except OSError as exc:
            _log.warning("there is no native log: %s", exc)
            return
        if target is not None:
            # From "info" on it has the headers of requests, session tokens and customer keys among them.
            Path(target).chmod(0o600)
            # Workers of multiprocessing end without the functions of the interpreter and the C library.
            Finalize(None, _complete, (target,), exitpriority=0)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_silence)


native_log = PerProcess(NativeLog)


def _target() -> str | None:
    folder = os.environ.get(_FOLDER)
    if not folder:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    # Numbers of processes are used again.
    moment = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
    return str(Path(folder, f"awscrt.{moment}.{os.getpid()}.log"))


def _complete(path: str) -> None:
    """Waits until the file has all lines so far, of which the last is one of ours."""
    from awscrt.logging import LogSubject, log

    end = f"process {os.getpid()} ends"
    log(logging.CRITICAL, LogSubject.COMMON_GENERAL, end)
    write_out = ctypes.CDLL(None).fflush
    deadline = time.monotonic() + _COMPLETE_SECONDS
    while time.monotonic() < deadline:
        write_out(None)
        if _ends_with(path, end.encode()):
            return
        time.sleep(_LOOK_SECONDS)


def _ends_with(path: str, text: bytes) -> bool:
    try:
        with Path(path).open("rb") as file:
            # Threads of the CRT may log behind it.
            file.seek(max(0, Path(path).stat().st_size - _TAIL))
            return text in file.read()
    except OSError:  # Somebody has taken it away.
        return True


def _silence() -> None:
    # A thread of the parent may have held the lock of the log at the fork.
    from awscrt.io import LogLevel, set_log_level

    set_log_level(LogLevel.NoLogs)

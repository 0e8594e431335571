"""The native log of awscrt, switched on by the environment.

``S3TORCH_CRT_LOG`` is a level: ``off`` (the default), ``fatal``, ``error``, ``warn``, ``info``, ``debug`` or
``trace``. The log goes to stderr, or, with ``S3TORCH_CRT_LOG_DIR``, to a file of each process in that folder.

awscrt takes one log per process, and its lock does not survive a fork. So the log begins with the first
native client, which a program that only starts workers never makes, and a child of a process with a log has
none.
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

_log = logging.getLogger(__name__)


class NativeLog:
    """The log of one process; begins, where it is wanted, as soon as this is made."""

    def __init__(self) -> None:
        name = os.environ.get(_LEVEL, "").strip().lower() or "off"
        if name not in _LEVELS:
            _log.warning(
                "%s=%r is no level; there is no native log. Levels: %s", _LEVEL, name, ", ".join(_LEVELS)
            )
        elif name != "off":
            self._begin(name)

    def _begin(self, name: str) -> None:
        from awscrt.io import LogLevel, init_logging

        try:
            init_logging(LogLevel[_LEVELS[name]], _target())
        except RuntimeError:  # The program, or the parent of this process, has begun one.
            return
        except OSError as exc:
            _log.warning("there is no native log: %s", exc)
            return
        # Workers of multiprocessing end without the functions of the C library that write the rest out.
        Finalize(None, ctypes.CDLL(None).fflush, (None,), exitpriority=0)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_silence)


native_log = PerProcess(NativeLog)


def _target() -> str:
    folder = os.environ.get(_FOLDER)
    if not folder:
        return "stderr"
    Path(folder).mkdir(parents=True, exist_ok=True)
    # Numbers of processes are used again.
    moment = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
    return str(Path(folder, f"awscrt.{moment}.{os.getpid()}.log"))


def _silence() -> None:
    # A thread of the parent may have held the lock of the log at the fork.
    from awscrt.io import LogLevel, set_log_level

    set_log_level(LogLevel.NoLogs)

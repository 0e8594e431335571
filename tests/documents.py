"""The code of the READMEs, the pages of the site and the examples, and a process that runs it.

What is slow to import is imported once, in the process of ``ScriptRunner``; each script runs in a fork of it.
Run as a program, this file is that process.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Imported before the first fork; none of them starts threads.
PRELOADED = (
    "lightning",
    "pytest",
    "torch.distributed.checkpoint",
    "s3torch.datasets",
    "s3torch.dcp",
    "s3torch.fsspec",
    "s3torch.lightning",
    "s3torch.testing.transport_tests",
)
# Python to be read, Python that only prepares what the page takes for granted, and commands.
_BLOCK = re.compile(
    r"^```python\n(?P<python>.*?)^```$|^<!-- python\n(?P<hidden>.*?)^-->$|^```sh\n(?P<shell>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def python_of(text):
    """Returns all Python of a Markdown text as one script; blocks keep their line numbers."""
    lines = []
    for block in _BLOCK.finditer(text):
        start = text.count("\n", 0, block.start()) + 1
        lines += [""] * (start - len(lines))
        lines += (block["python"] or block["hidden"] or commands_of(block["shell"] or "")).splitlines()
    return "\n".join(lines) + "\n"


def commands_of(shell):
    """Returns Python that runs the ``s3torch`` commands among some shell lines."""
    lines = shell.replace("\\\n", " ").splitlines()
    return "\n".join(f"run_command({line!r})" for line in lines if line.startswith("s3torch "))


class ScriptRunner:
    """Runs scripts one after the other, each in a fork of one process."""

    def __init__(self):
        command = [sys.executable, __file__]
        # What runs here is small: more threads than one only contend with other tests.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, script, *, folder, environment, arguments=()):
        """Returns the exit code and all output of a script, which runs in a folder."""
        job = {
            "script": str(script),
            "folder": str(folder),
            "environment": environment,
            "arguments": list(map(str, arguments)),
        }
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["code"], answer["output"]

    def close(self):
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


def serve():
    """Forks for each job on stdin, and answers when the child has ended."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # What is there already is never looked at again, and so its memory stays shared.
    for line in sys.stdin:
        job = json.loads(line)
        log = Path(job["folder"], "output.log")
        child = os.fork()
        if child == 0:
            end_process(run_script(job, log))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output = log.read_text(encoding="utf-8", errors="replace")
        sys.stdout.write(json.dumps({"code": code, "output": output}) + "\n")
        sys.stdout.flush()


def run_script(job, log):
    """Runs a script as the main module of this process; returns its exit code."""
    with log.open("wb") as output, open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.argv = [job["script"], *job["arguments"]]
    sys.path.insert(0, str(Path(job["script"]).parent))
    try:
        runpy.run_path(job["script"], init_globals={"run_command": run_command}, run_name="__main__")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        return 1
    return 0


def end_process(code):
    """Does what a program does at its end, but does not take torch apart, which takes seconds."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_command(line):
    """Runs a command line of a page in a fork; raises if it fails."""
    words = shlex.split(line, comments=True)
    if words[1] == "bench":
        words += ["--seconds=0.05", "--sizes=64K", "--at-a-time=1,4"]  # As printed, it takes 40 seconds.
    child = os.fork()
    if child == 0:
        from s3torch.core.cli.__main__ import main

        sys.argv = words
        try:
            main()
        except SystemExit as exc:
            end_process(exc.code if isinstance(exc.code, int) else int(exc.code is not None))
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        end_process(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # Warnings of doctor are no failure, nor is it one to find a difference.
    wanted = {"doctor": {0, 7}, "diff": {0, 1}, "check": {0, 1}}
    if code not in next((wanted[word] for word in words[1:3] if word in wanted), {0}):
        raise RuntimeError(f"{line!r} ended with {code}")


if __name__ == "__main__":
    serve()

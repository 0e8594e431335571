#!/usr/bin/env python3
"""Run a command of this repository in an environment of its own.

    python3 tools/dev.py demo               the demonstration; no account needed
    python3 tools/dev.py test               lint, types and all tests
    python3 tools/dev.py pytest [ARGS...]   only pytest, for example: pytest packages/core -k uri
    python3 tools/dev.py lint | types | suite | cov | fix
    python3 tools/dev.py COMMAND [ARGS...]  any script of hatch.toml, any program of the environment
    python3 tools/dev.py hatch [ARGS...]    hatch itself, for example: hatch build --all

The first run needs the network and some minutes: it makes an environment for hatch in .dev and
one for the packages in .venv. Later runs only start the command. Nothing outside the repository
is changed, save for pip's cache of downloads. To start afresh, delete .dev and .venv.
"""

# This file must compile on every Python 3, to be able to tell an old one what is wrong.
import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (an older Python gets here, and no further)
    names = [f"python3.{minor}" for minor in (14, 13, 12, 11)]
    newer = [name for name in names if shutil.which(name)]
    advice = f"Try: {newer[0]} tools/dev.py" if newer else "Install one and use it here."
    version = ".".join(map(str, sys.version_info[:3]))
    sys.exit(f"s3torch needs Python 3.11 or later; this is {version}. {advice}")

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

HATCH = "hatch==1.18.2"

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PRIVATE = ROOT / ".dev"
TOOL = PRIVATE / "tool"
TOOL_STAMP = PRIVATE / "tool.json"
VENV_STAMP = PRIVATE / "venv.json"
# Exists only while .venv is being made: one that is found here was not finished.
VENV_UNFINISHED = PRIVATE / "venv-unfinished"


class SetupError(Exception):
    """The set-up cannot go on; the text says why and what to do."""


def main(arguments: list[str]) -> int:
    """Set up what is missing and run the command; returns its exit code."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        sys.stdout.write(__doc__ or "")
        return 0 if arguments else 2
    plain = arguments[0] == "hatch"
    try:
        with only_one_setup():
            set_up_tool()
            if not plain:
                set_up_venv()
        return run(hatch(*arguments[1:]) if plain else hatch("run", *arguments)).code
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def say(text: str) -> None:
    """Tell the user something, apart from the output of the command."""
    sys.stderr.write(f"dev: {text}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def only_one_setup() -> Iterator[None]:
    """Hold back other runs of this script until what this one sets up is there."""
    if os.name != "posix":
        raise SetupError("this script runs on Linux and macOS; on Windows use WSL.")
    import fcntl

    PRIVATE.mkdir(exist_ok=True)
    with (PRIVATE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run that is setting up")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def set_up_tool() -> None:
    """Make the environment that hatch runs in, unless it is there and has the pinned version."""
    wanted = {"hatch": HATCH, "root": str(ROOT)}
    python = TOOL / "bin" / "python"
    if read_stamp(TOOL_STAMP) == wanted and python.exists():
        return
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        package = f"python3.{sys.version_info.minor}-venv"
        raise SetupError(
            f"{sys.executable} comes without the modules venv and ensurepip. On Debian and Ubuntu: "
            f"apt-get install {package}. Or use another Python, 3.11 or later."
        )
    say(f"installing {HATCH} in {PRIVATE.name}/")
    TOOL_STAMP.unlink(missing_ok=True)
    shutil.rmtree(TOOL, ignore_errors=True)
    make_tool()
    install = [str(python), "-I", "-m", "pip", "install", "--quiet", HATCH]
    check(install, f"pip could not install {HATCH}; is the network there?")
    TOOL_STAMP.write_text(json.dumps(wanted))


def make_tool() -> None:
    """Make an empty environment with pip; in this process, for a Ctrl-C without tracebacks."""
    import venv

    try:
        venv.create(TOOL, with_pip=True, symlinks=True)
    except (OSError, subprocess.CalledProcessError) as error:
        details = (getattr(error, "output", None) or b"").decode(errors="replace")
        raise SetupError(f"the environment for hatch was not made: {error}\n{details}") from error


def set_up_venv() -> None:
    """Make the environment of the packages, or bring it up to date when its description changed."""
    wanted = {"root": str(ROOT), "described": fingerprint()}
    known = read_stamp(VENV_STAMP)
    python = VENV / "bin" / "python"
    if known == wanted and python.exists():
        return
    moved = known.get("root", wanted["root"]) != wanted["root"]
    if VENV.exists() and (moved or VENV_UNFINISHED.exists() or not python.exists()):
        say("removing .venv: it is unfinished, or was made elsewhere")
        shutil.rmtree(VENV)
    VENV_STAMP.unlink(missing_ok=True)
    failed = "the environment in .venv was not made; see above"
    if VENV.exists():
        say("bringing .venv up to date")
        check(hatch("run", "refresh"), failed)
    else:
        say("making .venv with all dependencies, torch among them: this takes some minutes, once")
        VENV_UNFINISHED.touch()
        check(hatch("run", "python", "-c", "pass"), failed)
        VENV_UNFINISHED.unlink()
    VENV_STAMP.write_text(json.dumps(wanted))


def fingerprint() -> str:
    """Return a digest of all that decides what is installed in .venv."""
    described: list[object] = [read_toml(ROOT / "pyproject.toml").get("dependency-groups")]
    environment = read_toml(ROOT / "hatch.toml")["envs"]["default"]
    described.append({**environment, "scripts": None})
    members = sorted(ROOT.glob("packages/*/pyproject.toml"))
    described += [[path.parent.name, read_toml(path)] for path in members]
    files = [ROOT / "constraints.txt", *sorted(ROOT.glob("packages/*/src/**/_version.py"))]
    described += [path.read_text(encoding="utf-8") for path in files]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def read_stamp(path: Path) -> dict[str, str]:
    """Return what a finished step left behind, or nothing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def hatch(*arguments: str) -> list[str]:
    """Return the command that runs the private hatch."""
    return [str(TOOL / "bin" / "python"), "-I", "-m", "hatch", *arguments]


def check(command: list[str], failed: str) -> None:
    """Run a step of the set-up, which must succeed."""
    ended = run(command)
    if ended.signals:
        raise KeyboardInterrupt
    if ended.code:
        raise SetupError(f"{failed} (exit code {ended.code})")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and the signals that this script got meanwhile."""

    code: int
    signals: list[int]


def run(command: list[str]) -> Ended:
    """Run a command to its end.

    On Ctrl-C the terminal tells every process of its foreground group, and the command ends in
    its own time. Elsewhere (a CI job, a background job) the command gets a group of its own, to
    which signals are passed on, and of which nothing is left behind.
    """
    foreground = in_foreground()
    group = None
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)
        if group:
            tell_group(group, number)
        elif foreground and number == signal.SIGTERM and received.count(number) == 1:
            tell_group(os.getpid(), number)

    # Handlers, not SIG_IGN: a program that is started with a signal ignored goes on ignoring it.
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), process_group=None if foreground else 0
        )
        if not foreground:
            group = process.pid
            if received:
                tell_group(group, received[-1])
        code = process.wait()
        if group:
            end_group(group, told=bool(received))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received and code >= 192:
        # hatch passes on "ended by signal N", which is -N, modulo 256.
        code = 128 + 256 - code
    return Ended(code if code >= 0 else 128 - code, received)


def in_foreground() -> bool:
    """Say whether this process belongs to the group that a terminal's Ctrl-C goes to."""
    try:
        with Path("/dev/tty").open("rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def tell_group(group: int, number: int) -> bool:
    """Send a signal to a process group; returns False when there is no such group any more."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def end_group(group: int, *, told: bool) -> None:
    """End what a command left behind: politely, unless it was told already; then by force."""
    left = tell_group(group, 0 if told else signal.SIGTERM)
    deadline = time.monotonic() + 5
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = tell_group(group, 0)
    if left:
        tell_group(group, signal.SIGKILL)


def environment() -> dict[str, str]:
    """Return the environment for hatch, which keeps all that it stores in the repository."""
    unwanted = {"PIP_PREFIX", "PIP_TARGET", "PIP_USER", "PYTHONHOME"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in unwanted and not name.startswith("HATCH_")
    }
    configuration = PRIVATE / "hatch.toml"
    configuration.touch()
    return {
        **kept,
        "HATCH_CONFIG": str(configuration),
        "HATCH_DATA_DIR": str(PRIVATE / "hatch"),
        "HATCH_CACHE_DIR": str(PRIVATE / "hatch-cache"),
        "VIRTUALENV_OVERRIDE_APP_DATA": str(PRIVATE / "virtualenv"),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

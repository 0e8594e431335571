"""The script that sets everything up: what it passes on, and how it ends. Without network: a stand-in
for hatch is already "installed", so only the set-up of the real one is left out."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Says what it got, and runs what follows "run" as a child, as hatch does.
STAND_IN = """
import json, os, signal, subprocess, sys
signal.signal(signal.SIGINT, lambda *_: None)
with open("runs.jsonl", "a") as runs:
    print(json.dumps([sys.argv[1:], dict(os.environ)]), file=runs)
if sys.argv[1] == "run" and sys.argv[2] not in ("python", "refresh"):
    sys.exit(subprocess.run([sys.executable, *sys.argv[2:]]).returncode)
"""


@pytest.fixture
def repository(tmp_path):
    """A copy of what the script looks at, in a folder with a space in its name, with hatch in place."""
    root = tmp_path / "a repository"
    for name in ("hatch.toml", "pyproject.toml", "constraints.txt", "tools/dev.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    tool = root / ".dev" / "tool"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tool], check=True)
    (site,) = tool.glob("lib/python*/site-packages")
    (site / "hatch.py").write_text(STAND_IN)
    stamp = {"hatch": "hatch==1.18.2", "root": str(root)}
    (root / ".dev" / "tool.json").write_text(json.dumps(stamp))
    make_venv(root)
    return root


def make_venv(root):
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").touch()


def start(root, *arguments, **options):
    command = [sys.executable, root / "tools" / "dev.py", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(root, *arguments):
    process = start(root, *arguments)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def runs(root):
    """What the stand-in was called with, and what it found in its environment."""
    return [json.loads(line) for line in (root / "runs.jsonl").read_text().splitlines()]


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)
    return path.read_text()


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_without_a_command_it_explains_itself(repository):
    code, output, _ = run(repository)
    assert code == 2
    assert "python3 tools/dev.py demo" in output
    assert run(repository, "--help") == (0, output, "")


def test_arguments_and_exit_code_pass_through(repository):
    code, output, _ = run(repository, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "a b", "$x", "-k")
    assert (code, output) == (7, "['a b', '$x', '-k']\n")


def test_hatch_itself_needs_no_environment_of_the_packages(repository):
    run(repository, "hatch", "build", "--all")
    assert [arguments for arguments, _ in runs(repository)] == [["build", "--all"]]


def test_hatch_keeps_its_files_in_the_repository(repository, monkeypatch):
    monkeypatch.setenv("HATCH_ENV", "another")
    monkeypatch.setenv("PIP_USER", "1")
    run(repository, "-c", "pass")
    environment = runs(repository)[-1][1]
    assert not {"HATCH_ENV", "PIP_USER"} & set(environment)
    for name in ("HATCH_CONFIG", "HATCH_DATA_DIR", "HATCH_CACHE_DIR", "VIRTUALENV_OVERRIDE_APP_DATA"):
        assert Path(environment[name]).is_relative_to(repository / ".dev")
    assert Path(environment["HATCH_CONFIG"]).is_file()


def test_nothing_is_set_up_twice(repository):
    run(repository, "-c", "pass")
    run(repository, "-c", "pass")
    assert [arguments[1] for arguments, _ in runs(repository)] == ["refresh", "-c", "-c"]


def test_a_new_constraint_is_installed(repository):
    run(repository, "-c", "pass")
    with (repository / "constraints.txt").open("a") as constraints:
        constraints.write("another==1.0\n")
    _, _, errors = run(repository, "-c", "pass")
    assert "up to date" in errors
    assert [arguments[1] for arguments, _ in runs(repository)] == ["refresh", "-c", "refresh", "-c"]


def test_an_unfinished_environment_is_made_anew(repository):
    (repository / ".dev" / "venv-unfinished").touch()
    (repository / ".venv" / "half-installed").touch()
    code, _, errors = run(repository, "-c", "pass")
    assert code == 0
    assert "unfinished" in errors
    assert not (repository / ".venv").exists()
    assert not (repository / ".dev" / "venv-unfinished").exists()
    assert [arguments[1] for arguments, _ in runs(repository)] == ["python", "-c"]


def test_a_failed_set_up_is_said_and_tried_again(repository):
    (site,) = (repository / ".dev" / "tool").glob("lib/python*/site-packages")
    (site / "hatch.py").write_text("import sys; sys.exit(3)")
    for _ in range(2):
        code, _, errors = run(repository, "-c", "pass")
        assert code == 1
        assert "exit code 3" in errors
        assert "Traceback" not in errors


def test_a_moved_repository_gets_new_environments(repository, tmp_path):
    run(repository, "-c", "pass")
    moved = repository.rename(tmp_path / "elsewhere")
    (moved / ".dev" / "tool.json").write_text(json.dumps({"hatch": "hatch==1.18.2", "root": str(moved)}))
    _, _, errors = run(moved, "-c", "pass")
    assert "made elsewhere" in errors


def test_two_runs_do_not_set_up_at_once(repository):
    (site,) = (repository / ".dev" / "tool").glob("lib/python*/site-packages")
    slow = "import sys, time; sys.argv[2] == 'refresh' and time.sleep(1)\n" + STAND_IN
    (site / "hatch.py").write_text(slow)
    processes = [start(repository, "-c", "pass") for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("waiting for another run" in text for text in errors) == 1
    assert sorted(arguments[1] for arguments, _ in runs(repository)) == ["-c", "-c", "refresh"]


# Waits, tells its process id, and says how it was interrupted; its own child knows nothing of signals.
PATIENT = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
pathlib.Path("pids.new").write_text(f"{os.getpid()} {child.pid}")
os.rename("pids.new", "pids")
try:
    time.sleep(600)
except KeyboardInterrupt:
    time.sleep(0.5)
    pathlib.Path("cleaned-up").touch()
    sys.exit(5)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(repository, number):
    process = start(repository, "-c", PATIENT, start_new_session=True)
    pids = wait_for(repository / "pids").split()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert not any(is_alive(pid) for pid in pids)
    assert "Traceback" not in errors
    if number == signal.SIGINT:
        assert process.returncode == 5
        assert (repository / "cleaned-up").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_control_c_on_a_terminal_ends_everything(repository):
    terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    script = [sys.executable, repository / "tools" / "dev.py", "-c", PATIENT]
    process = subprocess.Popen(
        [sys.executable, "-c", terminal, *script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pids = wait_for(repository / "pids").split()
    output, _ = process.communicate(b"\x03", timeout=60)
    assert process.returncode == 5
    assert (repository / "cleaned-up").exists()
    assert not any(is_alive(pid) for pid in pids)
    assert b"Traceback" not in output

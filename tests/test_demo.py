"""The demonstration, as a user runs it: what it shows, how it fails, and that it leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PNG = b"\x89PNG\r\n\x1a\n"

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
    pytest.mark.timeout(300),
]


class Demo:
    """A run of the demonstration, with its own folder for temporary files and a mark on its processes."""

    def __init__(self, *arguments):
        self.mark = f"DEMO_UNDER_TEST={uuid.uuid4().hex}"
        # Not below the folder of the test: the paths of the sockets in it would become too long.
        self.temporary = Path(tempfile.mkdtemp(prefix="demo-"))
        name, value = self.mark.split("=")
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tools" / "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {name: value, "TMPDIR": str(self.temporary)},
        )
        self.output = ""

    def read_until(self, text):
        """Read the output up to the line with a text in it."""
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{text!r} is not in the output: {self.output}{self.process.stderr.read()}")

    def wait(self):
        """Wait for the end; returns the exit code and what was written to stderr."""
        output, errors = self.process.communicate(timeout=240)
        self.output += output
        return self.process.returncode, errors

    def processes(self):
        """The processes that were started from it and are still there."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in path.read_bytes():
                    found.append((path.parent / "cmdline").read_text().replace("\0", " "))
            except OSError:
                pass  # It has just ended, or is somebody else's.
        return found

    def assert_nothing_is_left(self):
        deadline = time.monotonic() + 5
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not self.processes()
        assert not list(self.temporary.iterdir())
        for port in re.findall(r"http://127\.0\.0\.1:(\d+)", self.output):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", int(port)), timeout=60)


@pytest.fixture
def demo():
    """Starts the demonstration; what a test has not waited for is stopped in the end."""
    runs = []

    def start(*arguments):
        runs.append(Demo(*arguments))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.process.terminate()
            run.wait()
        run.process.stdout.close()
        run.process.stderr.close()
        shutil.rmtree(run.temporary)


def test_it_trains_is_killed_resumes_and_tells_what_it_measured(demo, tmp_path):
    run = demo("--epochs=3", f"--output={tmp_path}/plots")
    code, errors = run.wait()
    assert (code, errors) == (0, "")
    for text in (
        "1,797 PNG files",
        "killed in the middle of epoch 2",
        "resumed after epoch 1",
        "killed while saving epoch 3",
        "nothing of it is visible",
        "resumed after epoch 2",
        "the same bit for bit",
    ):
        assert text in run.output
    repeated = re.search(r"(\d+) of (\d+) repeated steps had the same loss", run.output)
    assert repeated[1] == repeated[2] != "0"
    assert (tmp_path / "plots" / "training.png").read_bytes().startswith(PNG)
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["training.png"]
    assert "\x1b" not in run.output
    run.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("number", "moment", "options"),
    [(signal.SIGINT, "Start", []), (signal.SIGTERM, "Upload", ["--watch"]), (signal.SIGINT, "epoch 1:", [])],
)
def test_a_signal_ends_it_at_any_moment(demo, tmp_path, number, moment, options):
    run = demo(f"--output={tmp_path}/plots", *options)
    run.read_until(moment)
    run.process.send_signal(number)
    run.process.send_signal(number)
    code, errors = run.wait()
    assert code == 128 + number
    assert "stopped" in errors
    assert "Traceback" not in errors
    run.assert_nothing_is_left()


def test_a_port_in_use_is_said(demo, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        # SeaweedFS takes a second port, 10,000 above.
        run = demo(f"--port={taken - 10_000}", f"--output={tmp_path}/plots")
        code, errors = run.wait()
    assert code == 1
    assert f"port {taken} of 127.0.0.1 is in use" in errors
    assert "Traceback" not in errors
    run.assert_nothing_is_left()


def test_a_folder_that_cannot_be_made_is_said(demo, tmp_path):
    (tmp_path / "file").touch()
    run = demo(f"--output={tmp_path}/file/plots")
    code, errors = run.wait()
    assert code == 1
    assert f"{tmp_path}/file" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("arguments", [["--epochs=2"], ["--workers=-1"], ["--workers=many"]])
def test_wrong_arguments_are_said(demo, arguments):
    run = demo(*arguments)
    code, errors = run.wait()
    assert code == 2
    assert arguments[0].partition("=")[0] in errors

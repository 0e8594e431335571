"""The release tool: what it compares holds, and what it starts heeds Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys

from tests.documents import ROOT

import release


def test_versions_changelog_and_ranges_agree():
    release.agree([release.read(folder) for folder in release.ORDER])


def test_every_package_is_released():
    assert sorted(release.ORDER) == sorted(
        path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")
    )


def test_ctrl_c_reaches_what_it_starts_from_a_job_in_the_background():
    """Such a job ignores it, and tests of Ctrl-C would wait for ever."""
    asked = "import signal; print(signal.getsignal(signal.SIGINT))"
    script = "import pathlib, release, sys; release.heed_ctrl_c(); "
    script += f"release.run(pathlib.Path(sys.executable), '-c', {asked!r})"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT / "tools",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "default_int_handler" in ran.stdout.splitlines()[-1]


def test_a_step_is_done_once_for_the_same_parts(tmp_path):
    stamp = tmp_path / "stamp"
    assert not release.Step(stamp, ("a",)).is_done()
    release.Step(stamp, ("a",)).done()
    assert release.Step(stamp, ("a",)).is_done()
    assert not release.Step(stamp, ("b",)).is_done()

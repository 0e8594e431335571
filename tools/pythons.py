"""Runs the tests of what needs no torch on each newer Python that is installed.

    python3 tools/dev.py pythons                 on 3.12, 3.13 and 3.14, where they are found
    python3 tools/dev.py pythons --only 3.13     on one, which has to be there
    python3 tools/dev.py pythons --newest        on the newest that is found, if one is
    python3 tools/dev.py pythons --only 3.13 -- packages/core/tests/readers

The packages are core, fsspec and testing. Each Python has an environment in ``.dev``, which is made once and
brought up to date every time. Pythons are found on the path and in the folder of pyenv. The default
environment tests all packages, on the Python that it was made with.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.12", "3.13", "3.14")
PACKAGES = ("core", "testing", "fsspec")
EXTRAS = {"core": "[cli,otel,progress]"}
TESTS = ("packages/core", "packages/testing", "packages/fsspec")


def main(arguments: list[str]) -> int:
    """Runs the tests; returns how many Pythons they failed on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=VERSIONS, help="the version of Python")
    parser.add_argument("--newest", action="store_true", help="only the newest that is found")
    parser.add_argument("pytest", nargs="*", help="what pytest gets; the tests of the packages by default")
    chosen = parser.parse_args(arguments)
    found = {version: python for version in VERSIONS if (python := find(version))}
    wanted = [chosen.only] if chosen.only else list(found)[-1 if chosen.newest else 0 :]
    if missing := [version for version in wanted if version not in found]:
        sys.exit(f"python{missing[0]} is not installed")
    for version in sorted(set(VERSIONS) - set(wanted)):
        print(f"python{version}: not tested")
    return sum(run(version, found[version], chosen.pytest or [*TESTS, "-n2", "-q"]) for version in wanted)


def find(version: str) -> str | None:
    """Returns a Python of this version that works; a name alone may be a switch with nothing behind it."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    installed = sorted(map(str, pyenv.glob(f"{version}.*/bin/python{version}")))
    code = "import sys, venv, ensurepip; print('.'.join(map(str, sys.version_info[:2])))"
    for python in filter(None, [shutil.which(f"python{version}"), *reversed(installed)]):
        said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if said.stdout.strip() == version:
            return python
    return None


def run(version: str, python: str, arguments: list[str]) -> bool:
    """Brings the environment up to date and runs the tests; returns whether they failed."""
    place = ROOT / ".dev" / f"python-{version}"
    if not (place / "bin" / "python").exists():
        subprocess.run([python, "-m", "venv", "--clear", str(place)], check=True)
    inside = str(place / "bin" / "python")
    # 25.1: dependency groups.
    subprocess.run([inside, "-m", "pip", "install", "--quiet", "pip>=25.1"], check=True)
    members = [
        argument
        for name in PACKAGES
        for argument in ("--editable", f"{ROOT / 'packages' / name}{EXTRAS.get(name, '')}")
    ]
    install = [inside, "-m", "pip", "install", "--quiet", *members, "--group", "test-without-torch"]
    subprocess.run(install, check=True, cwd=ROOT)
    return subprocess.run([inside, "-m", "pytest", *arguments], check=False, cwd=ROOT).returncode != 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

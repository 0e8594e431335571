"""Checks that a release of all packages is ready; it signs nothing and uploads nothing.

    python3 tools/dev.py release --check                 everything; about an hour
    python3 tools/dev.py release --check --no-tests      only build, look at and install the packages
    python3 tools/dev.py release --check --only fsspec   of one package
    python3 tools/dev.py release --check --with oldest   with the oldest dependencies only
    python3 tools/dev.py release --check --keep FOLDER   go on where an earlier run with this folder ended
    python3 tools/dev.py release --check --only core --with newest --keep FOLDER -- packages/core/tests/cli

Versions, changelog and sibling ranges have to agree. Each package is built; what was built is checked by
twine and check-wheel-contents. Then each wheel is installed alone, with the siblings that it needs, in fresh
environments: one with the newest dependencies and one with the oldest that it declares. In each, pip finds
nothing wrong, the package can be imported, and the tests from its sdist pass. What was built is in ``dist``.

With ``--keep`` the environments stay in a folder. The next run uses them again, and what was built, as long
as the sources are the same. So the check can be run in pieces: by package, environment, and folder of tests.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
TOOLS = ("build>=1.2", "twine>=6", "check-wheel-contents>=0.6")
# In an order in which each package comes after those that it needs.
ORDER = ("core", "testing", "datasets", "dcp", "fsspec", "lightning", "compat")
# What the tests of a package use besides: all of them servers, and some an optional sibling.
TESTED_WITH = {"lightning": ("testing", "datasets", "dcp"), "compat": ("testing", "lightning")}


class NotReadyError(Exception):
    """The release is not ready; the text says why."""


@dataclass(frozen=True)
class Package:
    """One of the distributions of this repository.

    Attributes:
        folder: Its folder in ``packages``.
        project: The table ``project`` of its ``pyproject.toml``.
        version: What the source says.
    """

    folder: str
    project: Mapping[str, Any]
    version: Version

    @property
    def name(self) -> str:
        """The name of the distribution."""
        return str(self.project["name"])

    @property
    def requirements(self) -> list[Requirement]:
        """What it needs, without extras."""
        return [Requirement(line) for line in self.project["dependencies"]]

    @property
    def imported(self) -> str:
        """The package that users import."""
        return "s3torchconnector" if self.folder == "compat" else f"s3torch.{self.folder}"

    def built(self, suffix: str) -> Path:
        """Returns the file that was built: ``.whl`` or ``.tar.gz``."""
        stem = f"{self.name.replace('-', '_')}-{self.version}"
        (found,) = [path for path in DIST.glob(f"{stem}*") if path.name.endswith(suffix)]
        return found


def main(arguments: Sequence[str]) -> int:
    """Runs the checks; returns 1 where the release is not ready."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", required=True, help="there is nothing else to do")
    parser.add_argument("--only", choices=ORDER, action="append", help="only this package; may be repeated")
    parser.add_argument("--with", choices=("newest", "oldest"), dest="kind", help="only these dependencies")
    parser.add_argument("--no-tests", action="store_true", help="do not run the tests of the sdists")
    parser.add_argument("--constraint", type=Path, help="versions for pip, such as a CPU build of torch")
    parser.add_argument("--keep", type=Path, help="a folder for the environments, for the next run")
    parser.add_argument("pytest", nargs="*", help="what pytest gets; all tests of the package by default")
    chosen = parser.parse_args(arguments)
    heed_ctrl_c()
    packages = {folder: read(folder) for folder in ORDER}
    try:
        agree(packages.values())
        with workplace(chosen.keep) as folder:
            build(folder, packages.values())
            for name in chosen.only or ORDER:
                for kind in (chosen.kind,) if chosen.kind else ("newest", "oldest"):
                    place = folder / f"{name}-{kind}"
                    oldest = kind == "oldest"
                    install(place, packages[name], packages, oldest=oldest, constraint=chosen.constraint)
                    if not chosen.no_tests:
                        prepare_tests(place, packages[name], packages, constraint=chosen.constraint)
                        run_tests(place, chosen.pytest or ["packages"])
                    if chosen.keep is None:
                        shutil.rmtree(place)
    except (NotReadyError, subprocess.CalledProcessError) as error:
        print(f"not ready: {error}")
        return 1
    print("ready" if not chosen.pytest else "these tests pass")
    return 0


def heed_ctrl_c() -> None:
    """Lets Ctrl-C end what is started from here, as tests expect.

    A job that a script puts in the background ignores it, and hands that on to all that it starts.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def workplace(keep: Path | None) -> Iterator[Path]:
    """Gives a folder for the environments, which stays where somebody has named it."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="s3torch-release-") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Step:
    """Something that need not be done again while what it was made of is the same.

    Attributes:
        stamp: A file that exists when it is done.
        parts: What it is made of.
    """

    stamp: Path
    parts: tuple[object, ...]

    @property
    def _digest(self) -> str:
        return hashlib.sha256(repr((sys.version, *self.parts)).encode()).hexdigest()

    def is_done(self) -> bool:
        """Whether an earlier run did this, with the same parts."""
        return self.stamp.exists() and self.stamp.read_text() == self._digest

    def done(self) -> None:
        """Notes that it is done."""
        self.stamp.write_text(self._digest)


def contents(files: Iterable[Path]) -> str:
    """Returns a digest of the names and contents of files."""
    digest = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def read(folder: str) -> Package:
    """Reads what a package says of itself."""
    place = ROOT / "packages" / folder
    content = tomllib.loads((place / "pyproject.toml").read_text(encoding="utf-8"))
    source = (place / content["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    if match is None:
        raise NotReadyError(f"{folder} has no __version__")
    return Package(folder, content["project"], Version(match[1]))


def agree(packages: Iterable[Package]) -> None:
    """Compares versions, changelog and the ranges in which the packages take each other."""
    versions = {package.name: package.version for package in packages}
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL))
    for package in packages:
        newest = re.search(r"^### (\S+) \((.+)\)$", sections.get(package.name, ""), re.MULTILINE)
        if newest is None or Version(newest[1]) != package.version:
            raise NotReadyError(
                f"the newest section of {package.name} in CHANGELOG.md is not {package.version}"
            )
        if newest[2] == "unreleased":
            print(f"to do: CHANGELOG.md has no date for {package.name} {package.version}")
        extras = package.project.get("optional-dependencies", {}).values()
        lines = [Requirement(line) for extra in extras for line in extra]
        for requirement in [*package.requirements, *lines]:
            version = versions.get(requirement.name)
            if version is not None and version not in requirement.specifier:
                raise NotReadyError(f"{package.name} needs {requirement}, and the source has {version}")


def build(folder: Path, packages: Iterable[Package]) -> None:
    """Builds and checks a wheel and an sdist of each package."""
    files = (path for path in ROOT.glob("packages/**/*") if path.suffix != ".pyc" and path.is_file())
    step = Step(folder / "built", (contents(files),))
    if step.is_done() and DIST.exists():
        print("built and checked before, of the same sources")
        return
    shutil.rmtree(DIST, ignore_errors=True)
    tools = make_environment(folder / "tools", TOOLS)
    for package in packages:
        source = ROOT / "packages" / package.folder
        run(tools, "-m", "build", "--outdir", str(DIST), str(source))
    built = sorted(map(str, DIST.iterdir()))
    run(tools, "-m", "twine", "check", "--strict", *built)
    wheels = [name for name in built if name.endswith(".whl")]
    # The packages share the namespace s3torch, and compat has two packages, by intention: W009.
    run(tools, "-m", "check_wheel_contents", "--ignore", "W009", *wheels)
    step.done()


def install(
    place: Path, package: Package, packages: Mapping[str, Package], *, oldest: bool, constraint: Path | None
) -> None:
    """Installs a package alone, with what it needs, and imports it."""
    wanted = closure(package, packages)
    limits = [] if constraint is None else [line for line in constraint.read_text().splitlines() if line]
    if oldest:
        fixed = {Requirement(line).name for line in limits if not line.startswith("#")}
        limits += [line for line in lower_bounds(wanted) if Requirement(line).name not in fixed]
    wheels = [one.built(".whl") for one in wanted]
    step = Step(place / "installed", (limits, contents(wheels)))
    if step.is_done():
        print(f"{place.name}: installed before, from the same wheels")
        return
    python = make_environment(place, map(str, wheels), limits)
    run(python, "-m", "pip", "check")
    run(python, "-c", f"import {package.imported}")
    step.done()


def closure(package: Package, packages: Mapping[str, Package]) -> list[Package]:
    """Lists a package and the siblings that it needs."""
    by_name = {one.name: one for one in packages.values()}
    found = [package]
    for one in found:
        siblings = [by_name[need.name] for need in one.requirements if need.name in by_name]
        found += [sibling for sibling in siblings if sibling not in found]
    return found


def lower_bounds(packages: Iterable[Package]) -> list[str]:
    """Lists the oldest version of each dependency that some package declares."""
    oldest: dict[str, Version] = {}
    for requirement in (one for package in packages for one in package.requirements):
        for bound in requirement.specifier:
            if bound.operator == ">=" and not requirement.name.startswith("s3torch"):
                version = Version(bound.version)
                oldest[requirement.name] = max(version, oldest.get(requirement.name, version))
    return [f"{name}=={version}" for name, version in sorted(oldest.items())]


def prepare_tests(
    place: Path, package: Package, packages: Mapping[str, Package], *, constraint: Path | None
) -> None:
    """Unpacks the tests from the sdist of a package, and installs what they need."""
    tree = place / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.rmtree(place / "sdist", ignore_errors=True)
    target = tree / "packages" / package.folder
    target.parent.mkdir(parents=True)
    with tarfile.open(package.built(".tar.gz")) as archive:
        archive.extractall(place / "sdist", filter="data")
    (unpacked,) = (place / "sdist").iterdir()
    shutil.move(unpacked, target)
    # What is installed is tested.
    shutil.rmtree(target / "src")
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tree / name)
    python = place / "bin" / "python"
    users = [packages[name] for name in TESTED_WITH.get(package.folder, ("testing",))]
    siblings = {one.name: one for user in users for one in closure(user, packages)}
    wheels = [one.built(".whl") for one in siblings.values()]
    described = ROOT / "pyproject.toml"
    step = Step(place / "tests-installed", (described.read_text(encoding="utf-8"), contents(wheels)))
    if step.is_done():
        return
    limits = [] if constraint is None else ["--constraint", str(constraint)]
    group = ["--group", f"{described}:test"]
    run(python, "-m", "pip", "install", "--quiet", *map(str, wheels), *group, *limits)
    step.done()


def run_tests(place: Path, arguments: Sequence[str]) -> None:
    """Runs the tests that were unpacked, in the environment where their package is installed."""
    python = place / "bin" / "python"
    options = ("-q", "--numprocesses=auto", "--dist=loadscope")
    run(python, "-m", "pytest", *options, *arguments, cwd=place / "tree")


def make_environment(place: Path, requirements: Iterable[str], limits: Iterable[str] = ()) -> Path:
    """Makes an environment with packages in it; returns its Python."""
    venv.create(place, with_pip=True, symlinks=True, clear=True)
    python = place / "bin" / "python"
    # 25.1: dependency groups.
    run(python, "-m", "pip", "install", "--quiet", "pip>=25.1")
    constraints = place / "constraints.txt"
    constraints.write_text("".join(f"{line}\n" for line in limits), encoding="utf-8")
    run(python, "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *requirements)
    return python


def run(python: Path, *arguments: str, cwd: Path = ROOT) -> None:
    """Runs Python, without the settings of the environment in which this script runs."""
    unwanted = ("PIP_CONSTRAINT", "PYTHONPATH", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    print("+", python.parent.parent.name, *arguments, flush=True)
    subprocess.run([str(python), *arguments], check=True, cwd=cwd, env=kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

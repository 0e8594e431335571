"""The packages fit together: as environment members, as distributions, as one namespace."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
HATCH = tomllib.loads((ROOT / "hatch.toml").read_text(encoding="utf-8"))
PYPROJECTS = {
    path.parent.name: tomllib.loads(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
}
PROJECTS = {folder: pyproject["project"] for folder, pyproject in PYPROJECTS.items()}
DISTRIBUTIONS = {project["name"]: folder for folder, project in PROJECTS.items()}
FOLDERS = pytest.mark.parametrize("folder", PROJECTS)


def package_path(folder):
    """The folder of the import package: where its version is."""
    return (ROOT / "packages" / folder / PYPROJECTS[folder]["tool"]["hatch"]["version"]["path"]).parent


def version_in_source(folder):
    tree = ast.parse((package_path(folder) / "_version.py").read_text(encoding="utf-8"))
    values = {
        ast.unparse(node.targets[0]): ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
    }
    return values["__version__"]


def requirements(folder):
    project = PROJECTS[folder]
    optional = project.get("optional-dependencies", {}).values()
    return [
        Requirement(line)
        for line in [*project["dependencies"], *(line for lines in optional for line in lines)]
    ]


def test_there_are_seven_packages():
    assert set(PROJECTS) == {"compat", "core", "datasets", "dcp", "fsspec", "lightning", "testing"}


@pytest.mark.parametrize("environment", ["default", "hatch-test"])
def test_every_folder_is_a_member_of_the_environment(environment):
    members = HATCH["envs"][environment]["workspace"]["members"]
    assert sorted(members) == [f"packages/{folder}" for folder in sorted(PROJECTS)]


def test_refresh_installs_every_member():
    commands = " ".join(HATCH["envs"]["default"]["scripts"]["refresh"])
    assert re.findall(r"--editable (\S+)", commands) == HATCH["envs"]["default"]["workspace"]["members"]


def test_no_environment_installs_the_root_or_uses_another_installer():
    for name, environment in HATCH["envs"].items():
        assert environment["installer"] == "pip", name
        assert environment.get("skip-install") or name == "hatch-build", name


@FOLDERS
def test_names_follow_the_folders(folder):
    assert PROJECTS[folder]["name"] == ("s3torch" if folder == "core" else f"s3torch-{folder}")
    inside = "s3torchconnector" if folder == "compat" else f"s3torch/{folder}"
    assert package_path(folder) == ROOT / "packages" / folder / "src" / inside


@FOLDERS
def test_the_installed_version_is_that_of_the_source(folder):
    assert importlib.metadata.version(PROJECTS[folder]["name"]) == version_in_source(folder)


@FOLDERS
def test_the_installed_entry_points_are_those_of_the_source(folder):
    declared = {
        (group, name, value)
        for group, entries in PROJECTS[folder].get("entry-points", {}).items()
        for name, value in entries.items()
    }
    declared |= {("console_scripts", *script) for script in PROJECTS[folder].get("scripts", {}).items()}
    installed = importlib.metadata.distribution(PROJECTS[folder]["name"]).entry_points
    assert {(entry.group, entry.name, entry.value) for entry in installed} == declared


@FOLDERS
def test_entry_points_name_modules_that_exist(folder):
    for entries in PROJECTS[folder].get("entry-points", {}).values():
        for value in entries.values():
            assert importlib.util.find_spec(value.partition(":")[0]), value


@FOLDERS
def test_sibling_ranges_admit_the_sibling_versions(folder):
    siblings = [requirement for requirement in requirements(folder) if requirement.name in DISTRIBUTIONS]
    for requirement in siblings:
        if requirement.name != PROJECTS[folder]["name"]:
            assert len(requirement.specifier) == 2, f"{requirement} is no range"
            assert version_in_source(DISTRIBUTIONS[requirement.name]) in requirement.specifier


def test_extras_of_s3torch_are_complete():
    extras = PROJECTS["core"]["optional-dependencies"]
    parts = set(PROJECTS) - {"core", "testing"}
    assert set(extras) == {*parts, "cli", "otel", "progress", "all"}
    for part in parts:
        assert [Requirement(line).name for line in extras[part]] == [PROJECTS[part]["name"]]
    (everything,) = map(Requirement, extras["all"])
    assert everything.name == "s3torch"
    assert everything.extras == set(extras) - {"all"}


def test_compat_has_the_extras_of_the_package_it_stands_in_for():
    assert set(PROJECTS["compat"]["optional-dependencies"]) == {"dcp", "lightning"}


def test_the_namespace_belongs_to_no_package():
    assert not list(ROOT.glob("packages/*/src/s3torch/__init__.py"))


@FOLDERS
def test_every_package_is_typed_and_documented(folder):
    assert (package_path(folder) / "py.typed").is_file()
    package = ROOT / "packages" / folder
    assert (package / "README.md").read_text(encoding="utf-8").startswith(f"# {PROJECTS[folder]['name']}\n")
    assert (package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@FOLDERS
def test_the_changelog_has_a_section_for_this_version(folder):
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL))
    assert f"### {version_in_source(folder)}" in sections[PROJECTS[folder]["name"]]


@FOLDERS
def test_wheels_and_sdists_say_what_they_hold(folder):
    targets = PYPROJECTS[folder]["tool"]["hatch"]["build"]["targets"]
    top = package_path(folder).relative_to(ROOT / "packages" / folder).parts[:2]
    assert targets["wheel"]["packages"] == ["/".join(top)]
    assert targets["sdist"]["only-include"] == ["src", "tests"]

"""Who may import whom, and how the sources are cut. The sources are read, not imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 400
TRANSPORTS = "s3torch.core.transports"
# All that a transport may know of the rest of core.
SEAM = {
    "_atexit",
    "_memory",
    "_process",
    "_resources",
    "config",
    "errors",
    "models",
    "plugins.hookspecs",
    "protocols",
    "ranges",
}
FRAMEWORKS = {"fsspec", "lightning", "pytorch_lightning", "torch"}
SHAPELESS = {"common", "helper", "helpers", "misc", "util", "utils"}


@dataclass(frozen=True)
class Source:
    """One file of a package."""

    folder: str
    module: str
    path: Path
    tree: ast.Module

    def __str__(self):
        return self.module

    @property
    def is_public(self):
        return not any(part.startswith("_") for part in self.module.split("."))

    @property
    def is_package(self):
        return self.path.name == "__init__.py"

    @property
    def exports(self):
        """The names in ``__all__``, or None when there is no such list."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return set(ast.literal_eval(node.value))
        return None

    @property
    def imports(self):
        """Pairs of an imported module and the name taken from it, None for the whole module."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self}: relative import in line {node.lineno}"
                yield from ((node.module, alias.name) for alias in node.names)


@cache
def sources():
    """All sources by module name."""
    found = {}
    for root in sorted(ROOT.glob("packages/*/src")):
        for path in sorted(root.rglob("*.py")):
            parts = [part for part in path.relative_to(root).with_suffix("").parts if part != "__init__"]
            tree = ast.parse(path.read_text(encoding="utf-8"), path)
            found[".".join(parts)] = Source(root.parent.name, ".".join(parts), path, tree)
    return found


def every_source(condition=lambda _: True):
    chosen = [source for source in sources().values() if condition(source)]
    return pytest.mark.parametrize("source", chosen, ids=str)


def is_inside(module, *packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def is_shared(source, module, name):
    """Say whether a module, or the name taken from it, is what another distribution may import."""
    owner = sources().get(module)
    if owner is None or not owner.is_public:
        return False
    if is_inside(module, TRANSPORTS) and module != f"{TRANSPORTS}.memory":
        return False
    if name is None or name in (owner.exports or ()):
        return True
    submodule = sources().get(f"{module}.{name}")
    return submodule is not None and is_shared(source, submodule.module, None)


def test_there_are_sources():
    assert len(sources()) >= 12


@every_source()
def test_imports_are_absolute(source):
    assert list(source.imports) is not None


@every_source()
def test_other_distributions_are_known_by_their_public_names(source):
    ours = [
        (module, name)
        for module, name in source.imports
        if is_inside(module, "s3torch", "s3torchconnector")
        and (module not in sources() or sources()[module].folder != source.folder)
    ]
    assert [f"{module} {name}" for module, name in ours if not is_shared(source, module, name)] == []


@every_source(lambda source: source.folder == "core")
def test_core_knows_no_framework_and_no_sibling(source):
    forbidden = FRAMEWORKS | {"s3torchconnector"}
    tops = {module.partition(".")[0] for module, _ in source.imports}
    assert tops & forbidden == set()
    siblings = [module for module, _ in source.imports if is_inside(module, "s3torch")]
    assert [module for module in siblings if not is_inside(module, "s3torch.core")] == []


@every_source(lambda source: is_inside(source.module, TRANSPORTS))
def test_transports_know_only_the_seam(source):
    allowed = [TRANSPORTS, *(f"s3torch.core.{part}" for part in SEAM)]
    modules = {module for module, _ in source.imports if is_inside(module, "s3torch")}
    assert {module for module in modules if not is_inside(module, *allowed)} == set()


@every_source(lambda source: source.is_public)
def test_public_modules_list_their_names(source):
    defines = [
        node
        for node in source.tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign | ast.Import)
        or (isinstance(node, ast.ImportFrom) and node.module != "__future__")
    ]
    assert source.exports is not None or (source.is_package and not defines)


@every_source(lambda source: source.is_package)
def test_packages_hold_no_code_of_their_own(source):
    def is_harmless(node):
        # Names may be imported at their first use: a plugin is asked without importing torch.
        if isinstance(node, ast.FunctionDef):
            return node.name in {"__getattr__", "__dir__"}
        lists = ("__all__ =", "_MODULES =", "if TYPE_CHECKING:")
        return isinstance(node, ast.Import | ast.ImportFrom) or ast.unparse(node).startswith(lists)

    body = source.tree.body[1 if ast.get_docstring(source.tree) else 0 :]
    assert [ast.unparse(node) for node in body if not is_harmless(node)] == []


@every_source()
def test_modules_are_named_by_a_noun_of_the_domain(source):
    assert source.module.rpartition(".")[2].strip("_") not in SHAPELESS


@pytest.mark.parametrize(
    "path",
    [*(source.path for source in sources().values()), *sorted(ROOT.glob("tools/**/*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_importing_core_loads_neither_frameworks_nor_backends():
    heavy = FRAMEWORKS | {"awscrt", "boto3", "botocore"}
    code = f"import sys, s3torch.core; print(*sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert result.stdout.split() == []

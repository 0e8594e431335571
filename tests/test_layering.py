"""Who may import whom, and how the sources are cut. The sources are read, not imported."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from tools.public_api import read_sources

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 400
MAX_FILES = 14
CORE = "s3torch.core"
TRANSPORTS = f"{CORE}.transports"
# The transports that are part of core: a folder each, and among them the one that others may use for tests.
TRANSPORT_FOLDERS = {f"{TRANSPORTS}.{name}" for name in ("crt", "http", "memory")}
SHARED_TRANSPORT = f"{TRANSPORTS}.memory"
# All that a transport may know of the rest of core.
SEAM = {
    f"{CORE}.{part}"
    for part in (
        "_memory",
        "_process",
        "_resources",
        "_config",
        "errors",
        "models",
        "plugins",
        "ranges",
        "requests",
        "seam",
    )
}
FRAMEWORKS = {"fsspec", "lightning", "pytorch_lightning", "torch"}
SHAPELESS = {"common", "helper", "helpers", "misc", "util", "utils"}


@cache
def sources():
    """All sources by module name."""
    return {source.module: source for source in read_sources()}


def every_source(condition=lambda _: True):
    chosen = [source for source in sources().values() if condition(source)]
    return pytest.mark.parametrize("source", chosen, ids=str)


def every_folder():
    folders = sorted({source.path.parent for source in sources().values()})
    return pytest.mark.parametrize("folder", folders, ids=lambda path: str(path.relative_to(ROOT)))


def is_inside(module, *packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def imported_by(nodes):
    """Yields pairs of an imported module and the name taken from it, None for the whole module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from ((node.module, alias.name) for alias in node.names)


def imports(source):
    """All imports of a source, wherever they are."""
    return imported_by(ast.walk(source.tree))


def run_on_import(statements):
    """Yields the statements that run when a module is imported, as far as they may import others."""
    for node in statements:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from run_on_import(node.orelse)
            continue
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from run_on_import(getattr(node, field, ()))


def folders_of(module):
    """The packages that a module is in, itself among them."""
    parts = module.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts) + 1)}


def target(module, name):
    """Returns the module that an import takes something from."""
    return f"{module}.{name}" if f"{module}.{name}" in sources() else module


def is_shared(module, name):
    """Whether a module, or the name taken from it, is what another distribution may import."""
    owner = sources().get(module)
    if owner is None or not owner.is_public:
        return False
    if is_inside(module, TRANSPORTS) and module not in {TRANSPORTS, SHARED_TRANSPORT}:
        return False
    if name is None or name in (owner.exports or ()):
        return True
    return f"{module}.{name}" in sources() and is_shared(f"{module}.{name}", None)


def test_there_are_sources():
    assert len(sources()) >= 12


@every_source()
def test_imports_are_absolute(source):
    assert list(imports(source)) is not None


@pytest.mark.parametrize("distribution", sorted({source.distribution for source in sources().values()}))
def test_modules_do_not_import_each_other_in_a_circle(distribution):
    own = {module for module, source in sources().items() if source.distribution == distribution}
    graph = {}
    for module in own:
        imported = {target(*pair) for pair in imported_by(run_on_import(sources()[module].tree.body))}
        # An import runs the packages above what it names, too; those above the importer are running already.
        running = folders_of(module)
        ran = {package for one in imported for package in folders_of(one)} & own
        graph[module] = (ran - running) | (imported & running)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


@every_source()
def test_other_distributions_are_known_by_their_public_names(source):
    others = [
        (module, name)
        for module, name in imports(source)
        if is_inside(module, "s3torch", "s3torchconnector")
        and (module not in sources() or sources()[module].distribution != source.distribution)
    ]
    assert [f"{module} {name}" for module, name in others if not is_shared(module, name)] == []


@every_source(lambda source: source.distribution == "core")
def test_core_knows_no_framework_and_no_sibling(source):
    forbidden = FRAMEWORKS | {"s3torchconnector"}
    tops = {module.partition(".")[0] for module, _ in imports(source)}
    assert tops & forbidden == set()
    siblings = [module for module, _ in imports(source) if is_inside(module, "s3torch")]
    assert [module for module in siblings if not is_inside(module, CORE)] == []


def test_each_transport_is_a_folder():
    beside = [source for source in sources().values() if source.module.rpartition(".")[0] == TRANSPORTS]
    assert {source.module for source in beside if source.is_public} == TRANSPORT_FOLDERS
    assert [source.module for source in beside if source.is_public and not source.is_package] == []


@every_source(lambda source: is_inside(source.module, TRANSPORTS))
def test_transports_know_only_the_seam_and_never_each_other(source):
    own = {folder for folder in TRANSPORT_FOLDERS if is_inside(source.module, folder)}
    shared = {
        other.module
        for other in sources().values()
        if other.module.rpartition(".")[0] == TRANSPORTS and not other.is_public
    }
    modules = {target(module, name) for module, name in imports(source) if is_inside(module, "s3torch")}
    known = {module for module in modules if is_inside(module, *SEAM, *own)}
    assert modules - known - shared - {TRANSPORTS} == set()


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


@every_folder()
def test_folders_say_what_they_are_for(folder):
    owner = next(source for source in sources().values() if source.path.parent == folder)
    assert (folder / "__init__.py").is_file(), f"{owner} is in a folder without __init__.py"
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))


@every_folder()
def test_folders_hold_few_files(folder):
    files = {path.name for path in folder.glob("*.py")} - {"__init__.py", "_version.py"}
    assert len(files) <= MAX_FILES


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
    writers = {f"{CORE}._writers", f"{CORE}.transfer._upload", f"{CORE}.operations._copying"}
    heavy = FRAMEWORKS | {"awscrt", "boto3", "botocore"} | writers
    code = f"import sys; from s3torch.core import S3Client; print(*sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert result.stdout.split() == []

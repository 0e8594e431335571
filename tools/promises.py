"""Lists what must always hold, and for each of these promises the tests that would break with it.

A test says with ``@pytest.mark.promise(1)`` which promise it holds, a module with ``pytestmark``. The tests
are read, not imported. The list is kept in docs/promises.md: `python3 tools/dev.py promises` writes it anew.
"""

from __future__ import annotations

import ast
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["PROMISES", "MarkedTest", "Promise", "marked_tests", "page"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "promises.md"
INTRODUCTION = """# Promises

What s3torch promises, and the tests that break when a change breaks a promise. This page is written by
`python3 tools/dev.py promises` from the marks at the tests, such as `@pytest.mark.promise(1)`; the sentences
are in `tools/promises.py`.

| | promise | what it says | tests |
| --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Promise:
    """What must always hold: a short name, and the whole sentence."""

    name: str
    text: str


PROMISES = {
    1: Promise(
        "nothing partial",
        "An object appears only when its writer was closed without an exception. After an exception, "
        "a dropped writer or a dead process, the old object is still there, and the upload is aborted "
        "or left for `abort_stale_uploads`.",
    ),
    2: Promise(
        "nothing wrong",
        "A read returns the bytes of one version of the object, all of them, or raises. What the "
        "store or a checkpoint keeps checksums of is verified, in whatever pieces it is read; uploads "
        "carry a checksum.",
    ),
    3: Promise(
        "bounded memory",
        "The bytes in flight of a process stay within `memory_limit`, which ranks and DataLoader "
        "workers share. A small read of a large object takes one window; `close()` cancels and frees "
        "at once.",
    ),
    4: Promise(
        "every start method",
        "fork, spawn and forkserver work, also when the parent has used the client before, with "
        "threads and open readers.",
    ),
    5: Promise(
        "pickles",
        "Clients, configurations, datasets, unread readers, storage readers and writers, and errors "
        "can be pickled, and work on the other side.",
    ),
    6: Promise(
        "errors with facts",
        "There is one class for each decision that a caller can make. Errors know operation, bucket, "
        "key, code, status and request id, can be pickled, and say what to do. No text is ever "
        "compared.",
    ),
    7: Promise(
        "no lost failure",
        "A failure on a background thread, another rank or a worker fails the call that depends on "
        "it. A save that returns is complete.",
    ),
    8: Promise(
        "early refusal",
        "A transport that lacks something says so when it is created, in words, with the way out.",
    ),
    9: Promise(
        "only what was named",
        "A command touches what it was given and what is ours, nothing else: keys are exact, "
        "deletions follow metadata and our own names, and local files stay in their folder and are "
        "private to their owner.",
    ),
    10: Promise(
        "nothing runs, nothing leaks",
        "What a bucket holds never runs, and leaves no trace where it was refused. Secrets are in no "
        "text, log, repr or pickle.",
    ),
}


@dataclass(frozen=True, order=True)
class MarkedTest:
    """A test, or a class or module of tests, and the promise that it holds."""

    promise: int
    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}::{self.name}" if self.name else self.path


def marked_tests(root: Path = ROOT) -> list[MarkedTest]:
    """Returns everything that is marked in the tests of a checkout, in order."""
    paths = [*root.glob("packages/*/tests/**/*.py"), *root.glob("tests/**/*.py")]
    found = []
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"), path)
        relative = path.relative_to(root).as_posix()
        found += [MarkedTest(number, relative, name) for name, number in _marks(tree, "")]
    return sorted(found)


def _marks(owner: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, int]]:
    """Yields what is marked in a module or a class: its name in the file, and a promise."""
    for node in owner.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            marks = node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
            yield from ((name, number) for number in _numbers(marks))
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = f"{name}::{node.name}" if name else node.name
            yield from ((inner, number) for number in _numbers(node.decorator_list))
            if isinstance(node, ast.ClassDef):
                yield from _marks(node, inner)


def _numbers(marks: Iterable[ast.expr]) -> Iterator[int]:
    for mark in marks:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise":
            yield from (ast.literal_eval(argument) for argument in mark.args)


def page() -> str:
    """Returns the content of docs/promises.md."""
    marked = marked_tests()
    rows = []
    for number, promise in PROMISES.items():
        links = "<br>".join(_link(test) for test in marked if test.promise == number)
        rows.append(f"| {number} | {promise.name} | {promise.text} | {links} |\n")
    return INTRODUCTION + "".join(rows)


def _link(test: MarkedTest) -> str:
    name = test.name.rpartition("::")[2] or Path(test.path).name
    return f"[{name}]({os.path.relpath(ROOT / test.path, PAGE.parent)})"


def main() -> None:
    """Prints the page, or writes it with ``--write``."""
    if sys.argv[1:] == ["--write"]:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())


if __name__ == "__main__":
    main()

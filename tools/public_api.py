"""Lists the public names of all packages, one line for each module and name.

A name is public when it is in the ``__all__`` of a module whose path has no underscore. The sources are read,
not imported. The list is kept in tests/public_api.txt: `python3 tools/dev.py public-api` writes it anew and
prints how many there are.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Source", "public_names", "read_sources"]

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "public_api.txt"


@dataclass(frozen=True)
class Source:
    """One file of a package."""

    distribution: str
    module: str
    path: Path
    tree: ast.Module

    def __str__(self) -> str:
        return self.module

    @property
    def is_public(self) -> bool:
        """Whether no part of the module's path has an underscore in front."""
        return not any(part.startswith("_") for part in self.module.split("."))

    @property
    def is_package(self) -> bool:
        """Whether it is the ``__init__`` of a folder."""
        return self.path.name == "__init__.py"

    @property
    def exports(self) -> list[str] | None:
        """The names in ``__all__``, or None when there is no such list."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return list(ast.literal_eval(node.value))
        return None


def read_sources() -> Iterator[Source]:
    """Yields every source of every package."""
    for root in sorted(ROOT.glob("packages/*/src")):
        for path in sorted(root.rglob("*.py")):
            parts = [part for part in path.relative_to(root).with_suffix("").parts if part != "__init__"]
            tree = ast.parse(path.read_text(encoding="utf-8"), path)
            yield Source(root.parent.name, ".".join(parts), path, tree)


def public_names() -> list[str]:
    """Returns the sorted lines of the list, such as ``s3torch.core._uri parse_s3_uri``."""
    public = (source for source in read_sources() if source.is_public)
    return sorted(f"{source} {name}" for source in public for name in source.exports or ())


def main() -> None:
    """Prints the list, or writes the file with ``--write``."""
    names = public_names()
    text = "".join(f"{line}\n" for line in names)
    if sys.argv[1:] == ["--write"]:
        LIST.write_text(text, encoding="utf-8")
        print(f"{len(names)} public names in {len({line.split()[0] for line in names})} modules")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()

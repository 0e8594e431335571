"""List the public names of all packages, one line for each module and name.

A name is public when it is in the ``__all__`` of a module whose path has no underscore. The sources
are read, not imported. The list is kept in tests/public_api.txt: `python3 tools/dev.py public-api`
writes it anew.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

__all__ = ["public_names"]

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "public_api.txt"


def public_names() -> list[str]:
    """Return the sorted lines of the list, such as ``s3torch.core.uri parse_s3_uri``."""
    lines = []
    for source in sorted(ROOT.glob("packages/*/src")):
        for path in source.rglob("*.py"):
            parts = [part for part in path.relative_to(source).with_suffix("").parts if part != "__init__"]
            if not any(part.startswith("_") for part in parts):
                lines += [f"{'.'.join(parts)} {name}" for name in exported(path)]
    return sorted(lines)


def exported(path: Path) -> list[str]:
    """Return what a module lists in ``__all__``."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == "__all__" for target in node.targets):
            return list(ast.literal_eval(node.value))
    return []


def main() -> None:
    """Print the list, or write the file with ``--write``."""
    text = "".join(f"{line}\n" for line in public_names())
    if sys.argv[1:] == ["--write"]:
        LIST.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()

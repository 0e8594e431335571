"""The entry point of ``s3torch`` and ``python -m s3torch.core.cli``."""

from __future__ import annotations

import sys
from importlib.util import find_spec

_MISSING = "s3torch: the command line needs {missing}; install it with pip install 's3torch[cli]'"


def main() -> None:
    """Runs the command line; ends the process with its exit code."""
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing:
        sys.exit(_MISSING.format(missing=" and ".join(missing)))
    from s3torch.core.cli._application import application
    from s3torch.core.cli._process import prepare_process

    prepare_process()
    application.main(prog_name="s3torch")


if __name__ == "__main__":
    main()

"""Two distributions cannot have the import name ``s3torchconnector`` at a time."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["check_alone"]

_OTHER = "s3torchconnector"


def check_alone() -> None:
    """Raises when the distribution that this one stands in for is installed, too.

    Raises:
        ImportError: It is; which files belong to which is a matter of luck then.
    """
    try:
        found = version(_OTHER)
    except PackageNotFoundError:
        return
    raise ImportError(
        f"both s3torch-compat and {_OTHER} {found} are installed, and both are imported as {_OTHER}; "
        f"run: pip uninstall {_OTHER} && pip install --force-reinstall --no-deps s3torch-compat"
    )


check_alone()

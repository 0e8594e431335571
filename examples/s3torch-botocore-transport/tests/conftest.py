"""Makes the plugin an unpacked distribution on ``sys.path``, as an installer would."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The entry point that ``pyproject.toml`` names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = tmp_path / "s3torch_botocore_transport-0.1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = project["entry-points"]["s3torch.transports"]
    lines = "".join(f"{name} = {module}\n" for name, module in points.items())
    info.joinpath("entry_points.txt").write_text(f"[s3torch.transports]\n{lines}")
    monkeypatch.syspath_prepend(tmp_path)

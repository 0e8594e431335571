"""The examples of the READMEs run as they are printed, against a server on loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]


@pytest.fixture(scope="module")
def bucket(seaweedfs):
    """The bucket that the examples name, with something to train on."""
    name = seaweedfs.create_bucket("my-bucket")
    client = seaweedfs.client()
    for number in range(4):
        client.put_object(Bucket=name, Key=f"train/{number}", Body=b"sample")
    client.close()


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples(path, seaweedfs, tmp_path):
    examples = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    script = tmp_path / "examples.py"
    script.write_text("\n".join(examples), encoding="utf-8")
    environment = {**os.environ, **seaweedfs.environment()}
    result = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "path",
    sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_lead_to_files(path):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []

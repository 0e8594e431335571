"""The examples of the README, put together, are a test module that passes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_suites_of_the_readme_pass(tmp_path):
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "test_mine.py").write_text("\n".join(examples), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, "-rf"]
    result = subprocess.run([*command, "test_mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert re.search(r"^\d{3,} passed", result.stdout, re.MULTILINE), result.stdout

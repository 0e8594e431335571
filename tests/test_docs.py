"""The READMEs and the site: their code runs as it is printed, links lead somewhere, nothing is missing."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zlib

import pytest
from tests.documents import ROOT, ScriptRunner, python_of

READMES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]
PAGES = sorted(ROOT.glob("docs/**/*.md"))
EXAMPLES = sorted(ROOT.glob("examples/**/README.md"))
BUCKET = "my-bucket"


def by_path(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def has_code(path):
    return python_of(path.read_text(encoding="utf-8")).strip()


@pytest.fixture(scope="module")
def runner():
    runner = ScriptRunner()
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def client(seaweedfs):
    seaweedfs.create_bucket(BUCKET)
    client = seaweedfs.client()
    yield client
    client.close()


@pytest.fixture
def bucket(client):
    """The bucket that the pages name, with something to train on and nothing else."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [{"Key": found["Key"]} for page in pages for found in page.get("Contents", [])]
    if keys:
        client.delete_objects(Bucket=BUCKET, Delete={"Objects": keys})
    for number in range(4):
        client.put_object(Bucket=BUCKET, Key=f"train/{number}", Body=b"sample")


@pytest.mark.usefixtures("bucket")
@by_path([path for path in [*READMES, *PAGES] if has_code(path)])
def test_code_runs_as_it_is_printed(path, runner, seaweedfs, tmp_path):
    script = tmp_path / f"{path.stem}.py"
    script.write_text(python_of(path.read_text(encoding="utf-8")), encoding="utf-8")
    environment = {**os.environ, **seaweedfs.environment()}
    code, output = runner.run(script, folder=tmp_path, environment=environment)
    assert code == 0, output


@by_path(sorted([*ROOT.glob("*.md"), *READMES[1:], *PAGES, *EXAMPLES]))
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", path.read_text(encoding="utf-8"))
    assert [link for link, _ in links if not (path.parent / link).exists()] == []
    headings = [(path.parent / link if link else path, anchor) for link, anchor in links if anchor]
    assert [(page.name, anchor) for page, anchor in headings if anchor not in anchors(page)] == []


def anchors(page):
    """The anchors of a page, as GitHub and the site make them of headings, and those of the reference."""
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}
    return made | set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))


def test_every_page_is_in_the_navigation():
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    listed = [*re.findall(r"'([\w/-]+\.md)'", str(site["nav"])), *site["exclude_docs"].split()]
    assert sorted(listed) == sorted(str(path.relative_to(ROOT / "docs")) for path in PAGES)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built from the sources as they are."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "zensical.toml", folder)
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / "packages").symlink_to(ROOT / "packages")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    # Links and anchors that lead nowhere fail the build; docstrings that cannot be parsed are only told.
    assert result.returncode == 0, result.stdout + result.stderr
    assert "griffe:" not in result.stderr, result.stderr
    return folder / "site"


def public_names():
    lines = (ROOT / "tests" / "public_api.txt").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split()) for line in lines if not line.endswith("__version__")]


def public_modules():
    return sorted({module for module, _ in public_names()})


MISSING_DOCSTRINGS = """
import importlib, inspect, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for public in (getattr(module, one) for one in module.__all__):
        if (inspect.isclass(public) or inspect.isfunction(public)) and not inspect.getdoc(public):
            print(public)
"""


@pytest.mark.timeout(300)
def test_every_public_name_is_in_the_reference(site):
    compressed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    listed = {line.split()[0] for line in zlib.decompress(compressed).decode().splitlines()}
    assert [name for name in map(".".join, public_names()) if name not in listed] == [], "see docs/reference"


def test_every_public_name_has_a_docstring(runner, tmp_path):
    script = tmp_path / "missing.py"
    script.write_text(MISSING_DOCSTRINGS, encoding="utf-8")
    code, output = runner.run(
        script, folder=tmp_path, environment=dict(os.environ), arguments=public_modules()
    )
    assert (code, output) == (0, "")


@pytest.mark.timeout(300)
def test_the_site_has_nothing_from_elsewhere(site):
    """It also works without the network."""
    page = (site / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="(https?://[^"]+\.(?:css|js|woff2?))', page) == []


def texts_in_sources():
    """All strings in the sources, with what is put into them as a gap."""
    for path in ROOT.glob("packages/*/src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)


def test_the_error_texts_of_the_troubleshooting_page_exist():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    table = page.partition("## By error text")[2].partition("\n## ")[0]
    quoted = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    texts = "\n".join(texts_in_sources())
    gaps = [re.compile(r".*?".join(map(re.escape, text.split("…")))) for text in quoted]
    assert len(quoted) > 30
    assert [text for text, gap in zip(quoted, gaps, strict=True) if not gap.search(texts)] == []


def test_the_figures_are_those_of_the_benchmarks():
    folder = ROOT / "docs" / "performance"
    rows = json.loads((folder / "bench.json").read_text(encoding="utf-8"))["rows"]
    page = (folder / "bench.md").read_text(encoding="utf-8")
    assert len(rows) > 10
    shown = [f"| {row['work']} | {row['library']} | {row['seconds']:.3f} |" for row in rows]
    assert [line for line in shown if line not in page] == []

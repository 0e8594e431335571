"""fsspec's own suites for filesystems: with empty directories, which this process remembers, and without.

Without is what another process sees, which knows only what is stored.
"""

from __future__ import annotations

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests import abstract
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

everywhere = pytest.mark.parametrize("options", ["memory", "moto", "seaweedfs"], indirect=True)


LOOK_AT_EMPTY_FOLDERS = {
    f"test_{verb}_directory_{rest}"
    for verb in ("copy", "put")
    for rest in ("to_existing_directory", "to_new_directory")
}


class Fixtures(abstract.AbstractFixtures):
    """Where the suites find a filesystem and a folder on it."""

    @pytest.fixture
    def fs(self, fs):
        return fs

    @pytest.fixture
    def fs_path(self, root):
        return root

    @pytest.fixture(params=[True, False], ids=["empty directories", "no empty directories"])
    def supports_empty_directories(self, request, fs, monkeypatch):
        if not request.param:
            monkeypatch.setattr(fs._store, "make_directory", lambda _: None)
        return request.param

    @pytest.fixture(autouse=True)
    def _expect_stale_folders(self, request, options):
        if "seaweedfs" in request.node.callspec.id and request.node.originalname in LOOK_AT_EMPTY_FOLDERS:
            reason = "SeaweedFS lists a folder for some seconds after its last object is gone"
            request.applymarker(pytest.mark.xfail(reason=reason, strict=False))

    @pytest.fixture
    def fs_join(self):
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def fs_sanitize_path(self):
        return lambda path: path.removesuffix("/")

    @pytest.fixture
    def local_fs(self):
        return LocalFileSystem(auto_mkdir=True)


@everywhere
class TestCopy(AbstractCopyTests, Fixtures):
    """Copies within S3."""


@everywhere
class TestGet(AbstractGetTests, Fixtures):
    """Downloads."""


@everywhere
class TestPut(AbstractPutTests, Fixtures):
    """Uploads."""


@everywhere
class TestPipe(AbstractPipeTests, Fixtures):
    """Bytes."""


@everywhere
class TestOpen(AbstractOpenTests, Fixtures):
    """Files."""

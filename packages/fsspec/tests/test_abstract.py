"""fsspec's own suites for filesystems.

They run where folders are what their names say: SeaweedFS keeps empty folders for a while after its objects.
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

on_exact_stores = pytest.mark.parametrize("options", ["memory", "moto"], indirect=True)


class Fixtures(abstract.AbstractFixtures):
    """Where the suites find a filesystem and a folder on it."""

    @pytest.fixture
    def fs(self, fs):
        return fs

    @pytest.fixture
    def fs_path(self, root):
        return root

    @pytest.fixture
    def fs_join(self):
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def fs_sanitize_path(self):
        return lambda path: path.removesuffix("/")

    @pytest.fixture
    def local_fs(self):
        return LocalFileSystem(auto_mkdir=True)


@on_exact_stores
class TestCopy(AbstractCopyTests, Fixtures):
    """Copies within S3."""


@on_exact_stores
class TestGet(AbstractGetTests, Fixtures):
    """Downloads."""


@on_exact_stores
class TestPut(AbstractPutTests, Fixtures):
    """Uploads."""


@on_exact_stores
class TestPipe(AbstractPipeTests, Fixtures):
    """Bytes."""


@on_exact_stores
class TestOpen(AbstractOpenTests, Fixtures):
    """Files."""

"""fsspec's own suites for filesystems: with empty directories, which this process remembers, and without.

Without is what another process sees, which knows only what is stored.
"""

from __future__ import annotations

from functools import partial

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

from s3torch.fsspec._names import parents

everywhere = pytest.mark.parametrize("options", ["memory", "moto", "seaweedfs"], indirect=True)


def delete_with_folders(fs, delete_all, names):
    """Deletes objects and the folders that they were in, as far as these are empty now.

    S3 has no folders. SeaweedFS has, and lists them for some seconds after their last object is gone.
    """
    names = list(names)
    delete_all(names)
    for folder in sorted({folder for name in names for folder in parents(name)}, reverse=True):
        bucket, _, key = folder.partition("/")
        if key:
            fs.client.delete_object(bucket, f"{key}/")


class Fixtures(abstract.AbstractFixtures):
    """Where the suites find a filesystem and a folder on it."""

    @pytest.fixture
    def fs(self, fs, request, monkeypatch):
        if request.node.callspec.params["options"] == "seaweedfs":
            monkeypatch.setattr(fs, "_delete_all", partial(delete_with_folders, fs, fs._delete_all))
        return fs

    @pytest.fixture
    def fs_path(self, root):
        return root

    @pytest.fixture(params=[True, False], ids=["empty directories", "no empty directories"])
    def supports_empty_directories(self, request, fs, monkeypatch):
        if not request.param:
            monkeypatch.setattr(fs._store, "make_directory", lambda _: None)
        return request.param

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

"""A bucket on a real server that is found in the environment, as scripts expect it."""

from __future__ import annotations

from uuid import uuid4

import pytest


@pytest.fixture(scope="session")
def session_bucket(seaweedfs):
    return seaweedfs.create_bucket()


@pytest.fixture
def folder(seaweedfs, session_bucket, monkeypatch):
    """The URI of an empty folder."""
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{session_bucket}/{uuid4().hex}"

"""The examples in the docstrings."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["_listening", "_counters", "otel", "progress"])
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"s3torch.core.observers.{name}"))
    assert result.attempted > 0
    assert result.failed == 0

"""The public names are those of the checked-in list: nothing becomes or stops being public unnoticed.

After a wanted change: python3 tools/dev.py public-api
"""

from __future__ import annotations

import importlib

import pytest
from tools.public_api import LIST, public_names

LISTED = LIST.read_text(encoding="utf-8").splitlines()


def test_the_list_is_up_to_date():
    found = set(public_names())
    advice = "if this is wanted: python3 tools/dev.py public-api"
    assert not found - set(LISTED), f"not in tests/public_api.txt; {advice}"
    assert not set(LISTED) - found, f"no longer public; {advice}"


@pytest.mark.parametrize("module", sorted({line.split()[0] for line in LISTED}))
def test_every_public_name_can_be_imported(module):
    names = [line.split()[1] for line in LISTED if line.split()[0] == module]
    imported = importlib.import_module(module)
    assert [name for name in names if not hasattr(imported, name)] == []

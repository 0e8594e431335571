"""Every promise has tests that break with it, and the page that lists them is up to date.

After a wanted change: python3 tools/dev.py promises
"""

from __future__ import annotations

import pytest
from tools.promises import PAGE, PROMISES, marked_tests, page


@pytest.mark.parametrize("number", PROMISES)
def test_every_promise_is_held_by_tests(number):
    assert [test for test in marked_tests() if test.promise == number]


def test_every_mark_names_a_promise():
    assert [str(test) for test in marked_tests() if test.promise not in PROMISES] == []


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "if this is wanted: python3 tools/dev.py promises"

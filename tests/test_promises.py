"""Every promise has tests that break with it, and the page that lists them is up to date.

After a wanted change: python3 tools/dev.py promises
"""

from __future__ import annotations

import pytest
from tools.promises import PAGE, PROMISES, marked_tests, page

MARKED = """
pytestmark = [pytest.mark.timeout(5), pytest.mark.promise(1)]

@pytest.mark.promise(2, 3)
@pytest.mark.parametrize("a", [1])
def test_function(a): ...

class TestClass:
    pytestmark = pytest.mark.promise(4)

    @pytest.mark.promise(5)
    def test_method(self): ...

def test_without(): ...
"""


def test_marks_are_found_wherever_pytest_takes_them(tmp_path):
    (tmp_path / "packages" / "one" / "tests" / "deep").mkdir(parents=True)
    (tmp_path / "packages" / "one" / "tests" / "deep" / "test_it.py").write_text(MARKED)
    path = "packages/one/tests/deep/test_it.py"
    names = ["", "::test_function", "::test_function", "::TestClass", "::TestClass::test_method"]
    found = [(test.promise, str(test)) for test in marked_tests(tmp_path)]
    assert found == [(number, f"{path}{name}") for number, name in enumerate(names, start=1)]


@pytest.mark.parametrize("number", PROMISES)
def test_every_promise_is_held_by_tests(number):
    assert [test for test in marked_tests() if test.promise == number]


def test_every_mark_names_a_promise():
    assert [str(test) for test in marked_tests() if test.promise not in PROMISES] == []


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "if this is wanted: python3 tools/dev.py promises"

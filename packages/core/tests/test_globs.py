"""Patterns of keys: what they match, and where keys that match can be."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3torch.core.errors import ConfigurationError
from s3torch.core.operations._globs import Glob, expand_braces, without_covered

CASES = [
    ("a/b.tar", ["a/b.tar"], ["a/b-tar", "a/b.tar/", "x/a/b.tar", "A/b.tar"]),
    ("*", ["a", "", ".hidden"], ["a/b", "/"]),
    ("*.tar", ["a.tar", ".tar"], ["a/b.tar", "a.tar.gz"]),
    ("a/*/c", ["a/b/c", "a//c"], ["a/c", "a/b/b/c"]),
    ("a/?.txt", ["a/x.txt", "a/ü.txt", "a/\n.txt"], ["a/xy.txt", "a//.txt", "a/.txt"]),
    ("[a-cx]1", ["a1", "b1", "x1"], ["d1", "-1", "1"]),
    ("[!a-c]1", ["d1", "!1"], ["a1", "/1", "1"]),
    ("[]a]", ["]", "a"], ["[", "b"]),
    ("[!]a]", ["b"], ["]", "a"]),
    ("[*]", ["*"], ["a"]),
    ("[a", ["[a"], ["a"]),
    ("[a/b]", ["[a/b]"], ["a", "b"]),
    ("**", ["", "a", "a/b", "a/"], []),
    ("a/**", ["a/", "a/b", "a/b/c"], ["a", "ab/c"]),
    ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a/xb", "ab", "a/b/c"]),
    ("**/b", ["b", "a/b", "/b", "a/x/b"], ["ab", "a/xb"]),
    ("**/**/b", ["b", "a/b"], ["ab"]),
    ("a**b", ["ab", "axb"], ["a/b"]),
    ("{a,b}/{1,2}{,x}", ["a/1", "b/2x"], ["c/1", "a/3", "{a,b}/1"]),
    ("a{b{c,d},e}", ["abc", "abd", "ae"], ["ab", "a"]),
    ("{a}", ["{a}"], ["a"]),
    ("{a,b", ["{a,b"], ["a"]),
    ("a,b}", ["a,b}"], ["a"]),
    ("{a,{b}", ["{a,{b}"], ["a"]),
    ("a.b+c|d^e$f(g)\\", ["a.b+c|d^e$f(g)\\"], ["axb+c|d^e$f(g)\\"]),
]


@pytest.mark.parametrize(("pattern", "matching", "others"), CASES, ids=[case[0] for case in CASES])
def test_matching(pattern, matching, others):
    glob = Glob(pattern)
    assert [key for key in matching + others if glob.matches(key)] == matching


# An independent matcher: braces from the inside out, folders one by one, names by the standard library.


def innermost(pattern):
    found = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    return [
        text
        for choice in found[1].split(",")
        for text in innermost(pattern[: found.start()] + choice + pattern[found.end() :])
    ]


def match_names(names, texts):
    if not names:
        return not texts
    if names[0] == "**":
        if len(names) == 1:
            return bool(texts)
        return any(match_names(names[1:], texts[skip:]) for skip in range(len(texts) + 1))
    return bool(texts) and fnmatch.fnmatchcase(texts[0], names[0]) and match_names(names[1:], texts[1:])


def reference(pattern, key):
    return any(match_names(one.split("/"), key.split("/")) for one in innermost(pattern))


names = st.one_of(
    st.sampled_from(["**", "*", "a", "ab", "a*", "*b", "?", "[ab]", "[!a]", "[a-b]?", "*a*", "", "[*]", "ü"]),
    st.text("ab*?[]!-", max_size=4),
)
plain_patterns = st.lists(names, min_size=1, max_size=4).map("/".join)
keys = st.lists(st.text("ab*üx]-", max_size=3), min_size=1, max_size=5).map("/".join)


@st.composite
def patterns(draw):
    pattern = draw(plain_patterns)
    for _ in range(draw(st.integers(0, 2))):
        choices = ",".join(draw(st.lists(st.text("ab*/", max_size=2), min_size=2, max_size=3)))
        position = draw(st.integers(0, len(pattern)))
        pattern = f"{pattern[:position]}{{{choices}}}{pattern[position:]}"
    return pattern


@given(patterns(), keys)
@example("[!a]/b", "//b")
@example("a/**", "a/")
def test_matching_is_that_of_the_reference(pattern, key):
    assert Glob(pattern).matches(key) == reference(pattern, key)


@given(patterns())
def test_braces_are_those_of_the_reference(pattern):
    # A brace within a class is one of a group first of all, in both.
    assert sorted(expand_braces(pattern)) == sorted(set(innermost(pattern)))


@st.composite
def matching_pairs(draw):
    """A key, and a pattern made of it."""
    key = draw(keys)
    made = []
    for text in key.split("/")[:-1]:
        forms = [text.replace("*", "[*]"), "*", "?" * len(text), f"{text[:1]}*", "**", f"{{{text},zz}}"]
        made.append(draw(st.sampled_from(forms)))
    made.append(draw(st.sampled_from(["*", "**", f"*{key.rpartition('/')[2][-1:]}"])))
    return "/".join(made), key


@given(matching_pairs())
def test_keys_that_match_are_below_its_prefixes(pair):
    pattern, key = pair
    glob = Glob(pattern)
    assert glob.matches(key)
    assert sum(key.startswith(prefix) for prefix in glob.prefixes) == 1
    for cut in [position for position, character in enumerate(key) if character == "/"]:
        folder = key[: cut + 1]
        assert sum(key.startswith(prefix) for prefix in glob.below(folder)) == 1
        assert all(prefix.startswith(folder) for prefix in glob.below(folder))


@pytest.mark.parametrize(
    ("pattern", "prefixes"),
    [
        ("train/shard-*.tar", ["train/shard-"]),
        ("train/a.tar", ["train/a.tar"]),
        ("{train,val}/**/*.tar", ["train/", "val/"]),
        ("{train,train/x}/*", ["train/"]),
        ("**/x", [""]),
        ("[*]a*", ["*a"]),
    ],
)
def test_prefixes(pattern, prefixes):
    assert Glob(pattern).prefixes == prefixes


@pytest.mark.parametrize(
    ("pattern", "folder", "below"),
    [
        ("runs/*/ckpt/epoch-*/model.pt", "runs/x/", ["runs/x/ckpt/epoch-"]),
        ("runs/*/ckpt/epoch-*/model.pt", "runs/x/ckpt/epoch-5/", ["runs/x/ckpt/epoch-5/model.pt"]),
        ("runs/*/ckpt/*", "other/", []),
        ("runs/a*/x", "runs/b/", []),
        ("*.tar", "folder/", []),
        ("a/**/x", "a/b/", ["a/b/"]),
        ("a/{b,c}*/x", "a/bb/", ["a/bb/x"]),
        ("a/*/", "a/b/", ["a/b/"]),
    ],
)
def test_where_to_look_below_a_folder(pattern, folder, below):
    assert Glob(pattern).below(folder) == below


@pytest.mark.parametrize(
    ("pattern", "prefix", "expected"),
    [
        ("*.tar", "", True),
        ("runs/*/ckpt/*.pt", "runs/", True),
        ("runs/a*/b/c", "runs/a", True),
        ("*/*/*.tar", "", False),
        ("a/**/x", "a/", False),
        ("a/*", "b/", False),
    ],
)
def test_folders_are_asked_for_where_some_can_be_left_out(pattern, prefix, expected):
    assert Glob(pattern).prunes(prefix) == expected


def test_braces_that_stand_for_too_much():
    with pytest.raises(ConfigurationError, match="1000"):
        Glob("{0,1,2,3,4,5,6,7,8,9}" * 4)


@given(st.lists(st.text("ab/", max_size=4)))
def test_covered_prefixes(prefixes):
    kept = without_covered(prefixes)
    assert kept == sorted(set(kept))
    assert set(kept) <= set(prefixes)
    for prefix in prefixes:
        assert sum(prefix.startswith(one) for one in kept) == 1

"""What requests say they come from."""

from __future__ import annotations

import pickle
import re
import sys

import pytest

from s3torch.core import S3Client, UserAgent, __version__

FORM = re.compile(
    r"s3torch/\S+ ua/2\.1 os/(linux|macos|windows)#\S+ lang/python#3\.\d+\.\d+ md/arch#\S+( \S+)*"
)


def test_the_form():
    prefix = UserAgent().prefix
    assert FORM.fullmatch(prefix)
    assert prefix.startswith(f"s3torch/{__version__} ")
    assert f"lang/python#{'.'.join(map(str, sys.version_info[:3]))}" in prefix
    assert prefix == UserAgent.get_default_prefix() == UserAgent([]).prefix == UserAgent(None).prefix


def test_comments_follow_in_parentheses():
    assert UserAgent(["c1", "", "c2"]).prefix == f"{UserAgent.get_default_prefix()} (c1; c2)"
    assert UserAgent([""]).prefix == UserAgent.get_default_prefix()


@pytest.mark.parametrize("comments", ["c1", ("c1",), {"c1"}, 5, [5], ["c1", None]])
def test_comments_are_a_list_of_strings(comments):
    with pytest.raises(ValueError, match=r"Argument comments must be a List\[str\]"):
        UserAgent(comments)


def test_later_changes_of_the_list_do_not_matter():
    comments = ["c1"]
    agent = UserAgent(comments)
    comments.append("c2")
    assert agent.prefix.endswith(" (c1)")


def test_a_client_tells_its_user_agent():
    agent = UserAgent(["training"])
    assert S3Client("us-east-1", user_agent=agent).user_agent_prefix == agent.prefix
    assert pickle.loads(pickle.dumps(agent)).prefix == agent.prefix

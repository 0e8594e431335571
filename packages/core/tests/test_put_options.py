"""How objects are stored: what is taken, what is refused, and whose word counts."""

from __future__ import annotations

import pickle
from dataclasses import fields
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core.errors import ConfigurationError
from s3torch.core.models import PutOptions

WHEN = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
TEXTS = ["a", "text/plain; charset=utf-8", 'attachment; filename="x y"']
NO_TEXTS = ["", " ", "a\nb", "a\r\nX-Evil: 1", "é", "\x00", "trailing ", 5, b"bytes"]
GOOD = {
    "storage_class": ["STANDARD_IA"],
    "content_type": TEXTS,
    "metadata": [{}, {"a-b": "c d"}, {"empty": ""}, {"n": "v" * 2047}],
    "if_none_match": ["*"],
    "if_match": ['"abc"', "abc"],
    "tags": [{}, {"a": ""}, {"ü / &=": "日本"}, {str(number): "" for number in range(10)}],
    "cache_control": TEXTS,
    "content_disposition": TEXTS,
    "content_encoding": ["gzip"],
    "content_language": ["en, de"],
    "expires": [WHEN],
    "acl": ["private", "bucket-owner-full-control"],
    "server_side_encryption": ["AES256", "aws:kms", "aws:kms:dsse"],
}
KMS = {
    "kms_key_id": ["alias/mine", "arn:aws:kms:eu-west-1:1:key/2"],
    "kms_encryption_context": [{"team": "ü"}],
    "bucket_key": [True, False],
}
BAD = {
    **dict.fromkeys(("storage_class", "content_type", "if_match", "cache_control"), NO_TEXTS),
    **dict.fromkeys(("content_disposition", "content_encoding", "content_language"), NO_TEXTS),
    "metadata": [
        {"a b": "c"},
        {"": "c"},
        {"a": "é"},
        {"a": "b\r\nc: d"},
        {"a": 5},
        {5: "a"},
        {"n": "v" * 2048},
        [("a", "b")],
        None,
    ],
    "if_none_match": ["", '"etag"', 5],
    "tags": [{"": "a"}, {"n" * 129: ""}, {"n": "v" * 257}, {str(number): "" for number in range(11)}, "a=b"],
    "expires": [datetime(2030, 1, 2), "2030-01-02", 5],  # noqa: DTZ001
    "acl": ["", "mine"],
    "server_side_encryption": ["", "AES", "kms"],
    "kms_key_id": ["", "a\n"],
    "kms_encryption_context": [{"a": 5}, "a"],
    "bucket_key": [1, "true"],
}


def pairs(table):
    return [pytest.param(name, value, id=f"{name}={value!r}"[:60]) for name in table for value in table[name]]


def test_every_field_is_tested():
    names = {one.name for one in fields(PutOptions)}
    assert names == {*GOOD, *KMS} == set(BAD)


@pytest.mark.parametrize(("name", "value"), pairs(GOOD))
def test_what_s3_takes(name, value):
    options = PutOptions(**{name: value})
    assert getattr(options, name) == value
    assert pickle.loads(pickle.dumps(options)) == options


@pytest.mark.parametrize(("name", "value"), pairs(KMS))
def test_settings_of_kms_need_kms(name, value):
    assert getattr(PutOptions(server_side_encryption="aws:kms", **{name: value}), name) == value
    for other in ({}, {"server_side_encryption": "AES256"}):
        with pytest.raises(ConfigurationError, match="aws:kms"):
            PutOptions(**{name: value}, **other)


@pytest.mark.parametrize(("name", "value"), pairs(BAD))
def test_what_s3_would_refuse(name, value):
    with pytest.raises(ConfigurationError, match=name if name != "tags" else "tag"):
        PutOptions(**{"server_side_encryption": "aws:kms", name: value})


def test_both_conditions_cannot_hold():
    with pytest.raises(ConfigurationError, match="both"):
        PutOptions(if_none_match="*", if_match="abc")


@st.composite
def put_options(draw):
    said = {name: draw(st.sampled_from(GOOD[name])) for name in draw(st.sets(st.sampled_from(list(GOOD))))}
    if "if_match" in said:
        said.pop("if_none_match", None)
    if said.get("server_side_encryption", "").startswith("aws:kms"):
        said |= {name: draw(st.sampled_from(KMS[name])) for name in draw(st.sets(st.sampled_from(list(KMS))))}
    # So that names of both sides meet within what S3 takes.
    said.pop("metadata", None)
    said.pop("tags", None)
    few = st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"))
    return PutOptions(**said, metadata=draw(few), tags=draw(few))


@given(put_options(), put_options())
def test_explicit_settings_win(options, defaults):
    chosen = options.over(defaults)
    for name in GOOD:
        said, fallback = getattr(options, name), getattr(defaults, name)
        if name in {"metadata", "tags"}:
            assert getattr(chosen, name) == {**fallback, **said}
        elif said is not None:
            assert getattr(chosen, name) == said
        elif name not in {"if_none_match", "if_match", "server_side_encryption"}:
            assert getattr(chosen, name) == fallback
    source = options if options.server_side_encryption else defaults
    for name in ("server_side_encryption", *KMS):
        assert getattr(chosen, name) == getattr(source, name)
    conditions = options if options.if_match or options.if_none_match else defaults
    assert (chosen.if_match, chosen.if_none_match) == (conditions.if_match, conditions.if_none_match)
    assert options.over(None) == options
    assert PutOptions().over(defaults) == defaults


@given(put_options())
def test_placement_says_nothing_of_the_content(options):
    placement = options.placement
    assert not placement.describes
    assert (placement.tags, placement.if_match, placement.if_none_match) == ({}, None, None)
    for name in ("storage_class", "acl", "server_side_encryption", *KMS):
        assert getattr(placement, name) == getattr(options, name)

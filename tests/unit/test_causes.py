"""Causes of dead letters: what is masked, and what remains."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oyez.causes import MAX_TEXT, cause_of, masked

WORDS = "no order {} of {}: out of {} at line {} (see {})"
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
uuids = st.uuids().map(str)
ids = st.from_regex(r"[a-z]{1,8}-[0-9]{1,12}", fullmatch=True)
tokens = st.from_regex(r"[0-9A-HJKMNP-TV-Z]{26}", fullmatch=True).filter(
    lambda token: len(re.findall("[0-9]+", token)) > 1
)
mails = st.from_regex(r"[a-z]{1,10}@[a-z]{1,10}\.(org|com)", fullmatch=True)
quoted = st.text(max_size=40).map(repr)


@pytest.mark.parametrize("kind", [numbers, uuids, tokens, mails, quoted], ids=repr)
def test_what_differs_from_letter_to_letter_is_masked(kind: st.SearchStrategy[object]) -> None:
    @given(st.lists(kind, min_size=5, max_size=5), st.lists(kind, min_size=5, max_size=5))
    def check(one: list[object], other: list[object]) -> None:
        assert masked(WORDS.format(*one)) == masked(WORDS.format(*other))

    check()


@given(ids, st.integers(0, 10**12))
def test_of_a_name_with_a_number_the_name_remains(name: str, number: int) -> None:
    other = f"{name.partition('-')[0]}-{number}"
    assert masked(f"no {name}") == masked(f"no {other}") == f"no {name.partition('-')[0]}-#"


@given(st.text(max_size=3_000))
def test_it_is_one_short_line_of_anything(text: str) -> None:
    found = masked(text)
    assert len(found) <= MAX_TEXT
    assert len(found.splitlines()) <= 1
    assert not re.search("[0-9]", found)
    assert re.fullmatch("[0-9a-f]{16}", cause_of(text, text, text))


@pytest.mark.parametrize(
    ("reason", "remains"),
    [
        ("failed 3 of 3 attempts: ValueError: no", "failed # of # attempts: ValueError: no"),
        (
            "$.lines[0].size: Expected `int`, got `str`",
            "$.lines[#].size: Expected `int`, got `str`",
        ),
        ("KeyError: 'ann\\'s'", "KeyError: '…'"),
        ("can't and won't", "can't and won't"),
        ("[1, 2, 3] and ['a', 'b']", "[#] and ['…']"),
        ("sqlite3.OperationalError: locked", "sqlite#.OperationalError: locked"),
        ("'never closed" + "a" * 3_000, "'…'"),
    ],
)
def test_what_letters_share_remains(reason: str, remains: str) -> None:
    assert masked(reason) == remains


def test_a_group_is_of_one_handler_and_one_type() -> None:
    assert cause_of("a", "t", "no 1") == cause_of("a", "t", "no 2")
    assert len({cause_of("a", "t", "x"), cause_of("b", "t", "x"), cause_of("a", "u", "x")}) == 3
    assert cause_of("a", "bt", "x") != cause_of("ab", "t", "x")

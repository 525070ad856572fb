"""Where two configurations differ."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.differences import ABSENT, differences

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.text("ab", max_size=1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", min_size=1, max_size=1), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, [(("a", "c"), 2, 3)]),
        ({"a": [{"b": 1}, 2]}, {"a": [{"b": 9}, 2]}, [(("a", 0, "b"), 1, 9)]),
        ({"a": [1]}, {"a": [1, 2]}, [(("a",), [1], [1, 2])]),
        ({"a": [1, [2]]}, {"a": (1, (2,))}, []),
        ({"a": None}, {}, [(("a",), None, ABSENT)]),
        ({}, {"a": None}, [(("a",), ABSENT, None)]),
        ({"a": {"b": 1}}, {"a": "none"}, [(("a",), {"b": 1}, "none")]),
        ("none", {"b": 1}, [((), "none", {"b": 1})]),
    ],
)
def test_a_difference_is_named_by_its_path(old: Any, new: Any, expected: list[tuple[Any, Any, Any]]) -> None:
    assert list(differences(old, new)) == expected


def test_what_is_absent_says_so() -> None:
    assert repr(ABSENT) == "(absent)"


@given(JSON, JSON)
def test_there_are_differences_if_and_only_if_the_values_differ(old: Any, new: Any) -> None:
    assert (list(differences(old, new)) == []) == (old == new)
    for path, before, after in differences(old, new):
        assert (_at(old, path), _at(new, path)) == (before, after)


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        value = value.get(step, ABSENT) if isinstance(value, dict) else value[step]
    return value

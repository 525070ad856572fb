"""JSON of strangers is read as json reads it, and what is nested without end is an error and no traceback."""

from __future__ import annotations

import pytest

from core.bounded_json import MAX_DEPTH, loads


def test_json_is_read() -> None:
    assert loads('{"a": [1, {"b": null}], "c": "[[["}') == {"a": [1, {"b": None}], "c": "[[["}
    assert loads(b"3") == 3
    assert loads('{"a": 1, "a": 2}', tuple) == (("a", 1), ("a", 2))


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}")])
def test_what_is_nested_too_deep_is_refused(opened: str, closed: str) -> None:
    loads(opened * MAX_DEPTH + "1" + closed * MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 900, 100_000):
        with pytest.raises(ValueError, match="more than 100 deep"):
            loads(opened * depth + "1" + closed * depth)


@pytest.mark.parametrize("text", ["", "{", b"\xff", "1" * 5000])
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        loads(text)

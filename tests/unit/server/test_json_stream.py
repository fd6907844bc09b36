"""Reading JSON as it arrives: valid texts come out as they are, and only valid texts are ever called done."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.server.json_stream import JsonScanner, dump, load, load_string

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def scan(text: str, cuts: tuple[int, ...] = ()) -> tuple[JsonScanner, int, str]:
    """(scanner, how far it read, its output)."""
    scanner, at = JsonScanner(), 0
    for stop in (*sorted(cuts), len(text)):
        at = scanner.feed(text, at, stop)
        if at < stop:
            break
    if at == len(text) and not scanner.done:
        scanner.finish()
    return scanner, at, scanner.take_output()


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(value=_values, indent=st.sampled_from([None, 1]), ascii_only=st.booleans(), data=st.data())
def test_json_comes_out_as_it_is(value: object, indent: int | None, ascii_only: bool, data: st.DataObject) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    cut = data.draw(st.integers(0, len(text)))
    scanner, at, output = scan(text, (cut,))
    assert scanner.done and at == len(text) and output == text
    if text[0] in '{["':
        assert scan(text + "}rest", (cut,))[1:] == (len(text), text), "nothing beyond the value is read"


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(text=st.text(st.sampled_from('{}[]",:\\u0a1eE+-. \n\ttruefalsnx'), max_size=14), cut=st.integers(0, 14))
def test_only_json_is_done(text: str, cut: int) -> None:
    scanner, at, output = scan(text)
    again, at_again, output_again = scan(text, (min(cut, len(text)),))
    assert (scanner.done, at, output) == (again.done, at_again, output_again)
    assert scanner.done != scanner.failed
    if scanner.done:
        json.loads(output)
    try:
        json.loads(text, parse_constant=load)
    except ValueError:
        return
    assert scanner.done and output.strip() == text.strip()


@pytest.mark.parametrize(
    ("written", "mended"),
    [
        ('"a\nb\tc\x00"', '"a\\nb\\tc\\u0000"'),
        (r'"\d+ \' \x41"', r'"\\d+ \\' + "'" + r' \\x41"'),
        (r'"\u12"', r'"\\u12"'),
        (r'"\u12zz"', r'"\\u12zz"'),
        (r'"\\ \" \/ \u00e9"', r'"\\ \" \/ \u00e9"'),
    ],
)
def test_slips_in_strings_are_mended(written: str, mended: str) -> None:
    for cut in range(len(written)):
        scanner, _, output = scan(written, (cut,))
        assert scanner.done and output == mended
    json.loads(mended)


@pytest.mark.parametrize(
    "text", ["", "}", "{a", "[1,]", '{"a" 1', "01", "+1", "1.", "nul", "truefalse", "'a'", "{1", "NaN"]
)
def test_what_is_no_json_fails(text: str) -> None:
    assert scan(text)[0].failed


def test_values_without_json_are_refused_and_half_characters_survive_encoding() -> None:
    for bad in ("NaN", "-Infinity", "[" * 100_000, ""):
        with pytest.raises(ValueError):
            load(bad)
    for unsayable in ({1, 2}, float("nan"), b"x", {(1,): 2}):
        with pytest.raises(ValueError):
            dump(unsayable)
    assert dump({"é": "\ud800"}) == '{"\\u00e9": "\\ud800"}' and dump("é") == '"é"'
    assert load_string('"a\\ud800b"') == "a?b"

"""Stop strings: found wherever tokens end, kept back no longer than needed."""

from __future__ import annotations

import random

from octavo.engine.stop_strings import StopStrings


def run(stops: list[str], pieces: list[str], include: bool = False) -> tuple[list[str], str | None]:
    watch = StopStrings(stops, include)
    shown = []
    for piece in pieces:
        text, stop = watch.push(piece)
        shown.append(text)
        if stop is not None:
            return shown, stop
    return [*shown, watch.flush()], None


def first_match(text: str, stops: list[str]) -> tuple[int, int, str] | None:
    """(end, start, stop) of the match that completes first: the definition, on the whole text."""
    ends = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    return min(ends, default=None)


def test_only_what_could_become_a_stop_string_is_kept_back() -> None:
    assert run(["END"], ["abc", "E", "x", "EN", "D", "never"]) == (["abc", "", "Ex", "", ""], "END")
    assert run(["END"], ["xEN"]) == (["x", "EN"], None)
    assert run(["aab"], ["aaaa"]) == (["aa", "aa"], None)


def test_what_completes_first_wins_and_then_what_starts_first() -> None:
    assert run(["abcd", "c"], ["abcd"]) == (["ab"], "c")
    assert run(["c", "abc"], ["xabcx"]) == (["x"], "abc")
    assert run(["world", "o w"], ["hello world"]) == (["hell"], "o w")


def test_included_stop_strings_need_no_keeping_back() -> None:
    assert run(["END"], ["abE", "N", "Dx"], include=True) == (["abE", "N", "D"], "END")


def test_a_match_that_may_not_stop_is_text() -> None:
    watch = StopStrings(["ab"])
    assert watch.push("xab", may_stop=False) == ("xab", None)
    assert watch.push("yab") == ("y", "ab")
    watch = StopStrings(["ab"])
    assert watch.push("a", may_stop=False) == ("", None)
    assert watch.push("b") == ("", "ab")  # it completes where it may


def test_any_cut_of_any_text_gives_the_same() -> None:
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choice("ab.") for _ in range(draw.randint(0, 25)))
        stops = ["".join(draw.choice("ab.") for _ in range(draw.randint(1, 5))) for _ in range(draw.randint(1, 3))]
        include = draw.random() < 0.5
        pieces, rest = [], text
        while rest:
            size = draw.randint(1, 6)
            pieces.append(rest[:size])
            rest = rest[size:]
        match = first_match(text, stops)
        shown, stop = run(stops, pieces, include)
        if match is None:
            assert ("".join(shown), stop) == (text, None)
        else:
            end, start, expected = match
            assert ("".join(shown), stop) == (text[: end if include else start], expected)

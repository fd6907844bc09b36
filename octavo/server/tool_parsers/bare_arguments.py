"""Arguments that a format writes one by one without JSON's quotes, and that their schema makes into JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.server.json_stream import quoted
from octavo.server.text_stream import Steps
from octavo.server.tool_parsers.protocol import MarkedCalls


class BareArgumentCalls(MarkedCalls):
    """A format calls `start_arguments`, `argument` for each, and `end_arguments`.

    Text that breaks off within a value leaves the JSON open, as it would be had the model written JSON.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(tools)
        self._tool = ""
        self._is_first = True

    def start_arguments(self, tool: str) -> Steps[None]:
        self._tool, self._is_first = tool, True
        yield self.begin(tool)

    def argument(self, parameter: str, ends: tuple[str, ...], margin: str) -> Steps[str]:
        """Reads one value up to one of `ends` and returns that, "" if the text ended. One `margin` (a newline, or
        "") at either end is not part of it. Strings go out as they come, the rest once their type can be checked."""
        yield self.arguments(f'{"{" if self._is_first else ", "}"{quoted(parameter)}": ')
        self._is_first = False
        if margin:
            yield from self.stream.accept(margin)
        is_text = self.tools.is_text(self._tool, parameter)
        if is_text:
            yield self.arguments('"')
        held: list[str] = []  # for text: a margin that may turn out to be the last
        while True:
            text, end = yield from self.stream.piece(ends)
            if not text and not end:
                yield self.arguments(("" if is_text else '"') + quoted("".join(held)))
                return ""
            held.append(text)
            if is_text:
                whole = "".join(held)
                keep = len(margin) if margin and whole.endswith(margin) else 0
                shown = whole[: len(whole) - keep]
                held = [whole[len(shown) :]] if not end else []
                yield self.arguments(quoted(shown))
            if end:
                break
        if is_text:
            yield self.arguments('"')
        else:
            whole = "".join(held)
            yield self.arguments(self.tools.to_json(self._tool, parameter, whole.removesuffix(margin)))
        return end

    def end_arguments(self) -> Steps[None]:
        yield self.arguments("{}" if self._is_first else "}")

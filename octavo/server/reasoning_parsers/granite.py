"""Granite 3.2: "Here is my thought process:" and "Here is my response:"; 3.3: `<think>` and `<response>` tags."""

from __future__ import annotations

from typing import ClassVar

from octavo.server.output_events import Text
from octavo.server.reasoning_parsers.tagged import TaggedReasoning
from octavo.server.text_stream import Steps

_RESPONSES = ("Here is my response:", "Here's my response:")
_RESPONSE, _END_OF_RESPONSE = "<response>", "</response>"


class GraniteReasoning(TaggedReasoning):
    tags: ClassVar = {
        "<think>": ("</think>",),
        "Here is my thought process:": _RESPONSES,
        "Here's my thought process:": _RESPONSES,
    }

    def answer(self, end: str) -> Steps[None]:
        if end == "</think>" and (yield from self.stream.accept(_RESPONSE)):
            yield from self.stream.copy_until((_END_OF_RESPONSE,), Text, after_markup=True)
        yield from self.stream.copy_rest(Text)

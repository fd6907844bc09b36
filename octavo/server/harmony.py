"""gpt-oss's harmony format, whole: thoughts, answer and calls are messages on channels, so one parser reads them all.

    <|channel|>analysis<|message|>thoughts<|end|>
    <|start|>assistant<|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}<|call|>
    <|start|>assistant<|channel|>final<|message|>answer<|return|>

The prompt ends in `<|start|>assistant`, and the last marker is usually a stop token that is not part of the text.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from octavo.server.json_stream import JsonScanner
from octavo.server.output_events import Reasoning, Text, ToolCallArguments, ToolCallStart
from octavo.server.text_stream import Machine, Steps
from octavo.server.tool_parsers.tool_schemas import ToolSchemas

_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_AFTER_BODY = (*_ENDS, _START, _CHANNEL)
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"to=([^\s<]+)")
_HEADER_CHARACTERS = re.compile(r"[^<]*")
_MAX_HEADER = 512  # characters; what goes on longer is no header
_FUNCTIONS = "functions."
_REASONING = "analysis"


class Harmony(Machine):
    """Both a tool parser and a reasoning parser. Without `tools`, calls are text."""

    reads_everything: ClassVar[bool] = True
    markers: ClassVar[tuple[str, ...]] = (*_AFTER_BODY, _CONSTRAIN, _MESSAGE)

    # for grammars: all up to the answer proper is thoughts
    thinking: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "<|channel|>": tuple(f"<|channel|>final{kind}<|message|>" for kind in ("", " <|constrain|>json", " json"))
    }
    always_thinks: ClassVar[bool] = True

    def __init__(self, tools: Sequence[Mapping[str, Any]], starts_inside: bool) -> None:
        super().__init__()
        self._tools = ToolSchemas(tools)
        self._has_tools = bool(tools)
        self._starts_inside = starts_inside
        self._index = -1

    @classmethod
    def prompt_ends_inside(cls, prompt: str) -> bool:
        """The prompt opened a message of thoughts."""
        return prompt.endswith(f"{_CHANNEL}{_REASONING}{_MESSAGE}")

    def run(self) -> Steps[None]:
        stream = self.stream
        marker = ""
        if self._starts_inside:
            marker = yield from self._body(_REASONING, "")
        while not stream.is_at_end:
            if marker not in (_START, _CHANNEL):  # between messages
                stream.record()
                yield from stream.whitespace()
                marker = yield from stream.accept_any((_START, _CHANNEL, _MESSAGE, *_ENDS, "to="))
                if marker in _ENDS:
                    continue
                if not marker:  # no markup at all
                    marker = yield from self._text(stream.take_record())
                    continue
                stream.commit()
            marker = yield from self._message(marker)

    def _message(self, opening: str) -> Steps[str]:
        """One message whose header began with `opening`: the marker that ended it, "" at the end of the text."""
        header, marker = opening, opening
        stream = self.stream
        while marker != _MESSAGE:
            header += yield from stream.run(_HEADER_CHARACTERS, _MAX_HEADER)
            marker = yield from stream.accept_any((_MESSAGE, _CHANNEL, _CONSTRAIN, _START, *_ENDS), cut_off=True)
            if stream.is_at_end:  # broken off within a header
                return ""
            if marker in _ENDS:
                return marker
            if not marker or len(header) > _MAX_HEADER:
                return (yield from self._text(header + marker))
            header += marker
        channel, recipient = _CHANNEL_NAME.search(header), _RECIPIENT.search(header)
        return (yield from self._body(channel[1] if channel else "", recipient[1] if recipient else ""))

    def _body(self, channel: str, recipient: str) -> Steps[str]:
        if recipient.startswith(_FUNCTIONS) or (recipient and recipient in self._tools):
            if self._has_tools:
                return (yield from self._call(recipient.removeprefix(_FUNCTIONS)))
            return (yield from self._text(""))
        if channel == _REASONING or recipient:  # to a tool of the model's own
            return (yield from self.stream.copy_until(_AFTER_BODY, Reasoning))[1]
        return (yield from self._text(""))

    def _text(self, lead: str) -> Steps[str]:
        return (yield from self.stream.copy_until(_AFTER_BODY, Text, lead))[1]

    def _call(self, name: str) -> Steps[str]:
        self._index += 1
        index = self._index
        yield ToolCallStart(index, f"call_{uuid.uuid4().hex[:24]}", name)

        def arguments(fragment: str) -> ToolCallArguments:
            return ToolCallArguments(index, fragment)

        yield from self.stream.whitespace()
        if (yield from self.stream.peek()) == "{":
            yield from self.stream.json_value(JsonScanner(), arguments)
        else:
            marker = yield from self.stream.accept_any(_AFTER_BODY)
            if marker or self.stream.is_at_end:
                yield arguments("{}")
                return marker
        # Nothing more, unless it was no JSON: then all of it is for the client to see.
        return (yield from self.stream.copy_until(_AFTER_BODY, arguments))[1]

"""Llama 3.2 and 4, and others that write Python: `[get_weather(city="Paris"), now()]`.

No marker tells a call from other text, so a call must name one of the request's tools; each is given out when it is
whole, since half of it is no Python. Arguments have names and are literals.
"""

from __future__ import annotations

import ast
import re

from octavo.server.json_stream import dump
from octavo.server.text_stream import Steps
from octavo.server.tool_parsers.protocol import MAX_NAME, MarkedCalls
from octavo.server.tool_parsers.tool_schemas import literal_value, parse_expression

_NAME = re.compile(r"[\w.\-]*")
_UNTIL_SYNTAX = re.compile(r"[^'\"()\[\]{}]*")
_IN_STRING = {quote: re.compile(rf"[^{quote}\\]*") for quote in "'\""}
_CLOSER = {"(": ")", "[": "]", "{": "}"}
_MAX_DEPTH = 64


class PythonicCalls(MarkedCalls):
    openings = ("[",)
    dropped = ("<|python_start|>", "<|python_end|>", "<|python_tag|>")

    def read_call(self, opening: str) -> Steps[None]:
        stream = self.stream
        while True:
            yield from stream.whitespace()
            name = yield from stream.run(_NAME, MAX_NAME)
            if name not in self.tools or not (yield from stream.accept("(")):
                return
            written = yield from self._up_to_closing()
            arguments = None if written is None else _as_json(written)
            if arguments is None:
                return
            yield self.begin(name)
            yield self.arguments(arguments)
            stream.record()
            yield from stream.whitespace()
            if not (yield from stream.accept(",")):
                if (yield from stream.accept("]")):
                    stream.commit()
                return

    def _up_to_closing(self) -> Steps[str | None]:
        """What stands before the parenthesis that closes the call; None if it never comes."""
        stream, due, written = self.stream, [")"], []
        while True:
            written.append((yield from stream.run(_UNTIL_SYNTAX)))
            character = yield from stream.peek()
            if not character:
                return None
            if character in "'\"":
                text = yield from self._string(character)
                if text is None:
                    return None
                written.append(text)
                continue
            if character in _CLOSER:
                due.append(_CLOSER[character])
                if len(due) > _MAX_DEPTH:
                    return None
            elif due.pop() != character:
                return None
            yield from stream.accept(character)
            if not due:
                return "".join(written)
            written.append(character)

    def _string(self, quote: str) -> Steps[str | None]:
        """A string literal with its quotes, triple ones too; None if it does not end."""
        stream = self.stream
        closer = (yield from stream.accept_any((quote * 3,))) or quote
        if closer == quote:
            yield from stream.accept(quote)
        written = [closer]
        while True:
            written.append((yield from stream.run(_IN_STRING[quote])))
            character = yield from stream.peek()
            if not character:
                return None
            if character == "\\":
                yield from stream.accept("\\")
                escaped = yield from stream.peek()
                yield from stream.accept(escaped)
                written.append("\\" + escaped)
            elif (yield from stream.accept(closer)):
                written.append(closer)
                return "".join(written)
            else:  # one quote within a triple-quoted string
                yield from stream.accept(quote)
                written.append(quote)


def _as_json(written: str) -> str | None:
    """The JSON text of "a=1, b='x'"; None if that is not what stands there."""
    try:
        call = parse_expression(f"f({written})")
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            return None
        pairs = (f"{dump(keyword.arg)}: {dump(literal_value(keyword.value))}" for keyword in call.keywords)
        return "{" + ", ".join(pairs) + "}"
    except ValueError:
        return None

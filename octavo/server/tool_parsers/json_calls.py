"""Calls that are JSON objects with a name and arguments, alone or in a list: what several formats share."""

from __future__ import annotations

from typing import ClassVar

from octavo.server.json_stream import JsonScanner
from octavo.server.text_stream import Steps
from octavo.server.tool_parsers.protocol import MAX_NAME, MarkedCalls

_ARGUMENTS = ("arguments", "parameters")
_SAYING_NOTHING = ("type", "id")
_MAX_KEY = 64


class JsonCalls(MarkedCalls):
    """Reads {"name": ..., "arguments": {...}}.

    `strict` is for formats where no marker tells a call from other JSON: there a call is an object that first names
    one of the request's tools and then has arguments.
    """

    strict: ClassVar[bool] = False

    def objects(self) -> Steps[bool]:
        """One call or a list of them. True if all was well to the end."""
        yield from self.stream.whitespace()
        if not (yield from self.stream.accept("[")):
            return (yield from self.object())
        while (yield from self.object()):
            self.stream.record()
            yield from self.stream.whitespace()
            if not (yield from self.stream.accept(",")):
                yield from self.stream.accept("]")
                self.stream.commit()
                return True
            yield from self.stream.whitespace()
        return False

    def object(self, is_open: bool = False) -> Steps[bool]:
        """One call; `is_open` if its brace was read. False if it was none, or broke off: the rest is not JSON."""
        stream = self.stream
        yield from stream.whitespace()
        if not is_open and not (yield from stream.accept("{")):
            return False
        name: str | None = None
        early: str | None = None  # arguments that came before the name
        began = has_others = is_next = False
        while True:
            yield from stream.whitespace()
            if (yield from stream.accept("}")):
                break
            if is_next and not (yield from stream.accept(",")):
                return False
            is_next = True
            yield from stream.whitespace()
            key = yield from stream.json_string(_MAX_KEY)
            if key is None:
                return False
            yield from stream.whitespace()
            if not (yield from stream.accept(":")):
                return False
            yield from stream.whitespace()
            if key == "name" and name is None:
                name = yield from stream.json_string(MAX_NAME)
                if not name or (self.strict and name not in self.tools):
                    return False
                if early is not None:
                    yield self.begin(name)
                    yield self.arguments(early)
                    began = True
            elif key in _ARGUMENTS and early is None and not began:
                if name is not None:
                    if self.strict and (yield from stream.peek()) != "{":
                        return False
                    yield self.begin(name)
                    began = True
                    if not (yield from self.copy_arguments()):
                        return False
                elif self.strict or (early := (yield from self.held_value())) is None:
                    return False
            else:
                has_others = has_others or key not in _SAYING_NOTHING
                limit = MAX_NAME if self.strict and not began else None
                if not (yield from stream.json_value(JsonScanner(), limit=limit)):
                    return False
        if not began:
            if name is None or self.strict or has_others:  # what another key holds may be arguments: do not lose them
                return False
            yield self.begin(name)
            yield self.arguments("{}")
        return True

    def copy_arguments(self) -> Steps[bool]:
        """The value that comes next as the arguments of the call that began. False if it broke off."""
        stream = self.stream
        if (yield from stream.peek()) in ('"', "n"):  # JSON within a string, or null
            stream.record()
            value = yield from self.held_value()
            written = stream.take_record()
            yield self.arguments(written if value is None else value)
            if value is not None:
                return True
        elif (yield from stream.json_value(JsonScanner(), self.arguments)):
            return True
        yield from self.copy_malformed()
        return False

    def held_value(self) -> Steps[str | None]:
        """The JSON text of arguments, once it is whole. None if it is no JSON."""
        if (yield from self.stream.peek()) == '"':
            inner = yield from self.stream.json_string()
            return None if inner is None else inner.strip() or "{}"
        scanner = JsonScanner()
        if not (yield from self.stream.json_value(scanner)):
            return None
        text = scanner.take_output()
        return "{}" if text == "null" else text

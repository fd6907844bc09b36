"""What a tool call format is to the server, and the loop that formats with markers share."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from octavo.server.output_events import Event, Text, ToolCallArguments, ToolCallStart
from octavo.server.text_stream import Machine, Steps
from octavo.server.tool_parsers.tool_schemas import ToolSchemas

NAME = re.compile(r"[\w.\-:/]*")  # characters of a function's name
MAX_NAME = 256  # characters; what goes on longer is no name
_LOOSE_ENDS = re.compile(r"[\s}\],;`]*")  # what models close too much before the closing marker


class ToolParser(Protocol):
    """Separates calls from text for one completion. Text comes in whole or in any pieces; the events must, joined,
    be the same. Nothing a model writes may raise, and what is no call after all is text."""

    markers: ClassVar[tuple[str, ...]]  # texts that may be special tokens; if one is, decoding must keep those

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None: ...

    def push(self, text: str) -> list[Event]: ...

    def finish(self) -> list[Event]: ...


class MarkedCalls(Machine):
    """Text until an opening marker, then `read_call`, then text again.

    A call begins (ToolCallStart) once it cannot be mistaken for something else: the markup so far is as it must be,
    the name is known, and the arguments begin. Until then what was read stays in the stream's record, to come out as
    text. From then on whatever follows is the call's arguments, well-formed or not: it is for the client to see.
    """

    markers: ClassVar[tuple[str, ...]] = ()
    openings: ClassVar[tuple[str, ...]] = ()
    closings: ClassVar[tuple[str, ...]] = ()  # each ends a call; text elsewhere
    dropped: ClassVar[tuple[str, ...]] = ()  # markup that says nothing

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.tools = ToolSchemas(tools)
        self.index = -1  # of the call that began last
        self._is_open = False  # its closing marker is still to come

    def read_call(self, opening: str) -> Steps[None]:
        """Reads what follows an opening marker. May leave what is no call in the record."""
        raise NotImplementedError

    def run(self) -> Steps[None]:
        lead, after_markup = "", False
        while True:
            markers = self.openings + self.dropped + (self.closings if self._is_open else ())
            white, marker = yield from self.stream.copy_until(markers, Text, lead, after_markup)
            if not marker:
                return
            lead, after_markup = "", True
            if marker in self.openings:
                calls_before = self.index
                self.stream.record(white + marker)
                yield from self.read_call(marker)
                lead = self.stream.take_record()
                if self.index > calls_before and not lead.strip():
                    lead = ""
                after_markup = not lead
            elif marker in self.closings:
                self._is_open = False

    # --- what formats are made of ---

    def begin(self, name: str, call_id: str | None = None) -> ToolCallStart:
        """From here on it is a call."""
        self.stream.commit()
        self.index += 1
        self._is_open = bool(self.closings)
        return ToolCallStart(self.index, call_id or self.new_id(), name)

    def new_id(self) -> str:
        return f"call_{uuid.uuid4().hex[:24]}"

    def arguments(self, fragment: str) -> ToolCallArguments:
        return ToolCallArguments(self.index, fragment)

    def copy_malformed(self) -> Steps[None]:
        """Arguments that are no JSON any more: all of it up to the closing marker, if the format has one."""
        if self.closings:
            yield from self.stream.copy_until(self.closings, self.arguments)
            self._is_open = False

    def close(self) -> Steps[None]:
        """After the arguments: reads the closing marker."""
        if not self._is_open:
            return
        self.stream.record()
        yield from self.stream.run(_LOOSE_ENDS)
        if (yield from self.stream.accept_any(self.closings, cut_off=True)):
            self.stream.commit()
            self._is_open = False

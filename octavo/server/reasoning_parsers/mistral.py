"""Magistral and later Mistrals: `[THINK]` and `[/THINK]`, both special tokens."""

from __future__ import annotations

from typing import ClassVar

from octavo.server.reasoning_parsers.tagged import TaggedReasoning


class MistralReasoning(TaggedReasoning):
    tags: ClassVar = {"[THINK]": ("[/THINK]",)}
    calls = ("[TOOL_CALLS]",)
    markers = ("[THINK]", "[/THINK]", "[TOOL_CALLS]")

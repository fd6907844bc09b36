"""Qwen 3 and later, and most models with `<think>`. A call within the thoughts ends them, as these models forget to."""

from __future__ import annotations

from octavo.server.reasoning_parsers.tagged import TaggedReasoning


class Qwen3Reasoning(TaggedReasoning):
    calls = ("<tool_call>\n<function=", '<tool_call>\n{"name"')  # a bare <tool_call> may be spoken of

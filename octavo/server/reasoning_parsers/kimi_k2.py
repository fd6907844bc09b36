"""Kimi K2 Thinking: `<think>`; the section of tool calls ends thoughts too."""

from __future__ import annotations

from octavo.server.reasoning_parsers.tagged import TaggedReasoning


class KimiK2Reasoning(TaggedReasoning):
    calls = ("<|tool_calls_section_begin|>",)
    markers = ("<think>", "</think>", "<|tool_calls_section_begin|>")

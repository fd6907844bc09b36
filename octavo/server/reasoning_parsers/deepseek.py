"""DeepSeek: V3.1 thinks if its prompt opens the thoughts; R1 always does, whoever opens them or not."""

from __future__ import annotations

from octavo.server.reasoning_parsers.tagged import TaggedReasoning

# After these a prompt goes on to the answer.
_OUTSIDE = ("</think>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁end｜>")


class DeepseekV3Reasoning(TaggedReasoning):
    pass


class DeepseekR1Reasoning(TaggedReasoning):
    @classmethod
    def prompt_ends_inside(cls, prompt: str) -> bool:
        return not prompt.rstrip().endswith(_OUTSIDE)

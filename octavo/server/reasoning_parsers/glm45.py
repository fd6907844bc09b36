"""GLM 4.5 to 4.7: `<think>` written by the model, or by the template from 4.7 on."""

from __future__ import annotations

from octavo.server.reasoning_parsers.tagged import TaggedReasoning


class Glm45Reasoning(TaggedReasoning):
    pass

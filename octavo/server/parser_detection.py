"""Which tool and reasoning parsers a checkpoint wants, told by the markers in its chat template and vocabulary."""

from __future__ import annotations

import re
from typing import Protocol


class Vocabulary(Protocol):
    """What is asked of a tokenizer here."""

    def convert_token_to_id(self, token: str) -> int | None: ...


# (pattern in the template, parser); the first that is found decides, so the ones that say most come first.
_TOOLS = (
    (r"<\|channel\|>", "openai"),
    (r"<｜tool▁calls▁begin｜>", "deepseek_v3"),
    (r"<\|tool_calls_section_begin\|>", "kimi_k2"),
    (r"\[TOOL_CALLS\]", "mistral"),
    (r"<tool_call>(?:\\n|\s)*<function=", "qwen3_coder"),
    (r"<arg_key>", "glm45"),
    (r"with <\|tool_call\|>|<\|tool_call\|>\s*\[", "granite"),
    (r"<tool_call>", "hermes"),
    (r"\[func(?:tion)?_?name1?\(", "pythonic"),
    (r"<\|python_tag\|>|\{\s*\\?\"name\\?\":\s*function name", "llama3_json"),
)
_REASONING = (
    (r"<\|channel\|>", "openai_gptoss"),
    (r"\[THINK\]", "mistral"),
    (r"<｜Assistant｜><think>", "deepseek_r1"),
    (r"<｜Assistant｜>[\s\S]*</think>", "deepseek_v3"),
    (r"\[gMASK\][\s\S]*</think>", "glm45"),
    (r"<\|im_middle\|>[\s\S]*</think>", "kimi_k2"),
    (r"Here is my thought process|<think></think>[\s\S]*<response></response>", "granite"),
    (r"</?think>", "qwen3"),
)
# For checkpoints without a template: tokens that only one format has.
_TOKENS = (
    ("<|constrain|>", "openai", "openai_gptoss"),
    ("[THINK]", "mistral", "mistral"),
    ("[TOOL_CALLS]", "mistral", None),
)
_FAMILIES = (("gpt-oss", "openai", "openai_gptoss"), ("magistral", "mistral", "mistral"))


def detect_parsers(
    chat_template: str | None, tokenizer: Vocabulary | None, model_name: str
) -> tuple[str | None, str | None]:
    """(tool parser, reasoning parser) by name, None where the model seems to have no such thing.

    The template decides; only without one do the vocabulary and then the model's name.
    """
    if chat_template is not None:
        return _first(_TOOLS, chat_template), _first(_REASONING, chat_template)
    if tokenizer is not None:
        for token, tool, reasoning in _TOKENS:
            if tokenizer.convert_token_to_id(token) is not None:
                return tool, reasoning
    name = model_name.lower()
    for family, tool, reasoning in _FAMILIES:
        if family in name:
            return tool, reasoning
    return None, None


def _first(patterns: tuple[tuple[str, str], ...], template: str) -> str | None:
    return next((parser for pattern, parser in patterns if re.search(pattern, template)), None)
